//! Retries with exponentially growing waits, for requests to servers.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Number of attempts of a request, and the waits between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Number of attempts; 0 counts as 1.
    pub attempts: u32,
    /// Wait before the second attempt. It doubles with each further attempt.
    pub first_wait: Duration,
    /// Maximum wait between two attempts, also if the server asks for a longer one.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    /// Returns the defaults: five attempts, with waits of 1 s, 2 s, 4 s and 8 s.
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// Error of an attempt: transient or permanent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure<E> {
    /// A later attempt may succeed.
    Transient {
        /// The error.
        error: E,
        /// The wait that the server asks for (`Retry-After`).
        wait: Option<Duration>,
    },
    /// No later attempt will succeed.
    Permanent(E),
}

impl<E> Failure<E> {
    /// Returns a transient failure without a wait that the server asks for.
    pub fn transient(error: E) -> Self {
        Self::Transient { error, wait: None }
    }
}

/// Error of the last attempt, and the number of attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GaveUp<E> {
    /// The error.
    pub error: E,
    /// Number of attempts that were made.
    pub attempts: u32,
    /// True if a stop ended the retries.
    pub stopped: bool,
}

impl<E> From<E> for GaveUp<E> {
    /// Wraps the error of a single attempt.
    fn from(error: E) -> Self {
        Self { error, attempts: 1, stopped: false }
    }
}

impl<E: fmt::Display> fmt::Display for GaveUp<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.attempts, self.stopped) {
            (count, true) => write!(f, "stopped after {count} attempts: {}", self.error),
            (1, false) => self.error.fmt(f),
            (count, false) => write!(f, "after {count} attempts: {}", self.error),
        }
    }
}

impl<E: std::error::Error> std::error::Error for GaveUp<E> {
    // The message is that of `error`, so that the next cause is its cause.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Calls `attempt` with the number of the attempt, from 0, until it succeeds, fails permanently, the
/// policy's attempts are used up, or `stop` is set, which also ends a wait.
///
/// # Errors
/// Returns the error of the last attempt.
pub fn retry<T, E>(
    policy: &RetryPolicy,
    stop: &AtomicBool,
    mut attempt: impl FnMut(u32) -> Result<T, Failure<E>>,
) -> Result<T, GaveUp<E>> {
    let mut attempts = 0;
    loop {
        let (error, asked) = match attempt(attempts) {
            Ok(done) => return Ok(done),
            Err(Failure::Permanent(error)) => (error, None),
            Err(Failure::Transient { error, wait }) => (error, Some(wait)),
        };
        attempts += 1;
        let Some(asked) = asked.filter(|_| attempts < policy.attempts) else {
            return Err(GaveUp { error, attempts, stopped: false });
        };
        let own = policy.first_wait.saturating_mul(1 << (attempts - 1).min(20));
        pause(asked.unwrap_or(own).min(policy.longest_wait), stop);
        if stop.load(Ordering::Relaxed) {
            return Err(GaveUp { error, attempts, stopped: true });
        }
    }
}

/// Sleeps for `time`, or until at most 50 ms after `stop` is set.
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

    const QUICK: RetryPolicy = RetryPolicy {
        attempts: 3,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(2),
    };

    fn busy(text: &str) -> Failure<String> {
        Failure::Transient { error: text.into(), wait: Some(Duration::from_secs(3600)) }
    }

    #[test]
    fn retries_end_after_success_permanent_failure_or_the_last_attempt() {
        let stop = AtomicBool::new(false);
        let second =
            retry(&QUICK, &stop, |number| if number == 1 { Ok(7) } else { Err(busy("busy")) });
        assert_eq!(second, Ok(7));
        let never = retry::<(), _>(&QUICK, &stop, |number| Err(busy(&format!("busy {number}"))));
        assert_eq!(never.unwrap_err().to_string(), "after 3 attempts: busy 2");
        let wrong = retry::<(), _>(&QUICK, &stop, |_| Err(Failure::Permanent("no such file")));
        assert_eq!(wrong.unwrap_err().to_string(), "no such file");
    }

    #[test]
    fn a_stop_ends_a_wait() {
        let stop = AtomicBool::new(false);
        let patient = RetryPolicy { longest_wait: Duration::from_secs(3600), ..QUICK };
        let ended = retry::<(), _>(&patient, &stop, |_| {
            stop.store(true, Ordering::Relaxed);
            Err(busy("busy"))
        });
        assert_eq!(ended.unwrap_err().to_string(), "stopped after 1 attempts: busy");
    }
}
