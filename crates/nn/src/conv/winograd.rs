//! Over pictures in this process's memory: 3x3 convolutions as sixteen matrix products over tiles, and
//! upsampling.
//!
//! Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015
//! (arXiv:1509.09308), F(2x2, 3x3): a tile of 2x2 outputs takes 16 products a pair of channels where
//! the definition takes 36. All its constants are 1 and 1/2, so it rounds about as the definition
//! does; larger tiles would save more and lose digits.

use crate::host::{Values, vectorized};
use burn::{
    module::Param,
    nn::{PaddingConfig2d, conv::Conv2d},
    tensor::Tensor,
};
use opensora_gemm::{MatRef, multiply, profitable};
use rayon::prelude::*;

/// Products of one tile for one pair of channels: a transformed tile is 4x4.
const PRODUCTS: usize = 16;

/// Tiles that are in work at a time, at least: enough for a full-speed matrix product, few
/// enough for its operands to stay near the processor.
const TILES: usize = 1024;

/// Below this many input channels the transforms cost more than the products they save.
const MIN_INPUTS: usize = 32;

/// Doubles height and width; `x` back where it cannot be taken.
#[allow(clippy::result_large_err, reason = "the tensor goes on either way")]
pub(super) fn upsample_nearest(x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    let [batch, channels, height, width] = x.dims();
    let x = Values::take(x)?;
    let mut y = Values::zeros([batch, channels, 2 * height, 2 * width], x.device());
    let rows = y.get_mut().par_chunks_mut(4 * width).zip(x.get().par_chunks(width));
    rows.for_each(|(two, row)| {
        let (upper, lower) = two.split_at_mut(2 * width);
        for (pair, &x) in upper.as_chunks_mut::<2>().0.iter_mut().zip(row) {
            *pair = [x, x];
        }
        lower.copy_from_slice(upper);
    });
    Ok(y.put())
}

/// `conv` of `x`; `x` back where this form does not apply.
#[allow(clippy::result_large_err, reason = "the tensor goes on either way")]
pub(super) fn conv3x3(conv: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    let (weight, bias) = (conv.weight.val(), conv.bias.as_ref().map(Param::val));
    let [batch, inputs, height, width] = x.dims();
    let [outputs, _, kernel_height, kernel_width] = weight.dims();
    let applies = [kernel_height, kernel_width] == [3, 3]
        && conv.stride == [1, 1]
        && conv.dilation == [1, 1]
        && conv.groups == 1
        && matches!(conv.padding, PaddingConfig2d::Explicit(1, 1, 1, 1))
        && inputs >= MIN_INPUTS
        && height.is_multiple_of(2)
        && width.is_multiple_of(2)
        && Values::can_take(&weight)
        && bias.as_ref().is_none_or(Values::can_take);
    if !applies {
        return Err(x);
    }
    let x = Values::take(x)?;
    let bias = bias.and_then(|bias| Values::take(bias).ok());
    let kernels = Kernels::of(weight);

    let mut y = Values::zeros([batch, outputs, height, width], x.device());
    let (pixels, tiles_wide) = (height * width, width / 2);
    let strip = TILES.div_ceil(tiles_wide).min(height / 2);
    // Kept from strip to strip: fresh memory costs a page fault every 4 KiB.
    let mut spare: Option<Values<3>> = None;
    for b in 0..batch {
        let image = &x.get()[b * inputs * pixels..][..inputs * pixels];
        for first in (0..height / 2).step_by(strip) {
            let rows = first..(first + strip).min(height / 2);
            let tiles = rows.len() * tiles_wide;
            let shape = [inputs, PRODUCTS, tiles];
            let mut transformed = match spare.take() {
                Some(kept) if kept.get().len() == shape.iter().product::<usize>() => kept,
                _ => Values::zeros(shape, x.device()),
            };
            transformed
                .get_mut()
                .par_chunks_mut(PRODUCTS * tiles)
                .zip(image.par_chunks(pixels))
                .for_each(|(tiles, plane)| {
                    let rows = rows.clone();
                    vectorized(
                        #[inline(always)]
                        || transform_input(tiles, plane, width, rows),
                    );
                });
            let products = kernels.products(transformed, &mut spare);
            let products = products.of_tiles();

            let image = &mut y.get_mut()[b * outputs * pixels..][..outputs * pixels];
            image.par_chunks_mut(pixels).enumerate().for_each(|(output, plane)| {
                let bias = bias.as_ref().map_or(0.0, |bias| bias.get()[output]);
                let products = products.map(|of| &of[output * tiles..][..tiles]);
                let plane = &mut plane[2 * width * rows.start..2 * width * rows.end];
                vectorized(
                    #[inline(always)]
                    || transform_output(plane, width, products, bias),
                );
            });
        }
    }
    Ok(y.put())
}

