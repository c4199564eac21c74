//! Weights that are not finite.

use crate::{Checkpoint, CheckpointError, import::read_float};
use burn::tensor::FloatDType;

impl Checkpoint {
    /// The keys of all float tensors that hold NaN or infinite values in `dtype`: as in the file, or
    /// because `dtype` is too small for them (f16 ends at 65504).
    ///
    /// Every tensor is read, which takes as long as loading the model: ask when a result is not finite,
    /// to name the weights that it comes from.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be read.
    pub fn non_finite(&self, dtype: FloatDType) -> Result<Vec<String>, CheckpointError> {
        let mut found = Vec::new();
        for (key, entry) in self.tensors() {
            if !entry.dtype().is_some_and(|dtype| dtype.is_float()) {
                continue;
            }
            let data = read_float(self, key, dtype)?;
            if data.iter::<f32>().any(|value| !value.is_finite()) {
                found.push(key.clone());
            }
        }
        Ok(found)
    }
}
