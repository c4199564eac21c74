//! Groups of MPI's ranks, and how they end.

use crate::{
    Communicator, Group, Reduction, Scratch,
    pieces::{self, Limits, Transport},
    watchdog::{Hub, NAMES, Pulse, Spoke, Timing},
};
use mpi::{
    Threading,
    collective::{CommunicatorCollectives as _, Root as _},
    environment::Universe,
    topology::{Color, Communicator as _, SimpleCommunicator},
};
use std::{
    fmt,
    mem::ManuallyDrop,
    process,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    thread,
    time::Duration,
};

/// A communicator of MPI. It is not freed: that is a collective, and the order in which ranks drop groups may differ.
struct Handle(ManuallyDrop<SimpleCommunicator>);

// SAFETY: a handle is a number or the address of a structure that the library guards. The library is initialized for
// calls from several threads (at least `Serialized`), and a collective holds the session's lock.
#[expect(unsafe_code, reason = "the handles of Open MPI are pointers, which are not Send")]
unsafe impl Send for Handle {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the handles of Open MPI are pointers, which are not Sync")]
unsafe impl Sync for Handle {}

/// MPI between initialization and end.
pub(super) struct Session {
    /// MPI; `None` after its end. Locked by every collective.
    universe: Mutex<Option<Universe>>,
    /// Locked by sums, after `universe`.
    scratch: Mutex<Scratch>,
    threading: Threading,
    pub(super) pulse: Arc<Pulse>,
    pub(super) watchdog: OnceLock<Watchdog>,
    report: fn(&str),
}

/// The watchdog of this rank.
#[derive(Debug)]
pub(super) enum Watchdog {
    Hub(Hub, Timing),
    Spoke(Spoke),
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("watchdog", &self.watchdog).finish_non_exhaustive()
    }
}

impl Session {
    /// Returns the session and the group of all ranks.
    pub(super) fn new(
        universe: Universe,
        threading: Threading,
        report: fn(&str),
    ) -> (Arc<Self>, MpiGroup) {
        let world = universe.world().duplicate();
        let session = Arc::new(Self {
            universe: Mutex::new(Some(universe)),
            scratch: Mutex::default(),
            threading,
            pulse: Arc::default(),
            watchdog: OnceLock::new(),
            report,
        });
        let world = MpiGroup::new(world, session.clone());
        (session, world)
    }

    /// Returns the group of the ranks on this node.
    pub(super) fn local(self: &Arc<Self>, world: &MpiGroup) -> Group {
        let local = world.call("split", |_| world.handle.0.split_shared(world.rank as i32));
        Arc::new(MpiGroup::new(local, self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Universe>> {
        self.universe.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for all ranks, then ends the watchdog and MPI.
    pub(super) fn finish(&self, world: &dyn Communicator) {
        world.barrier();
        match self.watchdog.get() {
            Some(Watchdog::Hub(hub, _)) => hub.stop(),
            Some(Watchdog::Spoke(spoke)) => spoke.stop(),
            None => {}
        }
        drop(self.lock().take());
    }

    /// Reports `message` of rank `rank` and ends all ranks.
    pub(super) fn abort(&self, rank: usize, message: &str) -> ! {
        (self.report)(&format!("rank {rank}: {message}"));
        // The others end without another message.
        match self.watchdog.get() {
            Some(Watchdog::Hub(hub, timing)) => hub.fail(*timing),
            Some(Watchdog::Spoke(spoke)) => spoke.fail(),
            None => {}
        }
        self.end()
    }

    /// Ends this process at the request of the watchdog, with the message if this rank is to report it.
    pub(super) fn end_with(&self, message: Option<String>) -> ! {
        if let Some(message) = message {
            (self.report)(&message);
        }
        self.end()
    }

    /// Has MPI end all ranks; ends at least this process.
    fn end(&self) -> ! {
        // MPI_Abort waits for the launcher, which may be lost.
        let _ = thread::Builder::new().spawn(|| {
            thread::sleep(Duration::from_secs(5));
            process::abort();
        });
        let locked = self.universe.try_lock();
        if locked.is_ok() || self.threading == Threading::Multiple {
            SimpleCommunicator::world().abort(1);
        }
        process::abort();
    }
}

/// A group of MPI's ranks.
pub(super) struct MpiGroup {
    handle: Handle,
    session: Arc<Session>,
    pub(super) rank: usize,
    size: usize,
}

impl fmt::Debug for MpiGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} of MPI", self.rank, self.size)
    }
}

impl MpiGroup {
    fn new(communicator: SimpleCommunicator, session: Arc<Session>) -> Self {
        let (rank, size) = (communicator.rank() as usize, communicator.size() as usize);
        Self { handle: Handle(ManuallyDrop::new(communicator)), session, rank, size }
    }

