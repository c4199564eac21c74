//! Search for weights that are not finite.

use crate::{Checkpoint, CheckpointError, import::read_float};
use burn::tensor::FloatDType;

impl Checkpoint {
    /// Returns the keys of all float tensors with NaN or infinite values in `dtype`. Values can be
    /// so in the file or overflow in `dtype` (f16 ends at 65504).
    ///
    /// Reads every tensor, which takes as long as loading the model. It is meant for finding the cause of
    /// results that are not finite.
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
