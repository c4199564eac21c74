//! Patience with what is far away: attempts, growing waits, and what is worth another attempt.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// How long to insist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles from there.
    pub first_wait: Duration,
    /// Longest wait between two attempts, also where the other side asks for more.
    pub longest_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// Why an attempt did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It may succeed later.
    Again {
        /// What happened, one line.
        reason: String,
        /// How long the other side asks to wait.
        wait: Option<Duration>,
    },
    /// It will not succeed.
    Final(String),
}

/// Attempts until one succeeds, one fails for good, or patience ends. Waits end early when `stop`
/// is set. `attempt` gets its number, from 0.
///
/// # Errors
/// The last attempt's reason, and how many there were where it was not the first.
pub fn insist<T>(
    patience: &Patience,
    stop: &AtomicBool,
    mut attempt: impl FnMut(u32) -> Result<T, Failure>,
) -> Result<T, String> {
    let mut number = 0;
    loop {
        let (reason, asked) = match attempt(number) {
            Ok(done) => return Ok(done),
            Err(Failure::Final(reason)) => (reason, None),
            Err(Failure::Again { reason, wait }) => (reason, Some(wait)),
        };
        number += 1;
        let Some(asked) = asked.filter(|_| number < patience.attempts) else {
            return Err(if number == 1 { reason } else { format!("{reason} ({number} attempts)") });
        };
        let own = patience.first_wait.saturating_mul(1 << (number - 1).min(20));
        pause(asked.unwrap_or(own).min(patience.longest_wait), stop);
        if stop.load(Ordering::Relaxed) {
            return Err(format!("{reason} (stopped after {number} attempts)"));
        }
    }
}

/// Sleeps, but not much longer than until `stop` is set.
pub fn pause(time: Duration, stop: &AtomicBool) {
    const SLICE: Duration = Duration::from_millis(50);
    let mut left = time;
    while !left.is_zero() && !stop.load(Ordering::Relaxed) {
        let slice = left.min(SLICE);
        std::thread::sleep(slice);
        left -= slice;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Patience = Patience {
        attempts: 3,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(2),
    };

    fn again(reason: &str) -> Failure {
        Failure::Again { reason: reason.into(), wait: Some(Duration::from_secs(3600)) }
    }

    #[test]
    fn attempts_end_with_success_finality_or_patience() {
        let stop = AtomicBool::new(false);
        let second =
            insist(&QUICK, &stop, |number| if number == 1 { Ok(7) } else { Err(again("busy")) });
        assert_eq!(second, Ok(7));
        let never = insist::<()>(&QUICK, &stop, |number| Err(again(&format!("busy {number}"))));
        assert_eq!(never, Err("busy 2 (3 attempts)".into()));
        let wrong = insist::<()>(&QUICK, &stop, |_| Err(Failure::Final("no such file".into())));
        assert_eq!(wrong, Err("no such file".into()));
    }

    #[test]
    fn a_stop_ends_a_wait() {
        let stop = AtomicBool::new(false);
        let patient = Patience { longest_wait: Duration::from_secs(3600), ..QUICK };
        let ended = insist::<()>(&patient, &stop, |_| {
            stop.store(true, Ordering::Relaxed);
            Err(again("busy"))
        });
        assert_eq!(ended, Err("busy (stopped after 1 attempts)".into()));
    }
}
