//! Splits f32 into tiles of bf16 terms, with AVX-512's conversions to bf16 and shuffles.
//!
//! Sixteen rows of 32 elements make a tile for each term. Elements whose order in memory is not that of
//! the tiles are transposed before the split, which takes one transposition instead of three, one per term.
//!
//! Plain loops throughout: a closure passed to the standard library is not compiled for these
//! instructions.

use super::super::{Elements, SIDE, TERMS, TILE_K, Tile};
use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_extracti64x4_epi64,
    _mm512_loadu_ps, _mm512_permutexvar_epi16, _mm512_set_epi16, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_si512,
    _mm512_sub_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

/// Splits `elements` into a tile for each term, `[row][pair along k]` if `rows_first`, else
/// `[pair along k][row]`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn split(elements: &Elements, rows_first: bool, mut tiles: [&mut Tile; TERMS]) {
    match (elements, rows_first) {
        (Elements::Rows(rows), true) => {
            for (index, row) in rows.iter().enumerate() {
                write(terms(halves(row)), index, &mut tiles);
            }
        }
        (Elements::Columns(columns), false) => {
            for row in 0..SIDE {
                let pair = [load(columns[2 * row]), load(columns[2 * row + 1])];
                write(interleaved(terms(pair)), row, &mut tiles);
            }
        }
        (Elements::Rows(rows), false) => {
            let mut squares = [[_mm512_setzero_ps(); SIDE]; 2];
            for row in 0..SIDE {
                [squares[0][row], squares[1][row]] = halves(rows[row]);
            }
            for (half, square) in squares.into_iter().enumerate() {
                let columns = transposed(square);
                for row in 0..SIDE / 2 {
                    let pair = [columns[2 * row], columns[2 * row + 1]];
                    write(interleaved(terms(pair)), half * SIDE / 2 + row, &mut tiles);
                }
            }
        }
        (Elements::Columns(columns), true) => {
            let mut squares = [[_mm512_setzero_ps(); SIDE]; 2];
            for column in 0..TILE_K {
                squares[column / SIDE][column % SIDE] = load(columns[column]);
            }
            let [low, high] = squares;
            let [low, high] = [transposed(low), transposed(high)];
            for row in 0..SIDE {
                write(terms([low[row], high[row]]), row, &mut tiles);
            }
        }
    }
}

/// Splits 32 elements into bf16 terms, the largest term first; elements keep their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn terms(mut elements: [__m512; 2]) -> [__m512i; TERMS] {
    let mut terms = [_mm512_setzero_si512(); TERMS];
    for term in &mut terms {
        let [low, high] = elements;
        // SAFETY: both are 512 bits of anything.
        *term = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
        let term_low = widened(_mm512_castsi512_si256(*term));
        let term_high = widened(_mm512_extracti64x4_epi64::<1>(*term));
        elements = [_mm512_sub_ps(low, term_low), _mm512_sub_ps(high, term_high)];
    }
    terms
}

/// Interleaves each term of two columns, so that a row's two bf16 are adjacent (a pair along k).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleaved(mut terms: [__m512i; TERMS]) -> [__m512i; TERMS] {
    #[rustfmt::skip]
    let order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
        23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
    );
    for term in &mut terms {
        *term = _mm512_permutexvar_epi16(order, *term);
    }
    terms
}

/// Converts 16 bf16 to f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(term: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(term)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(elements: &[f32; SIDE]) -> __m512 {
    // SAFETY: reads these 16 elements.
    unsafe { _mm512_loadu_ps(elements.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves(row: &[f32; TILE_K]) -> [__m512; 2] {
    let (halves, _) = row.as_chunks::<SIDE>();
    [load(&halves[0]), load(&halves[1])]
}

/// Writes a row of each term's tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn write(terms: [__m512i; TERMS], row: usize, tiles: &mut [&mut Tile; TERMS]) {
    for (term, tile) in terms.into_iter().zip(tiles) {
        // SAFETY: writes these 16 words.
        unsafe { _mm512_storeu_si512(tile[row].as_mut_ptr().cast(), term) };
    }
}

/// Transposes a 16x16 matrix: takes its rows, returns its columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(mut x: [__m512; SIDE]) -> [__m512; SIDE] {
    let mut y = x;
    // Vectors have four lanes of four numbers. Columns of two rows, then of four, within each lane:
    for i in (0..SIDE).step_by(2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for i in (0..SIDE).step_by(4) {
        for half in 0..2 {
            let [upper, lower] = [_mm512_castps_pd(y[i + half]), _mm512_castps_pd(y[i + half + 2])];
            x[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(upper, lower));
            x[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(upper, lower));
        }
    }
    // Now x[4 g + c] has column 4 l + c of rows 4 g to 4 g + 3 in its lane l. Even and odd lanes of two
    // groups, then of all four:
    for c in 0..4 {
        let even = _mm512_shuffle_f32x4::<0x88>(x[c], x[4 + c]);
        let odd = _mm512_shuffle_f32x4::<0xdd>(x[c], x[4 + c]);
        let even_below = _mm512_shuffle_f32x4::<0x88>(x[8 + c], x[12 + c]);
        let odd_below = _mm512_shuffle_f32x4::<0xdd>(x[8 + c], x[12 + c]);
        y[c] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
        y[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
        y[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, even_below);
        y[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_below);
    }
    y
}