/// `G g Gᵀ` of every kernel.
enum Kernels {
    /// `[C_out, 16, C_in]`, multiplied by products of our own.
    ByOurs(Values<3>),
    /// A view `[16, C_out, C_in]`, multiplied by burn.
    ByBurn(Tensor<3>),
}

impl Kernels {
    /// Of `[C_out, C_in, 3, 3]`.
    fn of(weight: Tensor<4>) -> Self {
        let [outputs, inputs, ..] = weight.dims();
        let Ok(weight) = Values::take(weight) else { unreachable!("asked before") };
        let mut kernels = Values::zeros([outputs, PRODUCTS, inputs], weight.device());
        let of_output = kernels.get_mut().par_chunks_mut(PRODUCTS * inputs);
        of_output.zip(weight.get().par_chunks(9 * inputs)).for_each(|(kernels, weights)| {
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
        if profitable(inputs, outputs) {
            Self::ByOurs(kernels)
        } else {
            Self::ByBurn(kernels.put().swap_dims(0, 1))
        }
    }

    /// The products with transformed tiles `[C_in, 16, tiles]`, which are left in `spare`.
    fn products(&self, tiles: Values<3>, spare: &mut Option<Values<3>>) -> Products {
        match self {
            Self::ByOurs(kernels) => {
                let ([outputs, _, inputs], [_, _, count]) = (kernels.dims(), tiles.dims());
                let product = |k: usize| {
                    let kernels = MatRef::with_strides(
                        &kernels.get()[k * inputs..],
                        [outputs, inputs],
                        [PRODUCTS * inputs, 1],
                    );
                    let tiles = MatRef::with_strides(
                        &tiles.get()[k * count..],
                        [inputs, count],
                        [PRODUCTS * count, 1],
                    );
                    multiply(kernels, tiles, |_, _| ())
                };
                let products = (0..PRODUCTS).into_par_iter().map(product).collect();
                let products = Products::Apart(products);
                *spare = Some(tiles);
                products
            }
            Self::ByBurn(kernels) => {
                let tiles = tiles.put();
                // [16, C_out, C_in] x [16, C_in, tiles] -> [16, C_out, tiles]
                let products = kernels.clone().matmul(tiles.clone().swap_dims(0, 1));
                *spare = Values::take(tiles).ok();
                let Ok(products) = Values::take(products) else { unreachable!("of values") };
                Products::Together(products)
            }
        }
    }
}

/// `[16, C_out, tiles]`
enum Products {
    Apart(Vec<Vec<f32>>),
    Together(Values<3>),
}

impl Products {
    /// Each `[C_out, tiles]`.
    fn of_tiles(&self) -> [&[f32]; PRODUCTS] {
        match self {
            Self::Apart(products) => std::array::from_fn(|k| products[k].as_slice()),
            Self::Together(products) => {
                let products = products.get();
                let each = products.len() / PRODUCTS;
                std::array::from_fn(|k| &products[k * each..][..each])
            }
        }
    }
}

/// `Bᵀ d B` of the tiles in tile rows `rows` of one plane: `[16, rows, width / 2]`.
#[inline(always)]
fn transform_input(tiles: &mut [f32], plane: &[f32], width: usize, rows: std::ops::Range<usize>) {
    let tiles_wide = width / 2;
    let count = rows.len() * tiles_wide;
    // Between two columns of padding, for every product of a tile's columns.
    let mut combined = vec![0.0f32; width + 2];
    let border = vec![0.0f32; width];
    for (at, tile_row) in rows.enumerate() {
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

/// `Aᵀ m A + bias` of the tiles with these products.
#[inline(always)]
fn transform_output(plane: &mut [f32], width: usize, products: [&[f32]; PRODUCTS], bias: f32) {
    let tiles_wide = width / 2;
    for (at, two_rows) in plane.chunks_mut(2 * width).enumerate() {
        let m = products.map(|m| &m[at * tiles_wide..][..tiles_wide]);
        let (upper, lower) = two_rows.split_at_mut(width);
        let upper = upper.as_chunks_mut::<2>().0;
        let lower = lower.as_chunks_mut::<2>().0;
        let whole = tiles_wide / SIDE_BY_SIDE * SIDE_BY_SIDE;
        for x in (0..whole).step_by(SIDE_BY_SIDE) {
            output_tiles::<SIDE_BY_SIDE>(&m, x, bias, upper, lower);
        }
        for x in whole..tiles_wide {
            output_tiles::<1>(&m, x, bias, upper, lower);
        }
    }
}

/// Tiles whose outputs are computed side by side.
const SIDE_BY_SIDE: usize = 16;

/// The outputs of `N` tiles from tile `x` of a row on.
#[inline(always)]
fn output_tiles<const N: usize>(
    m: &[&[f32]; PRODUCTS],
    x: usize,
    bias: f32,
    upper: &mut [[f32; 2]],
    lower: &mut [[f32; 2]],
) {
    // By value: of so many slices a compiler cannot tell whether they overlap the outputs.
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
