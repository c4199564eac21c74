//! The ranks of a program that `mpirun` or `srun` started.
//!
//! Rank 0 alone prints. Errors that a subcommand returns have to be the same on all ranks, by [`World::agree`] or by
//! a library that does so: the ranks then end together. A rank that fails alone ends all by `Communicator::abort`.

use crate::output::{self, Reported};
use anyhow::anyhow;
use opensora::files::error_line;
use opensora_parallel::{Group, Launch, Solo, first_error, gather_bytes};
#[cfg(feature = "mpi")]
use opensora_parallel::{Mpi, MpiOptions};
use std::{env, sync::Arc, thread, time::Duration};

/// Environment variable with which a user chooses the number of threads.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Time that rank 0 has to print an error before another rank exits with the same error.
const PRINTING: Duration = Duration::from_secs(1);

/// The ranks of this program, of which this process is one.
pub(crate) struct World {
    group: Group,
    /// The ranks of this node.
    local: Group,
    #[cfg(feature = "mpi")]
    mpi: Option<Mpi>,
}

impl World {
    /// Joins the ranks that a launcher of MPI started; a program without a launcher is one rank. Chooses the
    /// number of threads. Call it before the first tensor operation.
    ///
    /// # Errors
    /// Returns an error if MPI cannot be initialized, or if this build has no MPI and was started on several ranks.
    pub(crate) fn join() -> anyhow::Result<Self> {
        // A launcher of one process is none.
        let Some(launch) = launch().filter(|launch| launch.size != Some(1)) else {
            let solo: Group = Arc::new(Solo);
            compute_alone();
            return Ok(Self {
                group: solo.clone(),
                local: solo,
                #[cfg(feature = "mpi")]
                mpi: None,
            });
        };
        if launch.rank > 0 {
            output::silence();
        }
        let world = Self::start().inspect_err(|_| {
            if launch.rank > 0 {
                await_rank_0();
            }
        })?;
        set_threads(&world.local);
        compute_alone();
        Ok(world)
    }

    #[cfg(feature = "mpi")]
    fn start() -> anyhow::Result<Self> {
        let report = |line: &str| output::last_words(format_args!("error: {line}"));
        let mpi = Mpi::init(MpiOptions::default().with_report(report))?;
        Ok(Self { group: mpi.world(), local: mpi.local(), mpi: Some(mpi) })
    }

    #[cfg(not(feature = "mpi"))]
    fn start() -> anyhow::Result<Self> {
        anyhow::bail!(
            "started on several ranks, but this build has no MPI: build with `--features mpi`, or start one process"
        )
    }

    /// Returns the group of all ranks.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Returns the number of this process on its node.
    pub(crate) fn local_rank(&self) -> usize {
        self.local.rank()
    }

    /// Returns true for rank 0, the only one that prints.
    pub(crate) fn is_main(&self) -> bool {
        self.group.rank() == 0
    }

    /// Returns the result of this rank if all ranks succeeded, else an error on every rank. A collective.
    pub(crate) fn agree<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if self.group.size() == 1 {
            return result;
        }
        let line = result.as_ref().err().map(|error| error_line(error.as_ref()));
        match (first_error(&*self.group, line.as_deref()), result) {
            (Some((rank, line)), Ok(_)) => Err(anyhow!("rank {rank}: {line}")),
            (_, result) => result,
        }
    }

    /// Returns the result of `work`, which rank 0 does first, so that the others find the files that it fetched. A
    /// collective.
    pub(crate) fn main_first<T>(&self, work: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let first = self.agree(if self.is_main() { work().map(Some) } else { Ok(None) })?;
        self.agree(first.map_or_else(work, Ok))
    }

    /// Returns the result of this rank. Ends all ranks at an error that the others do not have, unless there is only
    /// one: they wait for this one in a collective.
    pub(crate) fn or_abort<T>(
        &self,
        result: anyhow::Result<T>,
        have_all: impl FnOnce(&anyhow::Error) -> bool,
    ) -> anyhow::Result<T> {
        if let Err(error) = &result
            && self.group.size() > 1
            && !have_all(error)
        {
            self.group.abort(&error_line(error.as_ref()));
        }
        result
    }

    /// Ends MPI. All ranks call it, after a success or an error that all have.
    pub(crate) fn finish(self) {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = self.mpi {
            drop((self.group, self.local));
            mpi.finish();
        }
    }
}

/// Returns the place of this process among those that a launcher started together.
pub(crate) fn launch() -> Option<Launch> {
    Launch::detect(|name| env::var(name).ok())
}

/// Waits until rank 0 has probably printed the error that this rank has too: a launcher ends all ranks when the first
/// one has failed. For errors outside MPI, where no rank can wait for another.
pub(crate) fn await_rank_0() {
    thread::sleep(PRINTING);
}

/// Runs `work`, whose errors are those of all ranks, on the ranks of this program.
pub(crate) fn on_ranks(work: impl FnOnce(&World) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let world = World::join()?;
    let result = match work(&world) {
        Err(error) if world.group.size() > 1 => {
            // Before any rank exits: a launcher ends all ranks when the first one has failed.
            output::error(&error);
            Err(error.context(Reported))
        }
        result => result,
    };
    world.finish();
    result
}

/// Divides the processors among the ranks that may use the same ones, unless the user chose a number of threads.
fn set_threads(local: &Group) {
    let own = processors();
    let sharing = gather_bytes(&**local, &own).into_iter().filter(|other| *other == own).count();
    if env::var_os(THREADS).is_some() {
        return;
    }
    let available = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads(available, sharing);
    // Fails if the pool runs already, which no subcommand does before.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    output::detail(format_args!("{threads} threads per rank ({THREADS} sets another number)"));
}

/// Lets the calling thread compute by itself if there is to be one thread. Otherwise a pool of one thread does it, and
/// this thread waits for each of hundreds of operations of a step: two switches of threads each, for which ranks that
/// share processors wait.
///
/// Other threads, such as those that read data, use the global pool as before: they must not wait for this thread, which
/// may wait for them.
fn compute_alone() {
    if rayon::current_num_threads() != 1 {
        return;
    }
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    // Without it, the global pool computes. A pool that ends would take the thread's membership with it.
    if let Ok(pool) = alone {
        std::mem::forget(pool);
    }
}

/// Returns the threads of a rank that shares `available` processors with `sharing` ranks in all.
fn threads(available: usize, sharing: usize) -> usize {
    (available / sharing.max(1)).max(1)
}

/// Returns the processors that this process may use, one byte each, as the launcher has bound it; empty if the system
/// does not say.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "calls of the C library")]
fn processors() -> Vec<u8> {
    let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the set is as large as the size says, and zeroes are a valid set.
    let set = unsafe {
        let size = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size, set.as_mut_ptr()) != 0 {
            return Vec::new();
        }
        set.assume_init()
    };
    let count = libc::CPU_SETSIZE as usize;
    // SAFETY: the number is less than the size of the set.
    (0..count).map(|cpu| u8::from(unsafe { libc::CPU_ISSET(cpu, &set) })).collect()
}

#[cfg(not(target_os = "linux"))]
fn processors() -> Vec<u8> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_processors_or_have_their_own() {
        assert_eq!([threads(64, 8), threads(8, 1), threads(2, 4)], [8, 8, 1]);
        let solo: Group = Arc::new(Solo);
        assert_eq!(gather_bytes(&*solo, &processors()), [processors()]);
    }
}
