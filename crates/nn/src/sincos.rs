//! Sine-cosine position tables.
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `opensora/models/layers/blocks.py`,
//! `get_2d_sincos_pos_embed` and `get_1d_sincos_pos_embed` (from MAE). Tables are computed in f64
//! on the host and cast to f32.

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Returns `[positions, dim]`, `[sin | cos]` with frequencies `10000^(-i / (dim/2))`.
fn axis_table(positions: &[f64], dim: usize) -> Vec<f32> {
    let half = dim / 2;
    let omega: Vec<f64> =
        (0..half).map(|i| 1.0 / 10_000f64.powf(i as f64 / (dim as f64 / 2.0))).collect();
    let mut table = Vec::with_capacity(positions.len() * dim);
    for &position in positions {
        table.extend(omega.iter().map(|w| (position * w).sin() as f32));
        table.extend(omega.iter().map(|w| (position * w).cos() as f32));
    }
    table
}

fn upload<const D: usize>(
    table: Vec<f32>,
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    let table = Tensor::from_data(TensorData::new(table, shape), (device, DType::F32));
    if dtype == DType::F32 { table } else { table.cast(dtype) }
}

/// Returns the table of temporal positions `frame / time_scale`, `[frames, dim]`.
pub fn temporal(
    frames: usize,
    dim: usize,
    time_scale: f64,
    dtype: DType,
    device: &Device,
) -> Tensor<2> {
    let positions: Vec<f64> = (0..frames).map(|frame| frame as f64 / time_scale).collect();
    upload(axis_table(&positions, dim), [frames, dim], dtype, device)
}

/// Returns the table of spatial positions of a grid of `height x width` tokens, `[height * width, dim]`,
/// row-major.
///
/// The first half of the channels encodes the **column**, the second half the row ("w goes first" in the
/// reference). With `base_size`, as in PixArt but not in STDiT, positions are also multiplied by `base_size
/// / size` of their axis.
pub fn spatial(
    [height, width]: [usize; 2],
    dim: usize,
    space_scale: f64,
    base_size: Option<usize>,
    dtype: DType,
    device: &Device,
) -> Tensor<2> {
    // The reference holds these positions in f32.
    let positions = |size: usize| -> Vec<f64> {
        let factor = base_size.map(|base| (base as f64 / size as f64) as f32);
        (0..size)
            .map(|i| {
                let position = i as f32 / space_scale as f32;
                factor.map_or(position, |factor| position * factor) as f64
            })
            .collect()
    };
    let half = dim / 2;
    let columns = upload(axis_table(&positions(width), half), [1, width, half], dtype, device);
    let rows = upload(axis_table(&positions(height), half), [height, 1, half], dtype, device);
    // [1, W, C/2] and [H, 1, C/2] -> [H, W, C] -> [H*W, C]
    let grid = [height, width, half];
    Tensor::cat(vec![columns.expand(grid), rows.expand(grid)], 2).reshape([height * width, dim])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_half_of_the_channels_is_the_column() {
        let device = Device::flex();
        let table = spatial([2, 3], 8, 0.5, None, DType::F32, &device);
        assert_eq!(table.dims(), [6, 8]);
        let rows: Vec<Vec<f32>> =
            table.into_data().try_to_vec::<f32>().unwrap().chunks(8).map(<[f32]>::to_vec).collect();
        // Token 4 is row 1, column 1: position 1 / 0.5 = 2 on both axes.
        let want = [2f64.sin(), 0.02f64.sin(), 2f64.cos(), 0.02f64.cos()].map(|v| v as f32);
        assert_eq!(rows[4], [want, want].concat());
        // Token 2 is row 0, column 2: the row half is that of position 0.
        assert_eq!(rows[2][4..], [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(rows[2][0], 4f64.sin() as f32);
    }

    #[test]
    fn positions_are_relative_to_a_base_size() {
        let device = Device::flex();
        let table = spatial([2, 4], 4, 2.0, Some(8), DType::F32, &device);
        let values = table.into_data().try_to_vec::<f32>().unwrap();
        // Token 7 is row 1, column 3: positions 3 / 2 * 8 / 4 and 1 / 2 * 8 / 2.
        let want = [3f64.sin(), 3f64.cos(), 2f64.sin(), 2f64.cos()].map(|v| v as f32);
        assert_eq!(values[28..], want);
        let half = spatial([2, 4], 4, 2.0, Some(8), DType::BF16, &device);
        assert_eq!(half.dtype(), DType::BF16);
    }

    #[test]
    fn temporal_positions_are_divided_by_the_scale() {
        let device = Device::flex();
        let table = temporal(3, 4, 2.0 / 3.0, DType::F32, &device);
        let values = table.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(values[4], 1.5f64.sin() as f32);
        assert_eq!(values[8], 3f64.sin() as f32);
    }
}
