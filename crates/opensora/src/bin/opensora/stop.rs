//! Ctrl-C: the first asks for a tidy end, the second ends at once.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// What a shell reports of a program that Ctrl-C ended: 128 and the signal's number.
const EXIT_CODE: i32 = 130;

/// From here on, Ctrl-C (and a request to terminate, where the system has one) no longer ends the
/// program at once: whoever works through many steps has to ask [`asked`] between them.
pub(crate) fn listen() {
    // Without a handler Ctrl-C does what it always did, which is no reason to refuse to work.
    let _ = ctrlc::try_set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_CODE);
        }
        eprintln!("stopping after this step (Ctrl-C again ends at once)");
    });
}

/// Whether someone asked for an end.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
