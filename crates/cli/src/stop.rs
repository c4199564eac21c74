//! Signals: the first one stops the work after its current step, the second one ends the program at once.

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

/// Number of the signal that was received, or 0; set up by [`listen`].
static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
static SAID: Once = Once::new();

/// Offset between the number of a signal and the exit code that shells report for it.
const SHELL_OFFSET: i32 = 128;

/// A subcommand that was stopped by a signal.
#[derive(Debug, thiserror::Error)]
#[error("stopped as asked: {0}")]
pub(crate) struct Stopped(
    /// Completed work, and how to resume.
    pub(crate) String,
);

/// Catches SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal): the first one no longer ends the program,
/// and loops have to check [`asked`] between their steps. SIGHUP stays ignored if the program was started
/// with it ignored, as by `nohup`.
pub(crate) fn listen() {
    SIGNAL.get_or_init(|| {
        let number = Arc::new(AtomicUsize::new(0));
        let asked = Arc::new(AtomicBool::new(false));
        for signal in signals() {
            // Errors are ignored: a signal without a handler keeps its default action.
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

/// Returns true if a signal was received; the first call that does prints a message.
pub(crate) fn asked() -> bool {
    let asked = exit_code().is_some();
    if asked {
        SAID.call_once(|| {
            output::message("stopping after this step (the same signal again ends at once)");
        });
    }
    asked
}

/// Returns an error if a signal was received; called between two clips.
pub(crate) fn check() -> anyhow::Result<()> {
    match asked() {
        true => Err(Stopped("complete clips are kept".into()).into()),
        false => Ok(()),
    }
}

/// Returns the error of a run, or [`Stopped`] if a signal interrupted its sampler.
pub(crate) fn or_error(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(PipelineError::Sample(SampleError::Interrupted { completed, total })) if asked() => {
            Stopped(format!("{completed} of {total} steps were sampled")).into()
        }
        _ => error,
    }
}

/// Returns true for errors of sampling that all ranks of a program have: the library makes them agree.
pub(crate) fn have_all_ranks(error: &anyhow::Error) -> bool {
    error.is::<Stopped>()
        || matches!(
            error.downcast_ref(),
            Some(
                PipelineError::Sample(SampleError::Interrupted { .. })
                    | PipelineError::DecodingStopped { .. }
                    | PipelineError::NonFinite { .. }
                    | PipelineError::NonFiniteLatents { .. }
            )
        )
}

/// Returns `Break` if a signal was received, for observers.
pub(crate) fn flow() -> ControlFlow<()> {
    if asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Returns the exit code for the signal that was received, as shells report it: 130 for SIGINT, 143 for
/// SIGTERM, 129 for SIGHUP. Returns `None` if there was no signal.
pub(crate) fn exit_code() -> Option<u8> {
    let signal = SIGNAL.get().map_or(0, |number| number.load(Ordering::Relaxed));
    match signal {
        0 => None,
        signal => u8::try_from(SHELL_OFFSET as usize + signal).ok(),
    }
}
