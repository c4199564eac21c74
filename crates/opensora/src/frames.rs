//! Decoded tensors to pixels.

use crate::video::{Frames, FramesError};
use burn::tensor::Tensor;

/// Clips `[B, 3, T, H, W]` about [-1, 1] to bytes, one [`Frames`] each, with the reference's
/// rounding.
///
/// # Errors
/// Where the tensor has not three channels, or a size is beyond what [`Frames`] can hold.
///
/// # Panics
/// Where the device fails to hand its values over.
pub fn to_frames(decoded: Tensor<5>) -> Result<Vec<Frames>, FramesError> {
    let [_, channels, frames, height, width] = decoded.dims();
    let values = decoded.into_data().try_to_vec::<f32>().expect("decoded clips are f32");
    let clip = channels * frames * height * width;
    values
        .chunks(clip.max(1))
        .map(|values| Frames::from_signed(values, [channels, frames, height, width]))
        .collect()
}
