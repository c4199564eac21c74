//! Waits for other processes that download the same file.

use std::{
    io::{self, ErrorKind},
    thread,
    time::{Duration, Instant},
};

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Returns the error of a lock that another process holds. With this text as its reason, a failed row is processed
/// again by the next run ([`is_busy`](crate::step::is_busy)).
pub(crate) fn busy() -> io::Error {
    io::Error::new(ErrorKind::WouldBlock, "another process is downloading it")
}

/// Calls `take` until it takes a lock, fails otherwise, or `patience` has passed. The lock of a killed process is free.
///
/// # Errors
/// Returns the last error of `take`.
pub(crate) fn wait<T>(
    patience: Duration,
    mut take: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match take() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && started.elapsed() < patience => {
                thread::sleep(PAUSE.min(patience));
            }
            taken => return taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_released_in_time_is_taken() {
        let mut tries = 0;
        let taken = wait(Duration::from_secs(60), || {
            tries += 1;
            if tries < 3 { Err(busy()) } else { Ok("lock") }
        });
        assert_eq!((taken.unwrap(), tries), ("lock", 3));
        let never = wait::<()>(Duration::from_millis(20), || Err(busy())).unwrap_err();
        assert_eq!(never.to_string(), "another process is downloading it");
        assert!(crate::step::is_busy(&never.to_string()));
        // Other errors are not waited for.
        let mut tries = 0;
        let failed = wait::<()>(Duration::from_secs(60), || {
            tries += 1;
            Err(ErrorKind::NotFound.into())
        });
        assert_eq!((failed.unwrap_err().kind(), tries), (ErrorKind::NotFound, 1));
    }
}
