//! Decoded tensors to pixels.

use crate::{
    nn::read::{ReadError, read},
    video::{Frames, FramesError},
};
use burn::tensor::Tensor;

/// Why a decoded tensor gave no pixels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToFramesError {
    /// The device failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// The tensor has not the shape of a clip, or is larger than clips can be.
    #[error(transparent)]
    Frames(#[from] FramesError),
}

/// Clips `[B, 3, T, H, W]` about [-1, 1] to bytes, one [`Frames`] each, with the reference's
/// rounding.
///
/// # Errors
/// Returns an error if the tensor has not three channels, a size is beyond what [`Frames`] can hold, or
/// the device fails.
pub fn to_frames(decoded: Tensor<5>) -> Result<Vec<Frames>, ToFramesError> {
    let [_, channels, frames, height, width] = decoded.dims();
    let values: Vec<f32> = read(decoded)?.iter().collect();
    let clip = channels * frames * height * width;
    values
        .chunks(clip.max(1))
        .map(|values| Ok(Frames::from_signed(values, [channels, frames, height, width])?))
        .collect()
}
