//! Trial runs, which check that a device computes correctly.
//!
//! A driver may crash on a kernel and end the whole process with a signal, which no library can catch.
//! So call [`probe`] in a separate process, for devices with a [`probe_reason`].

use crate::read::{ReadError, one_line, read};
use burn::tensor::{Device, Tensor, TensorData, activation, module, ops::ConvOptions};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Maximum error of a trial value, absolute up to 1 and relative above. Matrix units that round f32 to
/// f16 stay below it; a driver that misreads a kernel does not.
const TOLERANCE: f64 = 2e-2;

/// A device that failed a trial run.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The backend reports an error.
    #[error("{operation} failed")]
    Failed {
        /// Name of the operation.
        operation: &'static str,
        /// Error of the backend.
        source: ReadError,
    },
    /// The backend panicked: its driver does not start, or rejects a kernel.
    #[error("{operation} failed: {reason}")]
    Panicked {
        /// Name of the operation.
        operation: &'static str,
        /// Message of the panic, on one line.
        reason: String,
    },
    /// The device computes wrong numbers.
    #[error("{operation} gives wrong numbers: {found} at index {index}, expected {expected}")]
    Wrong {
        /// Name of the operation.
        operation: &'static str,
        /// Position of the first wrong value.
        index: usize,
        /// Value that the device computed.
        found: f32,
        /// Value that the host computed.
        expected: f64,
    },
}

/// Returns why a device needs a trial run in a separate process, or `None` if none is known to be
/// needed. Does not open the device.
///
/// With the feature `vulkan`, CubeCL compiles to SPIR-V on every Vulkan adapter, also for devices of
/// `wgpu`. The drivers that were seen to fail lack `VK_KHR_shader_untyped_pointers`, an extension of
/// 2025: lavapipe of Mesa 22.3 crashes, SwiftShader computes wrong numbers.
pub fn probe_reason(device: &Device) -> Option<&'static str> {
    #[cfg(feature = "vulkan")]
    {
        let adapter = super::adapters::find(device)?;
        (adapter.is_vulkan() && !adapter.has_untyped_pointers())
            .then_some("its driver lacks VK_KHR_shader_untyped_pointers")
    }
    #[cfg(not(feature = "vulkan"))]
    {
        let _ = device;
        None
    }
}

/// Computes one operation of each kind that the models use and compares the results with the host's.
///
/// # Errors
/// Returns an error if an operation fails or a number is wrong. A driver that crashes ends the process.
pub fn probe(device: &Device) -> Result<(), ProbeError> {
    TRIALS.iter().try_for_each(|trial| trial.run(device))
}

/// Runs the smallest kernel, so that a device that does not start gives an error before any other work.
///
/// # Errors
/// Returns an error if the device does not start, its kernels do not compile, or it computes wrong
/// numbers.
pub fn run_first_kernel(device: &Device) -> Result<(), ProbeError> {
    TRIALS[0].run(device)
}

/// The values that a device computed, and those expected.
type Computed = Result<(TensorData, Vec<f64>), ReadError>;

/// One operation of a trial run, with its name in errors.
struct Trial {
    operation: &'static str,
    run: fn(&Device) -> Computed,
}

const TRIALS: [Trial; 6] = [
    Trial { operation: "an element-wise kernel", run: element_wise },
    Trial { operation: "a sum", run: sum },
    Trial { operation: "a softmax", run: softmax },
    Trial { operation: "a matrix product", run: |device| product(device, 1, [70, 96, 132]) },
    Trial { operation: "a batch of matrix products", run: |device| product(device, 3, [256; 3]) },
    Trial { operation: "a convolution", run: convolution },
];

impl Trial {
    fn run(&self, device: &Device) -> Result<(), ProbeError> {
        let operation = self.operation;
        let run = || (self.run)(device).map(|(found, expected)| (host(&found), expected));
        let (found, expected) = catch_unwind(AssertUnwindSafe(run))
            .map_err(|panic| ProbeError::Panicked {
                operation,
                reason: one_line(message(panic.as_ref())),
            })?
            .map_err(|source| ProbeError::Failed { operation, source })?;
        let wrong = |(found, expected): (f32, f64)| {
            let error = (f64::from(found) - expected).abs();
            error.is_nan() || error > TOLERANCE * expected.abs().max(1.0)
        };
        let pairs = found.iter().copied().zip(expected.iter().copied());
        match pairs.enumerate().find(|(_, pair)| wrong(*pair)) {
            Some((index, (found, expected))) => {
                Err(ProbeError::Wrong { operation, index, found, expected })
            }
            None if found.len() != expected.len() => Err(ProbeError::Panicked {
                operation,
                reason: format!("{} values, expected {}", found.len(), expected.len()),
            }),
            None => Ok(()),
        }
    }
}

fn host(found: &TensorData) -> Vec<f32> {
    found.iter::<f32>().collect()
}

/// Returns values from -1 to 1 with a period of 23, which divides no tile size.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7 + seed * 5) % 23) as f32 / 11.0 - 1.0).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn element_wise(device: &Device) -> Computed {
    let x = values(1000, 0);
    let found = read(tensor(&x, [1000], device) * 2.0 + 1.0)?;
    Ok((found, x.iter().map(|&x| f64::from(x) * 2.0 + 1.0).collect()))
}

fn sum(device: &Device) -> Computed {
    let x = values(48 * 257, 1);
    let found = read(tensor(&x, [48, 257], device).sum_dim(1))?;
    let sum = |row: &[f32]| row.iter().map(|&x| f64::from(x)).sum();
    Ok((found, x.chunks(257).map(sum).collect()))
}

