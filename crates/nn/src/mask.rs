//! Masks over prompt tokens.
//!
//! A mask comes from the tokenizer and stays on the host, so that tokens that are masked in every prompt
//! can be removed before any work is done on them. On a device a mask is an additive attention bias, since
//! burn's boolean masks differ in meaning between backends.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// A mask over `[B, L]` prompt tokens: true keeps a token, false masks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    rows: Vec<Vec<bool>>,
    len: usize,
}

impl TokenMask {
    /// Returns a mask of these rows, or `None` if their lengths differ or there are no rows.
    pub fn new(rows: Vec<Vec<bool>>) -> Option<Self> {
        let len = rows.first()?.len();
        rows.iter().all(|row| row.len() == len).then_some(Self { rows, len })
    }

    /// Returns a mask of `batch` rows that keeps all `len` tokens.
    pub fn all(batch: usize, len: usize) -> Self {
        Self { rows: vec![vec![true; len]; batch], len }
    }

    /// Returns the number of rows, `B`.
    pub fn batch(&self) -> usize {
        self.rows.len()
    }

    /// Returns the number of tokens of a row, `L`.
    #[allow(clippy::len_without_is_empty, reason = "a mask is not a collection")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the rows.
    pub fn rows(&self) -> &[Vec<bool>] {
        &self.rows
    }

    /// Returns a mask of the rows `start..end`.
    ///
    /// # Panics
    /// Panics if `start` is above `end`, or `end` above the number of rows.
    pub fn select(&self, start: usize, end: usize) -> Self {
        Self { rows: self.rows[start..end].to_vec(), len: self.len }
    }

    /// Returns `batch` rows: all rows, repeated as by `torch.Tensor.repeat`. The reference passes `n` rows
    /// for the `2n` samples of guidance.
    ///
    /// # Panics
    /// Panics if `batch` is not a multiple of the number of rows.
    pub fn repeat_to(&self, batch: usize) -> Self {
        assert!(
            batch.is_multiple_of(self.batch()),
            "a mask of {} rows cannot be repeated to {batch}",
            self.batch()
        );
        let rows = self.rows.iter().cycle().take(batch).cloned().collect();
        Self { rows, len: self.len }
    }

    /// Removes trailing columns that are masked in every row; keeps at least one column.
    pub fn trim(&self) -> Self {
        let used = |row: &Vec<bool>| row.iter().rposition(|&keep| keep).map_or(0, |last| last + 1);
        let len = self.rows.iter().map(used).max().unwrap_or(0).max(self.len.min(1));
        let rows = self.rows.iter().map(|row| row[..len].to_vec()).collect();
        Self { rows, len }
    }

    /// Returns the additive attention bias `[B, 1, 1, L]`: 0 for kept tokens, and for masked tokens a large negative
    /// number, whose softmax weight beside a kept token is zero, or at most 1.6e-38 on flex, where `exp` is
    /// clamped at `exp(-87)`. Returns `None` if no token is masked.
    pub fn bias(&self, dtype: DType, device: &Device) -> Option<Tensor<4>> {
        if self.rows.iter().flatten().all(|&keep| keep) {
            return None;
        }
        // Finite, so that a fully masked row gives an average and not NaN. The largest f16 is 65504.
        let masked = if dtype == DType::F16 { -6.0e4 } else { -1.0e30 };
        let values: Vec<f32> =
            self.rows.iter().flatten().map(|&keep| if keep { 0.0 } else { masked }).collect();
        let data = TensorData::new(values, [self.batch(), 1, 1, self.len]);
        let bias = Tensor::<4>::from_data(data, (device, DType::F32));
        Some(if dtype == DType::F32 { bias } else { bias.cast(dtype) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&[u8]]) -> TokenMask {
        TokenMask::new(rows.iter().map(|r| r.iter().map(|&b| b == 1).collect()).collect()).unwrap()
    }

    #[test]
    fn rows_of_different_lengths_or_no_rows_are_rejected() {
        assert_eq!(TokenMask::new(vec![]), None);
        assert_eq!(TokenMask::new(vec![vec![true], vec![true, false]]), None);
    }

    #[test]
    fn a_mask_has_its_rows_and_their_length() {
        let three = mask(&[&[1, 0], &[1, 1], &[0, 1]]);
        assert_eq!((three.batch(), three.len()), (3, 2));
        assert_eq!(three.rows(), [[true, false], [true, true], [false, true]]);
        assert_eq!(three.select(1, 3), mask(&[&[1, 1], &[0, 1]]));
        let all = TokenMask::all(4, 5);
        assert_eq!((all.batch(), all.len()), (4, 5));
        assert_eq!(all.rows(), [[true; 5]; 4]);
    }

    #[test]
    fn trimming_removes_only_trailing_columns_masked_in_every_row() {
        let holes = mask(&[&[1, 0, 1, 0, 0], &[0, 1, 0, 0, 0]]);
        assert_eq!(holes.trim(), mask(&[&[1, 0, 1], &[0, 1, 0]]));
        assert_eq!(mask(&[&[0, 0, 0]]).trim(), mask(&[&[0]]));
        assert_eq!(TokenMask::all(2, 3).trim(), TokenMask::all(2, 3));
    }

    #[test]
    fn rows_repeat_in_order() {
        let two = mask(&[&[1, 0], &[1, 1]]);
        assert_eq!(two.repeat_to(4), mask(&[&[1, 0], &[1, 1], &[1, 0], &[1, 1]]));
    }

    #[test]
    fn a_mask_that_keeps_all_tokens_has_no_bias() {
        let device = Device::flex();
        assert!(TokenMask::all(2, 3).bias(DType::F32, &device).is_none());
        let bias = mask(&[&[1, 0]]).bias(DType::F32, &device).unwrap();
        assert_eq!(bias.into_data().try_to_vec::<f32>().unwrap(), [0.0, -1.0e30]);
        // The smallest f16 is -65504.
        let bias = mask(&[&[1, 0], &[0, 1]]).bias(DType::F16, &device).unwrap();
        assert_eq!((bias.dims(), bias.dtype()), ([2, 1, 1, 2], DType::F16));
        let bias = bias.cast(burn::tensor::FloatDType::F32).into_data();
        assert_eq!(bias.try_to_vec::<f32>().unwrap(), [0.0, -6.0e4, -6.0e4, 0.0]);
    }
}
