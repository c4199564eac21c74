//! 3x3 convolutions as 16 matrix products over tiles (Winograd).
//!
//! Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015
//! (arXiv:1509.09308), F(2x2, 3x3): a tile of 2x2 outputs takes 16 products for a pair of channels, the
//! definition 36. All constants are 1 and 1/2, so the rounding errors are about those of the definition;
//! larger tiles would save more products and lose accuracy.

use super::{contiguous, dims, elementwise::vectorized, into_values, tensor, values};
use burn::backend::{Flex, flex::FlexTensor, ops::FloatTensorOps};
use opensora_gemm::{MatRef, multiply, profitable};
use rayon::prelude::*;
use std::ops::Range;

/// Products of one tile for one pair of channels: a transformed tile is 4x4.
const PRODUCTS: usize = 16;

/// Number of tiles per batch of matrix products, rounded up to whole rows of tiles (fewer in small images and in the
/// last strip): enough for a fast matrix product, few enough for its operands to stay in cache.
const TILES: usize = 1024;

/// Returns the convolution of `x` `[B, I, H, W]` with `weight` `[O, I, 3, 3]` at stride 1 and padding 1, plus
/// `bias` `[O]`: `[B, O, H, W]`. H and W are even.
pub(super) fn conv3x3(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
    let [batch, inputs, height, width] = dims(&x);
    let (x, bias) = (contiguous(x), contiguous(bias));
    let kernels = Kernels::new(weight);
    let outputs = kernels.outputs;
    let (pixels, tiles_wide) = (height * width, width / 2);
    let strip = TILES.div_ceil(tiles_wide).min(height / 2);
    let mut y = vec![0.0; batch * outputs * pixels];
    // Reused from strip to strip: fresh memory costs a page fault every 4 KiB.
    let mut workspace = Vec::new();
    for (image, y) in values(&x).chunks(inputs * pixels).zip(y.chunks_mut(outputs * pixels)) {
        for first in (0..height / 2).step_by(strip) {
            let tile_rows = first..(first + strip).min(height / 2);
            let tiles = tile_rows.len() * tiles_wide;
            let size = inputs * PRODUCTS * tiles;
            if workspace.len() != size {
                workspace = vec![0.0; size];
            }
            let transformed = workspace.par_chunks_mut(PRODUCTS * tiles);
            transformed.zip(image.par_chunks(pixels)).for_each(|(tiles, plane)| {
                let tile_rows = tile_rows.clone();
                vectorized(
                    #[inline(always)]
                    || transform_input(tiles, plane, width, tile_rows),
                );
            });
            let products = kernels.multiply(&mut workspace, tiles);
            let products = products.each();
            y.par_chunks_mut(pixels).zip(values(&bias)).enumerate().for_each(
                |(output, (plane, bias))| {
                    let products = products.map(|x| &x[output * tiles..][..tiles]);
                    let plane = &mut plane[2 * width * tile_rows.start..2 * width * tile_rows.end];
                    vectorized(
                        #[inline(always)]
                        || transform_output(plane, width, products, *bias),
                    );
                },
            );
        }
    }
    tensor(y, [batch, outputs, height, width])
}

/// Transformed kernels: `G g Gᵀ` of every kernel.
struct Kernels {
    /// `[O, 16, I]`
    tensor: FlexTensor,
    outputs: usize,
    inputs: usize,
}

impl Kernels {
    /// Transforms `[O, I, 3, 3]`.
    fn new(weight: FlexTensor) -> Self {
        let [outputs, inputs, ..] = dims::<4>(&weight);
        let weight = contiguous(weight);
        let mut kernels = vec![0.0; outputs * PRODUCTS * inputs];
        let of_outputs = kernels.par_chunks_mut(PRODUCTS * inputs);
        of_outputs.zip(values(&weight).par_chunks(9 * inputs)).for_each(|(kernels, weights)| {
            // G = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1]
            let g = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
            for (input, w) in weights.as_chunks::<9>().0.iter().enumerate() {
                // Down each column, then along each of the four rows.
                let columns = [0, 1, 2].map(|x| g([w[x], w[3 + x], w[6 + x]]));
                for i in 0..4 {
                    let row = g(columns.map(|column| column[i]));
                    for (j, value) in row.into_iter().enumerate() {
                        kernels[(4 * i + j) * inputs + input] = value;
                    }
                }
            }
        });
        Self { tensor: tensor(kernels, [outputs, PRODUCTS, inputs]), outputs, inputs }
    }

    /// Returns the products with transformed tiles `[I, 16, count]`.
    fn multiply(&self, tiles: &mut Vec<f32>, count: usize) -> Products {
        let (outputs, inputs) = (self.outputs, self.inputs);
        if profitable(inputs, outputs) {
            let product = |index: usize| {
                let kernels = MatRef::with_strides(
                    &values(&self.tensor)[index * inputs..],
                    [outputs, inputs],
                    [PRODUCTS * inputs, 1],
                );
                let tiles = MatRef::with_strides(
                    &tiles[index * count..],
                    [inputs, count],
                    [PRODUCTS * count, 1],
                );
                multiply(kernels, tiles, |_, _| ())
            };
            return Products::Separate((0..PRODUCTS).into_par_iter().map(product).collect());
        }
        // [16, O, I] x [16, I, count] -> [16, O, count]
        let tensor = tensor(std::mem::take(tiles), [inputs, PRODUCTS, count]);
        let products = Flex::float_matmul(self.tensor.transpose(0, 1), tensor.transpose(0, 1));
        *tiles = into_values(tensor);
        Products::Together(contiguous(products))
    }
}

