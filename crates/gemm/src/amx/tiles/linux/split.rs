//! Numbers taken apart into tiles, by the instructions that round to bf16 and shuffle vectors.
//!
//! Sixteen lines of 32 numbers make a tile of each part. Where they lie the other way round in memory
//! than in the tiles they are turned before they are taken apart, when there is one square to turn for
//! the three of the parts.
//!
//! Plain loops throughout: a closure handed to the standard library is not compiled for these
//! instructions.

use super::super::{DEPTH, Numbers, PARTS, SIDE, Tile};
use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_extracti64x4_epi64,
    _mm512_loadu_ps, _mm512_permutexvar_epi16, _mm512_set_epi16, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_si512,
    _mm512_sub_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

/// Takes `numbers` apart into a tile for each part, whose rows are lines where `lines_first`, else pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn take_apart(numbers: &Numbers, lines_first: bool, mut tiles: [&mut Tile; PARTS]) {
    match (numbers, lines_first) {
        (Numbers::Lines(lines), true) => {
            for (row, line) in lines.iter().enumerate() {
                write(parts(halves(line)), row, &mut tiles);
            }
        }
        (Numbers::Depths(depths), false) => {
            for row in 0..SIDE {
                let pair = [load(depths[2 * row]), load(depths[2 * row + 1])];
                write(beside(parts(pair)), row, &mut tiles);
            }
        }
        (Numbers::Lines(lines), false) => {
            let mut squares = [[_mm512_setzero_ps(); SIDE]; 2];
            for line in 0..SIDE {
                [squares[0][line], squares[1][line]] = halves(lines[line]);
            }
            for (half, square) in squares.into_iter().enumerate() {
                let depths = turned(square);
                for row in 0..SIDE / 2 {
                    let pair = [depths[2 * row], depths[2 * row + 1]];
                    write(beside(parts(pair)), half * SIDE / 2 + row, &mut tiles);
                }
            }
        }
        (Numbers::Depths(depths), true) => {
            let mut squares = [[_mm512_setzero_ps(); SIDE]; 2];
            for depth in 0..DEPTH {
                squares[depth / SIDE][depth % SIDE] = load(depths[depth]);
            }
            let [low, high] = squares;
            let [low, high] = [turned(low), turned(high)];
            for row in 0..SIDE {
                write(parts([low[row], high[row]]), row, &mut tiles);
            }
        }
    }
}

/// The parts of 32 numbers, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn parts(mut numbers: [__m512; 2]) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        let [low, high] = numbers;
        // SAFETY: both are 512 bits of anything.
        *part = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
        let taken = wide(_mm512_castsi512_si256(*part));
        let taken_high = wide(_mm512_extracti64x4_epi64::<1>(*part));
        numbers = [_mm512_sub_ps(low, taken), _mm512_sub_ps(high, taken_high)];
    }
    parts
}

/// Of parts of two depths after each other, those of a line beside each other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn beside(mut parts: [__m512i; PARTS]) -> [__m512i; PARTS] {
    #[rustfmt::skip]
    let order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
        23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
    );
    for part in &mut parts {
        *part = _mm512_permutexvar_epi16(order, *part);
    }
    parts
}

/// bf16 as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn wide(part: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(part)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(numbers: &[f32; SIDE]) -> __m512 {
    // SAFETY: reads these 16 numbers.
    unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves(line: &[f32; DEPTH]) -> [__m512; 2] {
    let (halves, _) = line.as_chunks::<SIDE>();
    [load(&halves[0]), load(&halves[1])]
}

/// Writes a row of each part's tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn write(parts: [__m512i; PARTS], row: usize, tiles: &mut [&mut Tile; PARTS]) {
    for (part, tile) in parts.into_iter().zip(tiles) {
        // SAFETY: writes these 16 words.
        unsafe { _mm512_storeu_si512(tile[row].as_mut_ptr().cast(), part) };
    }
}

/// The columns of a square of rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned(mut x: [__m512; SIDE]) -> [__m512; SIDE] {
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