    fn limits(&self) -> Limits {
        Limits::of(self.size)
    }

    /// Returns the memory of sums. Only for a collective, which holds the session's lock.
    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.session.scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Calls a collective, which the watchdog sees.
    fn call<R>(&self, name: &str, collective: impl FnOnce(&Exchanges<'_>) -> R) -> R {
        let locked = self.session.lock();
        assert!(locked.is_some(), "a collective after the end of MPI");
        let number = NAMES.iter().position(|&known| known == name);
        self.session.pulse.enter(number.expect("a name of a collective") as u8);
        let result = collective(&Exchanges(self));
        self.session.pulse.leave();
        result
    }
}

/// The exchanges of MPI, under the session's lock. Empty ones are left out, on all ranks alike: the address of an empty
/// slice is 1, which is Open MPI's mark for an exchange in place.
struct Exchanges<'a>(&'a MpiGroup);

impl Transport for Exchanges<'_> {
    fn size(&self) -> usize {
        self.0.size
    }

    fn broadcast(&self, root: usize, buffer: &mut [u8]) {
        if !buffer.is_empty() {
            self.0.handle.0.process_at_rank(root as i32).broadcast_into(buffer);
        }
        self.0.session.pulse.proceed();
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8]) {
        if !input.is_empty() {
            self.0.handle.0.all_gather_into(input, output);
        }
        self.0.session.pulse.proceed();
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8]) {
        if !input.is_empty() {
            self.0.handle.0.all_to_all_into(input, output);
        }
        self.0.session.pulse.proceed();
    }
}

impl Communicator for MpiGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn barrier(&self) {
        self.call("barrier", |_| self.handle.0.barrier());
    }

    fn broadcast(&self, root: usize, buffer: &mut [u8]) {
        assert!(root < self.size, "rank {root} of a group of {}", self.size);
        self.call("broadcast", |ranks| pieces::broadcast(ranks, self.limits(), root, buffer));
    }

    fn all_reduce(&self, reduction: Reduction, buffer: &mut [f32]) {
        self.call("all_reduce", |ranks| {
            pieces::all_reduce(ranks, self.limits(), &mut self.scratch(), reduction, buffer);
        });
    }

    fn all_reduce_f64(&self, reduction: Reduction, buffer: &mut [f64]) {
        self.call("all_reduce", |ranks| {
            pieces::all_reduce(ranks, self.limits(), &mut self.scratch(), reduction, buffer);
        });
    }

    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) {
        self.call("reduce_scatter", |ranks| {
            pieces::reduce_scatter(ranks, self.limits(), &mut self.scratch(), input, output);
        });
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8]) {
        self.call("all_gather", |ranks| {
            pieces::all_gather(ranks, self.limits(), input, output);
        });
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8]) {
        self.call("all_to_all", |ranks| {
            pieces::all_to_all(ranks, self.limits(), input, output);
        });
    }

    fn split(&self, color: usize, key: usize) -> Group {
        let [color, key] = [color, key]
            .map(|number| i32::try_from(number).expect("MPI's colors and keys have 31 bits"));
        let part = self.call("split", |_| {
            let color = Color::with_value(color);
            self.handle.0.split_by_color_with_key(color, key).expect("a rank that has a color")
        });
        Arc::new(Self::new(part, self.session.clone()))
    }

    fn abort(&self, message: &str) -> ! {
        // The rank of the world, which the user knows from the launcher.
        self.session.abort(SimpleCommunicator::world().rank() as usize, message)
    }
}