fn softmax(device: &Device) -> Computed {
    let x = values(12 * 65, 2);
    let found = read(activation::softmax(tensor(&x, [12, 65], device), 1))?;
    let expected = x.chunks(65).flat_map(|row| {
        let exponents: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
        let sum: f64 = exponents.iter().sum();
        exponents.into_iter().map(move |value| value / sum)
    });
    Ok((found, expected.collect()))
}

fn product(device: &Device, batch: usize, [m, k, n]: [usize; 3]) -> Computed {
    let (a, b) = (values(batch * m * k, 3), values(batch * k * n, 4));
    let found = read(tensor(&a, [batch, m, k], device).matmul(tensor(&b, [batch, k, n], device)))?;
    let mut expected = vec![0.0; batch * m * n];
    for (row, out) in expected.chunks_mut(n).enumerate() {
        let b = &b[row / m * k * n..];
        for (at, &a) in a[row * k..][..k].iter().enumerate() {
            for (out, &b) in out.iter_mut().zip(&b[at * n..]) {
                *out += f64::from(a) * f64::from(b);
            }
        }
    }
    Ok((found, expected))
}

/// Computes a 3x3 convolution with a border of zeros.
fn convolution(device: &Device) -> Computed {
    let [channels, filters, side] = [4, 6, 12];
    let (x, w) = (values(channels * side * side, 5), values(filters * channels * 9, 6));
    let found = read(module::conv2d(
        tensor(&x, [1, channels, side, side], device),
        tensor(&w, [filters, channels, 3, 3], device),
        None,
        ConvOptions::new([1, 1], [1, 1], [1, 1], 1),
    ))?;
    let pixel = |channel: usize, row: usize, column: usize| {
        // Shifted by one: the border's pixels are 0 and side + 1.
        let inside = (1..=side).contains(&row) && (1..=side).contains(&column);
        if inside { x[(channel * side + row - 1) * side + column - 1] } else { 0.0 }
    };
    let at = |filter: usize, row: usize, column: usize| -> f64 {
        let taps = (0..channels * 9).map(|tap| {
            let (channel, dy, dx) = (tap / 9, tap % 9 / 3, tap % 3);
            let weight = w[filter * channels * 9 + tap];
            f64::from(weight) * f64::from(pixel(channel, row + dy, column + dx))
        });
        taps.sum()
    };
    let area = side * side;
    let places = 0..filters * area;
    let expected = places.map(|i| at(i / area, i % area / side, i % side)).collect();
    Ok((found, expected))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device, read::BackendError};
    use burn::tensor::ExecutionError;
    use std::error::Error;

    #[test]
    fn values_have_a_period_of_23_and_depend_on_the_seed() {
        // 7 at + 5 seed, modulo 23, from 0 to 22.
        let expected = |steps: [u8; 4]| steps.map(|step| f32::from(step) / 11.0 - 1.0);
        assert_eq!(values(4, 0), expected([0, 7, 14, 21]));
        assert_eq!(values(4, 1), expected([5, 12, 19, 3]));
        assert_eq!(values(4, 2), expected([10, 17, 1, 8]));
        assert_eq!(values(46, 3)[..23], values(46, 3)[23..]);
    }

    #[test]
    fn devices_of_the_processor_need_no_trial_run() {
        assert_eq!(probe_reason(&Device::flex()), None);
    }

    #[test]
    fn every_device_of_this_build_computes_correctly() {
        for name in device::list().into_iter().flat_map(|backend| backend.devices) {
            let device = device::parse(&name).unwrap();
            if probe_reason(&device).is_none() {
                probe(&device).unwrap_or_else(|error| panic!("{name}: {error:?}"));
                run_first_kernel(&device).unwrap();
            }
        }
    }

    #[test]
    fn wrong_numbers_panics_and_missing_values_are_errors() {
        let device = Device::flex();
        let good = |_: &Device| Ok((TensorData::from([1.0f32, -20.0]), vec![1.0, -20.3]));
        let trial = |run| Trial { operation: "a trial", run };
        trial(good).run(&device).unwrap();
        let nan = |_: &Device| Ok((TensorData::from([1.0f32, f32::NAN]), vec![1.0, 0.0]));
        let error = trial(nan).run(&device).unwrap_err();
        assert!(matches!(error, ProbeError::Wrong { index: 1, .. }), "{error}");
        let short = |_: &Device| Ok((TensorData::from([1.0f32]), vec![1.0, 2.0]));
        assert!(trial(short).run(&device).is_err());
        let wrong = |_: &Device| Ok((TensorData::from([-20.0f32]), vec![-20.5]));
        let text = trial(wrong).run(&device).unwrap_err().to_string();
        assert_eq!(text, "a trial gives wrong numbers: -20 at index 0, expected -20.5");
        let failed = |device: &Device| {
            let source = BackendError(ExecutionError::with_context("no memory"));
            Err(ReadError::Failed { device: format!("{device:?}"), source })
        };
        let error = trial(failed).run(&device).unwrap_err();
        assert_eq!(error.to_string(), "a trial failed");
        let cause = error.source().and_then(Error::source).unwrap();
        assert_eq!(cause.to_string(), "no memory");
        let panics = |_: &Device| panic!("no driver");
        let text = trial(panics).run(&device).unwrap_err().to_string();
        assert_eq!(text, "a trial failed: no driver");
    }
}
