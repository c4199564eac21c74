//! Rate limits that all workers share.

use crate::retry::pause;
use std::{
    sync::{Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

/// A rate limit that threads share: each waits for its turn.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Units per second; `None` for no limit.
    per_second: Option<f64>,
    /// When the units taken so far are used up.
    next: Mutex<Instant>,
}

impl Rate {
    pub(crate) fn new(per_second: Option<f64>) -> Self {
        Self { per_second, next: Mutex::new(Instant::now()) }
    }

    /// Waits until `units` are available. Unused units do not accumulate.
    pub(crate) fn take(&self, units: f64) {
        let Some(per_second) = self.per_second else { return };
        let now = Instant::now();
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*next).max(now);
            *next = turn + Duration::from_secs_f64(units / per_second);
            turn
        };
        pause(turn - now, &AtomicBool::new(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_rate() {
        let (rate, started) = (Rate::new(Some(100.0)), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| rate.take(1.0)));
            }
        });
        // The first of 20 does not wait.
        assert!(started.elapsed() >= Duration::from_millis(190), "{:?}", started.elapsed());
        let started = Instant::now();
        (0..1000).for_each(|_| Rate::new(None).take(1e9));
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}
