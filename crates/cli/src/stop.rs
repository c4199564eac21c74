//! Signals: the first asks for a tidy end, the second ends the program at once.

use crate::output;
use opensora::{PipelineError, diffusion::SampleError};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    ops::ControlFlow,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// The number of the signal that asked for an end, else 0; set up by [`listen`].
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
static SAID: Once = Once::new();

/// What a shell adds to the number of a signal that ended a program.
const SHELL_OFFSET: i32 = 128;

/// A subcommand that ended early because a signal asked for it.
#[derive(Debug, thiserror::Error)]
#[error("stopped as asked: {0}")]
pub(crate) struct Stopped(
    /// What was done, and how to resume.
    pub(crate) String,
);

/// From here on, SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) no longer end the program
/// at once: loops have to check [`asked`] between their steps. A SIGHUP that the program was started
/// to ignore, as by `nohup`, stays ignored.
pub(crate) fn listen() {
    SIGNAL.get_or_init(|| {
        let number = Arc::new(AtomicUsize::new(0));
        let asked = Arc::new(AtomicBool::new(false));
        for signal in signals() {
            // A signal that cannot be caught keeps its effect, which is no reason to refuse to work.
            // The shutdown is registered first: it checks the flag before the flag is set.
            let code = SHELL_OFFSET + signal;
            let _ = flag::register_conditional_shutdown(signal, code, Arc::clone(&asked));
            let _ = flag::register(signal, Arc::clone(&asked));
            let _ = flag::register_usize(signal, Arc::clone(&number), signal as usize);
        }
        number
    });
}

#[cfg(unix)]
fn signals() -> Vec<i32> {
    let mut signals = vec![SIGINT, SIGTERM];
    if !is_ignored(signal_hook::consts::SIGHUP) {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

#[cfg(not(unix))]
fn signals() -> Vec<i32> {
    vec![SIGINT, SIGTERM]
}

/// Returns true if the program was started with the signal ignored.
#[cfg(unix)]
#[allow(unsafe_code, reason = "a call of the C library")]
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, sigaction only fills in the current one, for which zeroes are a
    // valid value as well.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Returns true if a signal has asked for an end, and says so the first time.
pub(crate) fn asked() -> bool {
    let asked = exit_code().is_some();
    if asked {
        SAID.call_once(|| {
            output::message("stopping after this step (the same signal again ends at once)");
        });
    }
    asked
}

/// Fails if a signal has asked for an end, between two clips.
pub(crate) fn check() -> anyhow::Result<()> {
    match asked() {
        true => Err(Stopped("clips that are complete are kept".into()).into()),
        false => Ok(()),
    }
}

/// Returns the error of a run; if a signal interrupted its sampler, it says so.
pub(crate) fn or_error(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(PipelineError::Sample(SampleError::Interrupted { completed, total })) if asked() => {
            Stopped(format!("{completed} of {total} steps were sampled")).into()
        }
        _ => error,
    }
}

/// Returns what an observer answers: to break where a signal has asked for an end.
pub(crate) fn flow() -> ControlFlow<()> {
    if asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Returns the exit code of a program that a signal asked to end: 130 for SIGINT, 143 for SIGTERM,
/// 129 for SIGHUP, as shells report them; `None` while no signal has come.
pub(crate) fn exit_code() -> Option<u8> {
    let signal = SIGNAL.get().map_or(0, |number| number.load(Ordering::Relaxed));
    match signal {
        0 => None,
        signal => u8::try_from(SHELL_OFFSET as usize + signal).ok(),
    }
}
