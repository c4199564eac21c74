//! Latents as small images, by a linear map from latent channels to red, green and blue.
//!
//! A latent cell stands for a square of pixels, and its channels nearly determine the mean colour of the
//! square. The map is fitted to the VAE in use by least squares: the VAE encodes an image of 64 colours
//! once.
//!
//! States of the sampler are noisy. What is shown are the clean latents that the model predicts in a step.

use crate::engine::Preview;
use burn::tensor::Tensor;
use opensora::nn::read::{ReadError, read};
use opensora_video::{Frames, FramesError};

/// Most frames of a preview.
const MAX_FRAMES: usize = 8;

/// Most pixels of a preview's side.
const MAX_SIDE: usize = 64;

/// Levels of red, green and blue in the image that the map is fitted to.
const LEVELS: usize = 4;

/// Cells of latents in a side of one colour's square.
const CELLS: usize = 4;

/// Error of a preview.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreviewError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] ReadError),
    /// The image to fit the map to cannot be made.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// The VAE's latents do not depend on colours.
    #[error("latents do not determine colours")]
    Singular,
    /// The PNG cannot be encoded.
    #[error(transparent)]
    Png(#[from] png::EncodingError),
}

/// Linear map from latent channels to colours.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentsToRgb {
    /// Red, green and blue in [-1, 1] for each channel, and last the constant.
    factors: Vec<[f64; 3]>,
}

impl LatentsToRgb {
    /// Returns the calibration image: 64 colours (four levels of red, green and blue), each in a square of
    /// 4 x 4 latent cells, for a VAE with `factor` x `factor` pixels per latent cell.
    ///
    /// # Errors
    /// Returns an error if the image would be too large.
    pub fn calibration_image(factor: usize) -> Result<Frames, FramesError> {
        let square = CELLS * factor;
        let squares = (LEVELS * LEVELS * LEVELS).isqrt();
        let side = squares * square;
        let mut data = Vec::with_capacity(3 * side * side);
        for row in 0..side {
            for column in 0..side {
                data.extend(colour((row / square) * squares + column / square));
            }
        }
        Frames::from_rgb(data, [1, side, side])
    }

    /// Fits the map to the latents `[1, C, 1, h, w]` of the [calibration image](Self::calibration_image).
    ///
    /// # Errors
    /// Returns an error if the device fails or the latents do not determine colours.
    pub fn fit(latents: Tensor<5>) -> Result<Self, PreviewError> {
        let [_, channels, _, height, width] = latents.dims();
        let values: Vec<f64> = read(latents)?.iter().collect();
        let cells = height * width;
        let squares = width / CELLS;
        let samples = (0..cells).map(|cell| {
            let (row, column) = (cell / width, cell % width);
            let square = (row / CELLS) * squares + column / CELLS;
            let inputs: Vec<f64> =
                (0..channels).map(|channel| values[channel * cells + cell]).chain([1.0]).collect();
            (inputs, colour(square).map(|byte| f64::from(byte) / 127.5 - 1.0))
        });
        let factors = least_squares(channels + 1, samples).ok_or(PreviewError::Singular)?;
        Ok(Self { factors })
    }

    /// Returns the preview of clean latents `[1, C, T, h, w]` after step `step` (from 1).
    ///
    /// # Errors
    /// Returns an error if the device fails.
    pub fn preview(&self, latents: &Tensor<5>, step: usize) -> Result<Preview, PreviewError> {
        let [_, channels, frames, height, width] = latents.dims();
        let values: Vec<f32> = read(latents.clone())?.iter().collect();
        let stride = height.max(width).div_ceil(MAX_SIDE);
        let shown = frames.min(MAX_FRAMES);
        let mut rgb = Vec::new();
        for frame in (0..shown).map(|index| index * frames / shown) {
            for row in (0..height).step_by(stride) {
                for column in (0..width).step_by(stride) {
                    let value = |channel: usize| {
                        let at = ((channel * frames + frame) * height + row) * width + column;
                        f64::from(values.get(at).copied().unwrap_or_default())
                    };
                    rgb.extend(self.colour((0..channels).map(value)));
                }
            }
        }
        let (height, width) = (height.div_ceil(stride), width.div_ceil(stride));
        let png = encode(&rgb, shown * height, width)?;
        Ok(Preview::new(step, [shown, height, width], png))
    }

