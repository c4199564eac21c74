//! A pool of worker threads.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
};

/// Calls `job` for each index below `count` on `workers` threads, until `stop` is set. `collect` receives
/// the results on this thread: each index and what the job returned, or `None` if it panicked.
///
/// The channel holds one result, so that workers wait for `collect` and little is lost if the program is
/// killed.
pub(crate) fn run<T: Send, R>(
    workers: usize,
    count: usize,
    stop: &AtomicBool,
    job: impl Fn(usize) -> T + Sync,
    collect: impl FnOnce(Receiver<(usize, Option<T>)>) -> R,
) -> R {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, count.max(1)) {
            let (sender, job, next) = (sender.clone(), &job, &next);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = catch_unwind(AssertUnwindSafe(|| job(index))).ok();
                    if sender.send((index, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        collect(receiver)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_have_their_index_and_panics_are_none() {
        let stop = AtomicBool::new(false);
        let job = |index: usize| if index == 3 { panic!("on purpose") } else { 2 * index };
        let mut results: Vec<_> = run(4, 20, &stop, job, |results| results.iter().collect());
        results.sort_unstable();
        let expected = |index: usize| (index, (index != 3).then_some(2 * index));
        assert_eq!(results, (0..20).map(expected).collect::<Vec<_>>());
        assert_eq!(run(4, 0, &stop, |_| (), |results| results.iter().count()), 0);
    }

    #[test]
    fn a_stop_or_a_dropped_receiver_ends_the_workers() {
        let stop = AtomicBool::new(false);
        let done = AtomicUsize::new(0);
        let job = |_| {
            done.fetch_add(1, Ordering::Relaxed);
        };
        run(2, 1_000_000, &stop, job, |results| {
            results.recv().unwrap();
            stop.store(true, Ordering::Relaxed);
            results.iter().for_each(drop);
        });
        run(2, 1_000_000, &AtomicBool::new(false), job, drop);
        assert!(done.into_inner() < 1000);
    }
}
