//! Copies tensors from devices to the host; no other code of `opensora` does.
//!
//! On burn's GPU backends (CubeCL: cuda, rocm, metal, vulkan, wgpu) `Tensor::into_data` returns before
//! the copy is made. burn-cubecl 0.22.1 copies when the bytes are first accessed, and an in-place
//! operation may have changed the device's buffer by then (`docs/upstream/lazy-reads.md`). [`read`]
//! copies at once.
//!
//! A read also waits until the device has done all work before it. [`waits`] counts these waits, so that
//! tests can show that the loops of samplers and of training do not wait at every step.

use crate::device::is_host;
use burn::tensor::{Device, ExecutionError, Tensor, TensorData, kind::Basic};
use std::sync::atomic::{AtomicU64, Ordering};

/// A device that failed to compute or to return values.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// An operation failed: too little memory, or a kernel that the driver rejected. The device may
    /// still be usable.
    #[error("{device}: {}", one_line(source.reason()))]
    Failed {
        /// Name of the device as in `--device`.
        device: String,
        /// burn's error.
        source: ExecutionError,
    },
    /// The device is lost: every operation fails until the process is started again.
    #[error(
        "{device} is lost and stays so until the program is started again: {}",
        one_line(source.reason())
    )]
    Lost {
        /// Name of the device as in `--device`.
        device: String,
        /// burn's error.
        source: ExecutionError,
    },
    /// The values could not be copied to the host.
    #[error("{device}: cannot copy values to the host: {}", one_line(reason))]
    Copy {
        /// Name of the device as in `--device`.
        device: String,
        /// Reason that the backend gives.
        reason: String,
    },
}

impl ReadError {
    /// Returns the backend's message on one line, without the device's name.
    pub fn reason(&self) -> String {
        match self {
            Self::Failed { source, .. } | Self::Lost { source, .. } => one_line(source.reason()),
            Self::Copy { reason, .. } => one_line(reason),
        }
    }
}

/// Number of waits for a device since the process started.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// Copies the values of `tensor` to the host, at once.
///
/// On flex, whose tensors lie in host memory, values that nothing else holds are moved, not copied.
///
/// # Errors
/// Returns an error if work that the values depend on failed, or the device is lost.
pub fn read<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> Result<TensorData, ReadError> {
    let device = tensor.device();
    if !is_host(&device) {
        WAITS.fetch_add(1, Ordering::Relaxed);
    }
    let data = tensor.try_into_data().map_err(|source| failed(&device, source))?;
    // A lazy copy is made here, or fails here.
    match data.bytes().read(Default::default()) {
        Ok(_) => Ok(data),
        Err(error) => Err(ReadError::Copy { device: name(&device), reason: error.to_string() }),
    }
}

/// Copies the values of `tensor` to the host as `f64`, from any element type.
///
/// # Errors
/// Returns an error if [`read`] does.
pub fn read_f64<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> Result<Vec<f64>, ReadError> {
    Ok(read(tensor)?.iter::<f64>().collect())
}

/// Waits until the device has done all work submitted to it.
///
/// # Errors
/// Returns an error if an operation failed, or the device is lost.
pub fn wait(device: &Device) -> Result<(), ReadError> {
    if !is_host(device) {
        WAITS.fetch_add(1, Ordering::Relaxed);
    }
    device.sync().map_err(|source| failed(device, source))
}

/// Returns how often the process has waited for a device, in [`read`] or [`wait`]. Tensors in host
/// memory are read without waiting.
pub fn waits() -> u64 {
    WAITS.load(Ordering::Relaxed)
}

fn failed(device: &Device, source: ExecutionError) -> ReadError {
    let device = name(device);
    if source.is_device_poisoned() {
        ReadError::Lost { device, source }
    } else {
        ReadError::Failed { device, source }
    }
}

fn name(device: &Device) -> String {
    // A device under autodiff has the name of the one it wraps.
    crate::device::name(&device.clone().inner()).unwrap_or_else(|| format!("{device:?}"))
}

/// Joins the lines of a driver's message: errors of `opensora` have one line.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_and_tell_a_lost_device_from_a_failed_operation() {
        let device = Device::flex();
        let lost = failed(&device, ExecutionError::device_poisoned("illegal\n  address"));
        assert!(matches!(lost, ReadError::Lost { .. }));
        let text = lost.to_string();
        assert_eq!(
            text,
            "flex is lost and stays so until the program is started again: illegal address"
        );
        let refused = failed(&device, ExecutionError::with_context("out of\nmemory"));
        assert!(matches!(refused, ReadError::Failed { .. }));
        assert_eq!(refused.to_string(), "flex: out of memory");
    }

    #[test]
    fn values_are_read_as_f64() {
        let device = Device::flex();
        let tensor = Tensor::<1>::from_data([1.0f32, 2.0], &device);
        assert_eq!(read_f64(tensor).unwrap(), [1.0, 2.0]);
        wait(&device).unwrap();
    }
}