    fn colour(&self, channels: impl Iterator<Item = f64>) -> [u8; 3] {
        let mut sum = [0.0; 3];
        for (value, factors) in channels.chain([1.0]).zip(&self.factors) {
            for (sum, factor) in sum.iter_mut().zip(factors) {
                *sum += value * factor;
            }
        }
        sum.map(|value| (127.5 * (value + 1.0)).round().clamp(0.0, 255.0) as u8)
    }
}

/// Returns the colour of a square of the calibration image.
fn colour(square: usize) -> [u8; 3] {
    let level =
        |digit: usize| (square / LEVELS.pow(digit as u32) % LEVELS * 255 / (LEVELS - 1)) as u8;
    [level(0), level(1), level(2)]
}

fn encode(rgb: &[u8], height: usize, width: usize) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(bytes)
}

/// Solves the normal equations of `inputs * factors = outputs`; `None` if they have no unique solution.
fn least_squares(
    unknowns: usize,
    samples: impl Iterator<Item = (Vec<f64>, [f64; 3])>,
) -> Option<Vec<[f64; 3]>> {
    // Rows of the normal matrix with the three right-hand sides behind.
    let mut rows = vec![vec![0.0; unknowns + 3]; unknowns];
    for (inputs, outputs) in samples {
        for (row, &input) in rows.iter_mut().zip(&inputs) {
            for (sum, &value) in row.iter_mut().zip(inputs.iter().chain(&outputs)) {
                *sum += input * value;
            }
        }
    }
    for pivot in 0..unknowns {
        let largest = (pivot..unknowns)
            .max_by(|&a, &b| rows[a][pivot].abs().total_cmp(&rows[b][pivot].abs()))?;
        rows.swap(pivot, largest);
        let head = rows[pivot][pivot];
        if head.abs() < 1e-9 || !head.is_finite() {
            return None;
        }
        rows[pivot].iter_mut().for_each(|value| *value /= head);
        let pivot_row = rows[pivot].clone();
        for (index, row) in rows.iter_mut().enumerate().filter(|(index, _)| *index != pivot) {
            debug_assert_ne!(index, pivot);
            let head = row[pivot];
            row.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= head * pivot);
        }
    }
    rows.into_iter().map(|row| row[unknowns..].try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// Latents whose channels are linear in the colours of the calibration image.
    fn latents(channels: usize) -> Tensor<5> {
        let side = 8 * CELLS;
        let image = LatentsToRgb::calibration_image(1).unwrap();
        assert_eq!((image.width(), image.height()), (side, side));
        let mut values = Vec::new();
        for channel in 0..channels {
            for pixel in image.data().chunks(3) {
                let [r, g, b] = [0, 1, 2].map(|index| f32::from(pixel[index]) / 255.0);
                values.push(match channel {
                    0 => r + g,
                    1 => g - 2.0 * b,
                    2 => 3.0 * b + 0.5,
                    _ => 1.5,
                });
            }
        }
        let shape = [1, channels, 1, side, side];
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn pixels(preview: &Preview) -> Vec<u8> {
        let mut reader = png::Decoder::new(std::io::Cursor::new(&preview.png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    }

    #[test]
    fn a_linear_vae_is_inverted() {
        let map = LatentsToRgb::fit(latents(3)).unwrap();
        let preview = map.preview(&latents(3), 4).unwrap();
        assert_eq!((preview.step, preview.frames, preview.height, preview.width), (4, 1, 32, 32));
        assert_eq!(pixels(&preview), LatentsToRgb::calibration_image(1).unwrap().data());
    }

    #[test]
    fn constant_channels_are_an_error() {
        assert!(matches!(LatentsToRgb::fit(latents(4)), Err(PreviewError::Singular)));
    }

    #[test]
    fn large_videos_have_small_previews() {
        let map = LatentsToRgb::fit(latents(3)).unwrap();
        let latents = Tensor::<5>::zeros([1, 3, 20, 100, 130], &Device::flex());
        let preview = map.preview(&latents, 1).unwrap();
        assert_eq!((preview.frames, preview.height, preview.width), (8, 34, 44));
        assert_eq!(pixels(&preview).len(), 3 * 8 * 34 * 44);
    }
}
