//! Converts tensors to pixels and back.

use crate::{
    nn::read::{ReadError, read},
    video::{Frames, FramesError},
};
use burn::tensor::{Device, Tensor, TensorData};

/// Error for a tensor that cannot be converted to frames.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToFramesError {
    /// The device failed or is lost.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// The tensor does not have the shape of a clip, or is larger than [`Frames`] supports.
    #[error(transparent)]
    Frames(#[from] FramesError),
}

/// Converts clips `[B, 3, T, H, W]` in about [-1, 1] to bytes, one [`Frames`] per clip, with the reference's
/// rounding.
///
/// # Errors
/// Returns an error if the tensor does not have three channels, is larger than [`Frames`] supports, or the
/// device fails.
pub fn to_frames(decoded: Tensor<5>) -> Result<Vec<Frames>, ToFramesError> {
    let [_, channels, frames, height, width] = decoded.dims();
    let values: Vec<f32> = read(decoded)?.iter().collect();
    let clip = channels * frames * height * width;
    values
        .chunks(clip.max(1))
        .map(|values| Ok(Frames::from_signed(values, [channels, frames, height, width])?))
        .collect()
}

/// Converts a clip to `[1, 3, T, H, W]` in f32, as the VAE encodes it: -1 for the byte 0, 1 for 255.
/// [`to_frames`] returns the same bytes.
pub fn from_frames(clip: &Frames, device: &Device) -> Tensor<5> {
    let shape = [clip.len(), clip.height(), clip.width(), 3];
    let values: Vec<f32> = clip.data().iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    let pixels = Tensor::<4>::from_data(TensorData::new(values, shape), device);
    pixels.permute([3, 0, 1, 2]).unsqueeze() // [T, H, W, 3] -> [1, 3, T, H, W]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_round_trip_through_a_tensor() {
        let shape = [2, 8, 16];
        let data: Vec<u8> = (0..2 * 8 * 16 * 3).map(|index| (index % 256) as u8).collect();
        let clip = Frames::from_rgb(data, shape).unwrap();
        let tensor = from_frames(&clip, &Device::flex());
        assert_eq!(tensor.dims(), [1, 3, 2, 8, 16]);
        let values = tensor.clone().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!((values[0], values[1]), (-1.0, 3.0 / 127.5 - 1.0));
        assert_eq!(to_frames(tensor).unwrap(), [clip]);
    }
}
