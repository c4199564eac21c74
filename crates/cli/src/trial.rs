//! Trial runs of a device before any other work.
//!
//! A device that does not start, or a driver that crashes on a kernel, is reported in one line at the start
//! instead of by a panic or a signal minutes later.

use crate::output;
use burn::tensor::Device;
use opensora::nn::device::{self, DeviceKind, ProbeError};
use std::{
    env, io,
    io::Read,
    panic,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The hidden subcommand that [`check`] runs in a separate process.
pub(crate) const SUBCOMMAND: &str = "probe-device";

/// Environment variable that skips trial runs in a separate process.
const SKIP: &str = "OPENSORA_NO_TRIAL";

/// Time limit of a trial run, which compiles kernels and, with `autotune`, tunes them.
const LIMIT: Duration = Duration::from_secs(180);

/// Maximum length of the message that is kept of a trial run, in bytes.
const MAX_SAID: u64 = 64 << 10;

/// A device that failed its trial run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrialError {
    /// The device does not start, or its driver rejects the first kernel.
    #[error("{device}: the first kernel failed")]
    FirstKernel {
        /// Name of the device.
        device: String,
        /// The error of the kernel.
        source: ProbeError,
    },
    /// The trial run in a separate process failed.
    #[error(
        "{device}: {failure} ({reason}): use a build with `--features wgpu` and without `vulkan`, whose \
         kernels are WGSL, or another device ({SKIP}=1 skips trial runs)"
    )]
    Process {
        /// Name of the device.
        device: String,
        /// Reason why the device needed a trial run.
        reason: &'static str,
        /// Failure of the trial run.
        failure: Failure,
    },
}

/// Failure of a trial run in a separate process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The process could not be started.
    #[error("the trial run did not start: {0}")]
    Start(#[source] io::Error),
    /// The process ended by a signal or with an unexpected code.
    #[error("the driver ended the trial run ({0})")]
    Crashed(String),
    /// The process reported an error.
    #[error("{0}")]
    Reported(String),
    /// The process exceeded the time limit.
    #[error("the trial run took more than {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Runs one kernel on the device, or a full trial run in a separate process if the driver may crash.
/// Prints a note if the device is a software driver, unless `quiet`.
///
/// # Errors
/// Returns an error if the device does not start or fails a trial run.
pub(crate) fn check(device: &Device, quiet: bool) -> Result<(), TrialError> {
    if !device::compiles_kernels(device) {
        return Ok(());
    }
    let name = || device::name(device).unwrap_or_else(|| format!("{device:?}"));
    if !quiet && device::kind(device) == DeviceKind::Software {
        output::message(format_args!(
            "note: {} is a software driver, for tests: flex computes on the processor as well, and far faster",
            name()
        ));
    }
    match device::probe_reason(device) {
        Some(reason) if env::var_os(SKIP).is_none() => in_child_process(&name())
            .map_err(|failure| TrialError::Process { device: name(), reason, failure }),
        _ => silently(|| device::run_first_kernel(device))
            .map_err(|source| TrialError::FirstKernel { device: name(), source }),
    }
}

/// Runs `opensora probe-device` in a separate process; returns an error if it fails, crashes or takes
/// longer than [`LIMIT`].
fn in_child_process(name: &str) -> Result<(), Failure> {
    let program = env::current_exe().map_err(Failure::Start)?;
    let mut command = Command::new(program);
    command.args([SUBCOMMAND, name]);
    watch(command, LIMIT)
}

/// Runs a command to its end, or kills it after `limit`.
fn watch(mut command: Command, limit: Duration) -> Result<(), Failure> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Failure::Start)?;
    // Read while the process runs: a full pipe would block it.
    let (sender, said) = mpsc::channel();
    if let Some(mut stderr) = child.stderr.take() {
        thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.by_ref().take(MAX_SAID).read_to_end(&mut said);
            let _ = sender.send(String::from_utf8_lossy(&said).into_owned());
            let _ = io::copy(&mut stderr, &mut io::sink());
        });
    }
    let began = Instant::now();
    let status = loop {
        let failure = match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < limit => {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            Ok(None) => Failure::TimedOut(limit),
            Err(error) => Failure::Start(error),
        };
        let _ = child.kill();
        let _ = child.wait();
        return Err(failure);
    };
    if status.success() {
        return Ok(());
    }
    // A process that the driver started may outlive the trial run and hold the pipe open.
    let said = said.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
    let error = said.lines().rev().find_map(|line| line.strip_prefix("error: "));
    Err(match error {
        Some(error) if status.code() == Some(1) => Failure::Reported(error.into()),
        _ => Failure::Crashed(end_of(status)),
    })
}

/// Describes how a process ended.
fn end_of(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let name = match signal {
            libc::SIGILL => ", SIGILL",
            libc::SIGABRT => ", SIGABRT",
            libc::SIGBUS => ", SIGBUS",
            libc::SIGFPE => ", SIGFPE",
            libc::SIGKILL => ", SIGKILL",
            libc::SIGSEGV => ", SIGSEGV",
            _ => "",
        };
        return format!("signal {signal}{name}");
    }
    status.to_string()
}

/// Calls `work` with panic messages suppressed: `work` returns its panics as errors.
pub(crate) fn silently<T>(work: impl FnOnce() -> T) -> T {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let result = work();
    panic::set_hook(hook);
    result
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<(), Failure> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        watch(command, limit)
    }

    #[test]
    fn a_crash_an_error_and_a_hang_are_told_apart() {
        let minute = Duration::from_secs(60);
        shell("exit 0", minute).unwrap();
        let crash = shell("kill -SEGV $$", minute).unwrap_err();
        assert_eq!(crash.to_string(), "the driver ended the trial run (signal 11, SIGSEGV)");
        let error = shell("echo 'error: a sum gives wrong numbers' >&2; exit 1", minute);
        assert_eq!(error.unwrap_err().to_string(), "a sum gives wrong numbers");
        let code = shell("exit 3", minute).unwrap_err();
        assert!(matches!(code, Failure::Crashed(_)), "{code}");
        let hang = shell("exec sleep 60", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(hang, Failure::TimedOut(_)), "{hang}");
        let missing = watch(Command::new("/no/such/program"), minute).unwrap_err();
        assert!(matches!(missing, Failure::Start(_)), "{missing}");
    }

    #[test]
    fn a_trial_run_that_says_much_ends() {
        let much = "head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 0";
        shell(much, Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn the_error_names_wgpu_and_is_one_line() {
        let error = TrialError::Process {
            device: "vulkan:0".into(),
            reason: "its driver lacks VK_KHR_shader_untyped_pointers",
            failure: Failure::Crashed("signal 11, SIGSEGV".into()),
        };
        let text = error.to_string();
        assert!(text.starts_with("vulkan:0: the driver ended the trial run (signal 11"), "{text}");
        assert!(text.contains("--features wgpu") && !text.contains('\n'), "{text}");
    }
}
