//! Ctrl-C: the first asks for a tidy end, the second ends at once.

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::sync::{
    Arc, Once, OnceLock,
    atomic::{AtomicBool, Ordering},
};

/// Set by the signals; there once someone listens.
static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static SAID: Once = Once::new();

/// What a shell reports of a program that Ctrl-C ended: 128 and the signal's number.
const EXIT_CODE: i32 = 130;

/// From here on, Ctrl-C and a request to terminate no longer end the program at once: whoever works
/// through many steps has to ask [`asked`] between them. A terminal that is closed is another
/// matter, and left to the system (and to `nohup`).
pub(crate) fn listen() {
    ASKED.get_or_init(|| {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Where a signal cannot be caught it does what it always did, which is no reason to
            // refuse to work. The end at once comes first: it looks at the flag before it is set.
            let _ = flag::register_conditional_shutdown(signal, EXIT_CODE, Arc::clone(&asked));
            let _ = flag::register(signal, Arc::clone(&asked));
        }
        asked
    });
}

/// Whether someone asked for an end.
pub(crate) fn asked() -> bool {
    let asked = ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed));
    if asked {
        SAID.call_once(|| eprintln!("stopping after this step (Ctrl-C again ends at once)"));
    }
    asked
}
