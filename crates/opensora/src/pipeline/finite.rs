//! Finds the cause of outputs that are NaN or infinite.

use super::error::NonFiniteCause;
use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    nn::{
        dtype,
        read::{ReadError, read},
    },
};
use burn::tensor::{FloatDType, Tensor};
use std::path::Path;

/// Steps between two reads of the guard on devices that are not the host, where a read waits for all work.
pub(super) const READ_EVERY: usize = 8;

/// Returns true if no value is NaN or infinite; waits for the device.
///
/// # Errors
/// Returns an error if the device fails.
pub(super) fn all_finite<const D: usize>(values: &Tensor<D>) -> Result<bool, ReadError> {
    Ok(read(values.clone().is_finite().all())?.iter::<bool>().all(|finite| finite))
}

/// Returns the cause: weights of the file that are not finite, or else settings that are known to make outputs overflow. `unwrap` selects the tensors of the model in the file.
pub(super) fn cause(
    weights: &Path,
    unwrap: impl FnOnce(Checkpoint) -> Result<Checkpoint, CheckpointError>,
    dtype: FloatDType,
    guidance_scale: Option<f64>,
) -> NonFiniteCause {
    // An unreadable file is not the cause: the model was loaded from it.
    let file = Checkpoint::open(weights).and_then(unwrap);
    let bad = file.and_then(|file| file.non_finite(dtype)).unwrap_or_default();
    if let Some(key) = bad.first() {
        let others = match bad.len() {
            1 => String::new(),
            count => format!(" (and {} others)", count - 1),
        };
        return NonFiniteCause::Weights(format!(
            "{}: tensor '{key}'{others} holds NaN or infinity in {}",
            weights.display(),
            dtype::name(dtype)
        ));
    }
    let mut causes = Vec::new();
    if dtype == FloatDType::F16 {
        causes.push("an overflow in f16 (try bf16 or f32)".to_string());
    }
    if let Some(scale) = guidance_scale.filter(|&scale| scale.abs() > 1.0) {
        causes.push(format!("a guidance scale of {scale}"));
    }
    NonFiniteCause::Computation(match causes.is_empty() {
        true => "weights of another model, or inputs out of range".into(),
        false => format!("likely {}", causes.join(" or ")),
    })
}