/// Products of transformed kernels and tiles, `[16, O, tiles]`.
enum Products {
    Separate(Vec<Vec<f32>>),
    Together(FlexTensor),
}

impl Products {
    /// Returns the 16 products, `[O, tiles]` each.
    fn each(&self) -> [&[f32]; PRODUCTS] {
        match self {
            Self::Separate(products) => std::array::from_fn(|index| products[index].as_slice()),
            Self::Together(products) => {
                let products = values(products);
                let size = products.len() / PRODUCTS;
                std::array::from_fn(|index| &products[index * size..][..size])
            }
        }
    }
}

/// Writes `Bᵀ d B` of the tiles in `tile_rows` of one plane to `tiles` `[16, tile rows, width / 2]`.
#[inline(always)]
fn transform_input(tiles: &mut [f32], plane: &[f32], width: usize, tile_rows: Range<usize>) {
    let tiles_wide = width / 2;
    let count = tile_rows.len() * tiles_wide;
    // A combination of rows, between two columns of padding.
    let mut combined = vec![0.0f32; width + 2];
    let border = vec![0.0f32; width];
    for (at, tile_row) in tile_rows.enumerate() {
        // Rows 2r - 1 to 2r + 2 of the plane; those outside are zero.
        let row = |i: usize| {
            (2 * tile_row + i)
                .checked_sub(1)
                .and_then(|y| plane.get(y * width..(y + 1) * width))
                .unwrap_or(&border)
        };
        let [d0, d1, d2, d3] = [0, 1, 2, 3].map(row);
        // Bᵀ = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]
        for (i, (a, b, sign)) in
            [(d0, d2, -1.0), (d1, d2, 1.0), (d2, d1, -1.0), (d1, d3, -1.0)].into_iter().enumerate()
        {
            for ((c, &a), &b) in combined[1..=width].iter_mut().zip(a).zip(b) {
                *c = a + sign * b;
            }
            let pairs = combined.as_chunks::<2>().0;
            let start = 4 * i * count + at * tiles_wide;
            let (v0, rest) = tiles[start..].split_at_mut(count);
            let (v1, rest) = rest.split_at_mut(count);
            let (v2, v3) = rest.split_at_mut(count);
            let (v0, v1) = (&mut v0[..tiles_wide], &mut v1[..tiles_wide]);
            let (v2, v3) = (&mut v2[..tiles_wide], &mut v3[..tiles_wide]);
            let (left, right) = (&pairs[..tiles_wide], &pairs[1..=tiles_wide]);
            for x in 0..tiles_wide {
                let ([e0, e1], [e2, e3]) = (left[x], right[x]);
                v0[x] = e0 - e2;
                v1[x] = e1 + e2;
                v2[x] = e2 - e1;
                v3[x] = e1 - e3;
            }
        }
    }
}

/// Writes `Aᵀ m A + bias` of all tiles of `plane`, given their products m.
#[inline(always)]
fn transform_output(plane: &mut [f32], width: usize, products: [&[f32]; PRODUCTS], bias: f32) {
    let tiles_wide = width / 2;
    for (at, two_rows) in plane.chunks_mut(2 * width).enumerate() {
        let m = products.map(|m| &m[at * tiles_wide..][..tiles_wide]);
        let (upper, lower) = two_rows.split_at_mut(width);
        let upper = upper.as_chunks_mut::<2>().0;
        let lower = lower.as_chunks_mut::<2>().0;
        let whole = tiles_wide / LANES * LANES;
        for x in (0..whole).step_by(LANES) {
            output_tiles::<LANES>(&m, x, bias, upper, lower);
        }
        for x in whole..tiles_wide {
            output_tiles::<1>(&m, x, bias, upper, lower);
        }
    }
}

/// Tiles whose outputs are computed at a time.
const LANES: usize = 16;

/// Writes the outputs of `N` tiles from tile `x` of a row on.
#[inline(always)]
fn output_tiles<const N: usize>(
    m: &[&[f32]; PRODUCTS],
    x: usize,
    bias: f32,
    upper: &mut [[f32; 2]],
    lower: &mut [[f32; 2]],
) {
    // By value, since the compiler cannot prove that so many slices do not overlap the outputs.
    let mut values = [[0.0; N]; PRODUCTS];
    for (values, m) in values.iter_mut().zip(m) {
        values.copy_from_slice(&m[x..][..N]);
    }
    let m = values;
    let [mut above, mut below] = [[[0.0; 2]; N]; 2];
    for i in 0..N {
        // Aᵀ = [1 1 1 0; 0 1 -1 -1], down each column, then along the two rows.
        let down = |j: usize| m[j][i] + m[4 + j][i] + m[8 + j][i];
        let [a, b, c, d] = [down(0), down(1), down(2), down(3)];
        above[i] = [a + b + c + bias, b - c - d + bias];
        let down = |j: usize| m[4 + j][i] - m[8 + j][i] - m[12 + j][i];
        let [a, b, c, d] = [down(0), down(1), down(2), down(3)];
        below[i] = [a + b + c + bias, b - c - d + bias];
    }
    upper[x..][..N].copy_from_slice(&above);
    lower[x..][..N].copy_from_slice(&below);
}
