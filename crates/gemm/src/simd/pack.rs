//! Packs operands into panels.
//!
//! Where the elements of a row are contiguous, tiles of 8 x 8 elements are transposed in registers. Packing element by
//! element took 20 % of the time of T5's products with 120 rows (AMD Zen 3).

#![allow(
    clippy::manual_memcpy,
    clippy::needless_range_loop,
    reason = "indexed loops, as the module above explains"
)]

use crate::{MatRef, vectorized};

/// Elements along k that are packed at a time: a cache line.
const PACK_RUN: usize = 16;

/// Rows, and elements along k, of a tile.
const TILE: usize = 8;

type Tile = [[f32; TILE]; TILE];

/// Packs an operand's rows into panels of `width` rows, `[panel][k][row]`; rows beyond the operand are
/// zero.
pub(super) fn pack(operand: MatRef, width: usize, packed: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return pack_with(
            operand,
            width,
            packed,
            #[inline(always)]
            |tile| transpose_avx(simd, tile),
        );
    }
    pack_with(operand, width, packed, transpose);
}

fn pack_with(
    operand: MatRef,
    width: usize,
    packed: &mut [f32],
    transpose: impl Fn(Tile) -> Tile + Copy,
) {
    // As constants, so that loops have a fixed length.
    vectorized(
        #[inline(always)]
        || match width {
            6 => pack_by::<6>(operand, packed, transpose),
            12 => pack_by::<12>(operand, packed, transpose),
            16 => pack_by::<16>(operand, packed, transpose),
            32 => pack_by::<32>(operand, packed, transpose),
            _ => unreachable!("no panels of {width} rows"),
        },
    );
}

#[inline(always)]
fn pack_by<const W: usize>(
    operand: MatRef,
    packed: &mut [f32],
    transpose: impl Fn(Tile) -> Tile + Copy,
) {
    let MatRef { values, rows, columns: k, row_stride, column_stride: k_stride } = operand;
    if k == 0 {
        return;
    }
    let (packed, _) = packed.as_chunks_mut::<W>();
    let whole = rows / W;
    // Columns of contiguous elements are read one after the other.
    if row_stride == 1 {
        for p in 0..k {
            let values = &values[p * k_stride..];
            for panel in 0..whole {
                let (packed, values) = (&mut packed[panel * k + p], &values[panel * W..][..W]);
                for row in 0..W {
                    packed[row] = values[row];
                }
            }
        }
    }
    let first = if row_stride == 1 { whole } else { 0 };
    for panel in first..rows.div_ceil(W) {
        let count = W.min(rows - panel * W);
        let packed = &mut packed[panel * k..][..k];
        let values = &values[panel * W * row_stride..];
        let done = if k_stride == 1 && count == W {
            pack_tiles(values, row_stride, packed, transpose)
        } else {
            0
        };
        for at in (done..k).step_by(PACK_RUN) {
            let packed = &mut packed[at..k.min(at + PACK_RUN)];
            for row in 0..count {
                let values = &values[row * row_stride + at * k_stride..];
                if k_stride == 1 {
                    let values = &values[..packed.len()];
                    for p in 0..packed.len() {
                        packed[p][row] = values[p];
                    }
                } else {
                    for p in 0..packed.len() {
                        packed[p][row] = values[p * k_stride];
                    }
                }
            }
            for row in count..W {
                for p in 0..packed.len() {
                    packed[p][row] = 0.0;
                }
            }
        }
    }
}

/// Packs the whole tiles of a panel of `W` rows, whose elements along k are contiguous in `values`. Returns how many
/// elements along k were packed.
#[inline(always)]
fn pack_tiles<const W: usize>(
    values: &[f32],
    row_stride: usize,
    packed: &mut [[f32; W]],
    transpose: impl Fn(Tile) -> Tile + Copy,
) -> usize {
    let (tiles, _) = packed.as_chunks_mut::<TILE>();
    for at in 0..tiles.len() {
        let (packed, values) = (&mut tiles[at], &values[at * TILE..]);
        for first in 0..W / TILE {
            pack_tile::<W, TILE>(values, row_stride, packed, first * TILE, transpose);
        }
        match W % TILE {
            0 => {}
            4 => pack_tile::<W, 4>(values, row_stride, packed, W - 4, transpose),
            6 => pack_tile::<W, 6>(values, row_stride, packed, W - 6, transpose),
            _ => unreachable!("no panels of {W} rows"),
        }
    }
    tiles.len() * TILE
}

