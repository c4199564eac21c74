//! Counts and times the collectives of a group.

use crate::{Communicator, Group, Reduction};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What the collectives of this rank have cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Number of collectives.
    pub calls: u64,
    /// Bytes that this rank sent to others: in a group of N ranks, `n (N - 1) / N` for a
    /// [`reduce_scatter`](Communicator::reduce_scatter) or [`all_to_all`](Communicator::all_to_all) of n bytes, twice
    /// that for an [`all_reduce`](Communicator::all_reduce), `n (N - 1)` for an
    /// [`all_gather`](Communicator::all_gather) of n bytes per rank, and n for a
    /// [`broadcast`](Communicator::broadcast).
    pub bytes: u64,
    /// Time spent in collectives, which includes waiting for slower ranks.
    pub time: Duration,
}

impl Traffic {
    /// Returns the traffic since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            calls: self.calls - earlier.calls,
            bytes: self.bytes - earlier.bytes,
            time: self.time.saturating_sub(earlier.time),
        }
    }
}

/// Counters of a measured group and of the groups split from it.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Meter {
    /// Returns `group` with every collective counted by this meter.
    ///
    /// ```
    /// use opensora_parallel::{Meter, threads::run_ranks};
    ///
    /// run_ranks(2, |group| {
    ///     let meter = Meter::default();
    ///     let group = meter.measure(group);
    ///     group.all_gather(&[1, 2, 3], &mut [0; 6]);
    ///     let traffic = meter.traffic();
    ///     assert_eq!((traffic.calls, traffic.bytes), (1, 3));
    /// });
    /// ```
    pub fn measure(&self, group: Group) -> Group {
        // Collectives of one rank cost nothing.
        if group.size() == 1 {
            return group;
        }
        Arc::new(Measured { group, meter: self.clone() })
    }

    /// Returns what the collectives have cost so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            calls: self.0.calls.load(Relaxed),
            bytes: self.0.bytes.load(Relaxed),
            time: Duration::from_nanos(self.0.nanoseconds.load(Relaxed)),
        }
    }

    fn count<R>(&self, bytes: usize, call: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let result = call();
        self.0.calls.fetch_add(1, Relaxed);
        self.0.bytes.fetch_add(bytes as u64, Relaxed);
        self.0.nanoseconds.fetch_add(began.elapsed().as_nanos() as u64, Relaxed);
        result
    }
}

/// A group whose collectives are counted.
#[derive(Debug)]
struct Measured {
    group: Group,
    meter: Meter,
}

impl Measured {
    /// Returns the bytes of `bytes` that go to other ranks, if all ranks get an equal part.
    fn scattered(&self, bytes: usize) -> usize {
        bytes - bytes / self.group.size()
    }
}

impl Communicator for Measured {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn barrier(&self) {
        self.meter.count(0, || self.group.barrier());
    }

    fn broadcast(&self, root: usize, buffer: &mut [u8]) {
        let sent = if self.rank() == root { buffer.len() } else { 0 };
        self.meter.count(sent, || self.group.broadcast(root, buffer));
    }

    fn all_reduce(&self, reduction: Reduction, buffer: &mut [f32]) {
        let sent = 2 * self.scattered(size_of_val(buffer));
        self.meter.count(sent, || self.group.all_reduce(reduction, buffer));
    }

    fn all_reduce_f64(&self, reduction: Reduction, buffer: &mut [f64]) {
        let sent = 2 * self.scattered(size_of_val(buffer));
        self.meter.count(sent, || self.group.all_reduce_f64(reduction, buffer));
    }

    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) {
        let sent = self.scattered(size_of_val(input));
        self.meter.count(sent, || self.group.reduce_scatter(input, output));
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8]) {
        let sent = input.len() * (self.size() - 1);
        self.meter.count(sent, || self.group.all_gather(input, output));
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8]) {
        let sent = self.scattered(input.len());
        self.meter.count(sent, || self.group.all_to_all(input, output));
    }

    fn split(&self, color: usize, key: usize) -> Group {
        self.meter.measure(self.meter.count(0, || self.group.split(color, key)))
    }

    fn abort(&self, message: &str) -> ! {
        self.group.abort(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::run_ranks;

    #[test]
    fn bytes_to_other_ranks_are_counted() {
        run_ranks(4, |group| {
            let meter = Meter::default();
            let group = meter.measure(group);
            let sent = |call: &dyn Fn()| {
                let before = meter.traffic();
                call();
                let spent = meter.traffic().since(&before);
                assert_eq!(spent.calls, 1);
                spent.bytes
            };
            assert_eq!(sent(&|| group.barrier()), 0);
            assert_eq!(sent(&|| group.all_reduce(Reduction::Sum, &mut [0.0; 8])), 2 * 24);
            assert_eq!(sent(&|| group.reduce_scatter(&[0.0; 8], &mut [0.0; 2])), 24);
            assert_eq!(sent(&|| group.all_gather(&[0; 5], &mut [0; 20])), 15);
            assert_eq!(sent(&|| group.all_to_all(&[0; 20], &mut [0; 20])), 15);
            let expected = if group.rank() == 1 { 7 } else { 0 };
            assert_eq!(sent(&|| group.broadcast(1, &mut [0; 7])), expected);
        });
    }

    #[test]
    fn waiting_is_timed_also_in_groups_split_from_a_measured_one() {
        run_ranks(2, |group| {
            let meter = Meter::default();
            let part = meter.measure(group).split(0, 0);
            if part.rank() == 0 {
                // Far longer than the limit: the other rank may begin to wait late on a busy machine.
                std::thread::sleep(Duration::from_secs(1));
            }
            part.barrier();
            let traffic = meter.traffic();
            assert_eq!(traffic.calls, 2);
            assert!(part.rank() == 0 || traffic.time >= Duration::from_millis(40), "{traffic:?}");
            let alone = meter.measure(Arc::new(crate::Solo));
            alone.all_reduce(Reduction::Sum, &mut [1.0]);
            assert_eq!(meter.traffic().calls, 2);
        });
    }
}
