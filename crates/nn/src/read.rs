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
    /// An operation failed: too little memory, or a kernel that the driver rejected. Later operations may
    /// succeed.
    #[error("{device}: an operation failed")]
    Failed {
        /// Name of the device as in `--device`.
        device: String,
        /// Error of the backend.
        source: BackendError,
    },
    /// The device is lost: every operation fails until the process is started again.
    #[error("{device} is lost until the program is started again")]
    Lost {
        /// Name of the device as in `--device`.
        device: String,
        /// Error of the backend.
        source: BackendError,
    },
    /// The values could not be copied to the host.
    #[error("{device}: cannot copy values to the host: {reason}")]
    Copy {
        /// Name of the device as in `--device`.
        device: String,
        /// Reason that the backend gives.
        reason: String,
    },
}

/// An error of a backend or its driver, on one line.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", one_line(.0.reason()))]
pub struct BackendError(pub ExecutionError);

/// Number of waits for a device since the process started.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// Copies the values of `tensor` to the host and waits for the copy.
///
/// On flex, whose tensors are in host memory, values are moved, not copied, if no other tensor
/// shares the buffer.
///
/// # Errors
/// Returns an error if work that the values depend on failed, the device is lost, or the copy failed.
pub fn read<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> Result<TensorData, ReadError> {
    let device = tensor.device();
    if !is_host(&device) {
        WAITS.fetch_add(1, Ordering::Relaxed);
    }
    let data = tensor.try_into_data().map_err(|source| failed(&device, source))?;
    // A lazy copy is made here, or fails here.
    match data.bytes().read(Default::default()) {
        Ok(_) => Ok(data),
        Err(error) => Err(ReadError::Copy { device: name(&device), reason: one_line(error) }),
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
    let (lost, source) = (source.is_device_poisoned(), BackendError(source));
    if lost { ReadError::Lost { device, source } } else { ReadError::Failed { device, source } }
}

/// Returns the message of a backend or driver on one line.
pub(crate) fn one_line(message: impl std::fmt::Display) -> String {
    message.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn name(device: &Device) -> String {
    // A device under autodiff has the name of the one it wraps.
    crate::device::name(&device.clone().inner()).unwrap_or_else(|| format!("{device:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn a_lost_device_is_distinguished_from_a_failed_operation() {
        let device = Device::flex();
        let lost = failed(&device, ExecutionError::device_poisoned("illegal\n  address"));
        assert!(matches!(lost, ReadError::Lost { .. }));
        assert_eq!(lost.to_string(), "flex is lost until the program is started again");
        assert_eq!(lost.source().unwrap().to_string(), "illegal address");
        let failed = failed(&device, ExecutionError::with_context("out of memory"));
        assert!(matches!(failed, ReadError::Failed { .. }));
        assert_eq!(failed.to_string(), "flex: an operation failed");
        assert_eq!(failed.source().unwrap().to_string(), "out of memory");
    }

    #[test]
    fn values_are_read_as_f64() {
        let device = Device::flex();
        let tensor = Tensor::<1>::from_data([1.0f32, 2.0], &device);
        assert_eq!(read_f64(tensor).unwrap(), [1.0, 2.0]);
        wait(&device).unwrap();
    }
}