/// Packs one tile of `N` rows of a panel, from row `first` on.
#[inline(always)]
fn pack_tile<const W: usize, const N: usize>(
    values: &[f32],
    row_stride: usize,
    packed: &mut [[f32; W]; TILE],
    first: usize,
    transpose: impl Fn(Tile) -> Tile,
) {
    let mut tile = [[0.0; TILE]; TILE];
    for row in 0..N {
        let values = &values[(first + row) * row_stride..][..TILE];
        for p in 0..TILE {
            tile[row][p] = values[p];
        }
    }
    let tile = transpose(tile);
    for p in 0..TILE {
        let packed = &mut packed[p][first..][..N];
        for row in 0..N {
            packed[row] = tile[p][row];
        }
    }
}

/// Transposes a tile.
#[inline(always)]
fn transpose(tile: Tile) -> Tile {
    std::array::from_fn(|column| std::array::from_fn(|row| tile[row][column]))
}

/// Transposes a tile in eight registers: pairs of rows, then fours, then the halves of the registers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_avx(simd: pulp::x86::V3, tile: Tile) -> Tile {
    use std::arch::x86_64::__m256;

    let avx = simd.avx;
    let [a, b, c, d, e, f, g, h] = tile.map(pulp::cast::<[f32; TILE], __m256>);
    let pairs = [
        avx._mm256_unpacklo_ps(a, b),
        avx._mm256_unpackhi_ps(a, b),
        avx._mm256_unpacklo_ps(c, d),
        avx._mm256_unpackhi_ps(c, d),
        avx._mm256_unpacklo_ps(e, f),
        avx._mm256_unpackhi_ps(e, f),
        avx._mm256_unpacklo_ps(g, h),
        avx._mm256_unpackhi_ps(g, h),
    ];
    let fours = [
        avx._mm256_shuffle_ps::<0x44>(pairs[0], pairs[2]),
        avx._mm256_shuffle_ps::<0xee>(pairs[0], pairs[2]),
        avx._mm256_shuffle_ps::<0x44>(pairs[1], pairs[3]),
        avx._mm256_shuffle_ps::<0xee>(pairs[1], pairs[3]),
        avx._mm256_shuffle_ps::<0x44>(pairs[4], pairs[6]),
        avx._mm256_shuffle_ps::<0xee>(pairs[4], pairs[6]),
        avx._mm256_shuffle_ps::<0x44>(pairs[5], pairs[7]),
        avx._mm256_shuffle_ps::<0xee>(pairs[5], pairs[7]),
    ];
    [
        avx._mm256_permute2f128_ps::<0x20>(fours[0], fours[4]),
        avx._mm256_permute2f128_ps::<0x20>(fours[1], fours[5]),
        avx._mm256_permute2f128_ps::<0x20>(fours[2], fours[6]),
        avx._mm256_permute2f128_ps::<0x20>(fours[3], fours[7]),
        avx._mm256_permute2f128_ps::<0x31>(fours[0], fours[4]),
        avx._mm256_permute2f128_ps::<0x31>(fours[1], fours[5]),
        avx._mm256_permute2f128_ps::<0x31>(fours[2], fours[6]),
        avx._mm256_permute2f128_ps::<0x31>(fours[3], fours[7]),
    ]
    .map(pulp::cast::<__m256, [f32; TILE]>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_transposed() {
        let tile: Tile =
            std::array::from_fn(|row| std::array::from_fn(|column| (8 * row + column) as f32));
        let expected: Tile =
            std::array::from_fn(|row| std::array::from_fn(|column| (8 * column + row) as f32));
        assert_eq!(transpose(tile), expected);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            assert_eq!(transpose_avx(simd, tile), expected);
        }
    }

    #[test]
    fn packed_panels_hold_each_k_side_by_side_and_zeros_beyond_the_operand() {
        let k = 2 * PACK_RUN + 3;
        for width in [6, 12, 16, 32] {
            let rows = 2 * width + 1;
            let values: Vec<f32> = (1..=rows * k).map(|value| value as f32).collect();
            let padded = rows.next_multiple_of(width);
            // The same elements row by row, and column by column.
            let row_major = MatRef::row_major(&values, k);
            let columns: Vec<f32> =
                (0..rows * k).map(|i| values[i % rows * k + i / rows]).collect();
            let column_major = MatRef::row_major(&columns, rows).transposed();
            for operand in [row_major, column_major] {
                let mut packed = vec![f32::NAN; padded * k];
                pack(operand, width, &mut packed);
                for (index, &found) in packed.iter().enumerate() {
                    let (panel, p, row) = (index / (width * k), index / width % k, index % width);
                    let row = panel * width + row;
                    let expected = if row < rows { values[row * k + p] } else { 0.0 };
                    assert_eq!(found, expected, "row {row}, k {p}, panels of {width}");
                }
            }
        }
    }
}
