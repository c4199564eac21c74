//! Search for weights that are not finite.

use crate::{Checkpoint, CheckpointError, import::read_float};
use burn::tensor::{DType, FloatDType};

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
            if !all_finite(data.as_bytes(), data.dtype()) {
                found.push(key.clone());
            }
        }
        Ok(found)
    }
}

/// Returns true if no number is infinite or NaN, that is, has all bits of its exponent set. Returns true for types
/// that are not float.
pub(crate) fn all_finite(bytes: &[u8], dtype: DType) -> bool {
    let halves = |exponent: u16| {
        let (numbers, _) = bytes.as_chunks::<2>();
        numbers.iter().all(|&number| u16::from_ne_bytes(number) & exponent != exponent)
    };
    match dtype {
        DType::F16 => halves(0x7c00),
        DType::BF16 => halves(0x7f80),
        DType::F32 | DType::Flex32 => {
            let (numbers, _) = bytes.as_chunks::<4>();
            numbers.iter().all(|&number| f32::from_ne_bytes(number).is_finite())
        }
        DType::F64 => {
            let (numbers, _) = bytes.as_chunks::<8>();
            numbers.iter().all(|&number| f64::from_ne_bytes(number).is_finite())
        }
        _ => true,
    }
}
