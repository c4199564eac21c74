//! Ranks that are processes of MPI.
//!
//! ```no_run
//! use opensora_parallel::{Mpi, MpiOptions, Reduction};
//!
//! // mpirun -n 4 program
//! let mpi = Mpi::init(MpiOptions::default())?;
//! let group = mpi.world();
//! let mut number = [group.rank() as f32];
//! group.all_reduce(Reduction::Sum, &mut number);
//! if group.rank() == 0 {
//!     println!("the sum of the ranks is {}", number[0]);
//! }
//! mpi.finish();
//! # Ok::<(), opensora_parallel::MpiError>(())
//! ```
//!
//! # Failures
//! No rank outlives the others: [`Mpi::abort`], a panic, a rank that returns without [`Mpi::finish`], a process that is
//! killed, and one that is stopped for longer than [`MpiOptions::watchdog`] all end the program on all ranks, with
//! one line that says why (the launcher may add its own).
//!
//! # Non-blocking collectives
//! There are none. MPI's progress only while some thread is inside MPI, on Open MPI over shared memory and TCP, so that
//! a call that waits, on a thread of its own, overlaps as much with the computation as a non-blocking one: a group
//! may be used from any thread, one collective at a time.

mod group;
mod setup;

use crate::{Group, watchdog::Timing};
use group::Session;
use std::{fmt, sync::Arc, time::Duration};

/// Options of [`Mpi::init`].
#[derive(Clone)]
#[non_exhaustive]
pub struct MpiOptions {
    /// After this time without a sign of life of a rank, the program ends on all ranks; by default 20 s. Computing
    /// for any time is no silence: a thread of its own shows that the process runs. After three times this time in
    /// which all ranks wait in collectives, they also end. `None`: no watchdog, for networks on which the ranks
    /// cannot reach rank 0 by TCP.
    pub watchdog: Option<Duration>,
    /// Called with the line that says why the program ends; by default it is written to standard error.
    pub report: fn(&str),
}

impl MpiOptions {
    /// Sets [`watchdog`](Self::watchdog).
    pub fn with_watchdog(mut self, limit: Option<Duration>) -> Self {
        self.watchdog = limit;
        self
    }

    /// Sets [`report`](Self::report).
    pub fn with_report(mut self, report: fn(&str)) -> Self {
        self.report = report;
        self
    }

    fn timing(&self) -> Option<Timing> {
        let limit = self.watchdog?;
        Some(Timing { beat: (limit / 20).min(Duration::from_secs(1)), limit, stuck: 3 * limit })
    }
}

impl Default for MpiOptions {
    fn default() -> Self {
        Self { watchdog: Some(Duration::from_secs(20)), report: |line| eprintln!("{line}") }
    }
}

impl fmt::Debug for MpiOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiOptions").field("watchdog", &self.watchdog).finish_non_exhaustive()
    }
}

/// Why MPI could not be initialized.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MpiError {
    /// A process can initialize MPI once.
    #[error("MPI: initialized twice in one process")]
    Twice,
    /// The MPI library does not support programs with several threads.
    #[error("MPI: found support of threads {found}, expected at least Serialized")]
    Threads {
        /// The level that the library provides.
        found: String,
    },
    /// A rank cannot reach rank 0 by TCP.
    #[error("watchdog: {reason}; without it, a rank that stops is not noticed")]
    Watchdog {
        /// The rank, and what it tried.
        reason: String,
    },
}

/// The ranks of an MPI program. The first thread that calls MPI makes it, and finishes it.
#[derive(Debug)]
pub struct Mpi {
    session: Arc<Session>,
    world: Group,
    local: Group,
    finished: bool,
}

impl Mpi {
    /// Initializes MPI, and starts the watchdog. Called by all ranks.
    ///
    /// # Errors
    /// Returns an error, on all ranks, if MPI is initialized already, if the library does not allow several threads,
    /// or if a rank cannot connect to rank 0.
    pub fn init(options: MpiOptions) -> Result<Self, MpiError> {
        let (session, world) = setup::init(&options)?;
        let local = session.local(&world);
        Ok(Self { session, world: Arc::new(world), local, finished: false })
    }

    /// Returns the group of all ranks.
    pub fn world(&self) -> Group {
        self.world.clone()
    }

    /// Returns the group of the ranks on this node, in the order of ranks: its
    /// [`rank`](crate::Communicator::rank) is the number of the device to use.
    pub fn local(&self) -> Group {
        self.local.clone()
    }

    /// Waits for all ranks and ends MPI. Groups cannot be used afterwards.
    pub fn finish(mut self) {
        self.session.finish(&*self.world);
        self.finished = true;
    }

    /// Reports `message` and ends the program on all ranks.
    pub fn abort(&self, message: &str) -> ! {
        self.session.abort(self.world.rank(), message)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if !self.finished {
            let why = if std::thread::panicking() { "panicked" } else { "returned early" };
            self.session.abort(self.world.rank(), why);
        }
    }
}
