//! What made a model's output NaN or infinite.

use crate::{
    checkpoint::Checkpoint,
    nn::{
        dtype::Dtype,
        read::{ReadError, read},
    },
};
use burn::tensor::Tensor;
use std::path::Path;

/// Steps between two reads of the guard on devices where a read waits for the device.
pub(super) const READ_EVERY: usize = 8;

/// Returns true if no value is NaN or infinite; waits for the device.
///
/// # Errors
/// Returns an error if the device fails.
pub(super) fn all_finite<const D: usize>(values: &Tensor<D>) -> Result<bool, ReadError> {
    Ok(read(values.clone().is_finite().all())?.iter::<bool>().all(|finite| finite))
}

/// Returns the cause as text: the first weight of the file that is not finite, or else what usually
/// makes outputs overflow.
pub(super) fn cause(weights: &Path, dtype: Dtype, guidance_scale: Option<f64>) -> String {
    if let Some(key) = first_bad_weight(weights) {
        return format!("{}: tensor '{key}' holds NaN or infinity", weights.display());
    }
    let mut causes = Vec::new();
    if dtype == Dtype::F16 {
        causes.push("an overflow in f16 (try bf16 or f32)".to_string());
    }
    if let Some(scale) = guidance_scale.filter(|&scale| scale.abs() > 1.0) {
        causes.push(format!("a guidance scale of {scale}"));
    }
    if causes.is_empty() {
        return "all weights are finite: weights of another model, or inputs out of range".into();
    }
    format!("all weights are finite: likely {}", causes.join(" or "))
}

/// Reads the file once more; `None` if every tensor is finite or the file cannot be read.
fn first_bad_weight(weights: &Path) -> Option<String> {
    let checkpoint = Checkpoint::open(weights).ok()?;
    checkpoint.tensors().iter().find_map(|(key, tensor)| {
        let data = tensor.read(key).ok()?;
        data.dtype().is_float().then_some(())?;
        data.iter::<f32>().any(|value| !value.is_finite()).then(|| key.clone())
    })
}
