//! Matrix products at the sizes of STDiT-XL/2's layers, by `opensora-gemm` and by the crate `gemm`, which burn's flex
//! backend uses.
//!
//! Elements per second are multiply-adds: half the FLOP/s.

#![allow(unsafe_code, reason = "the functions of the crate `gemm` take pointers")]

use criterion::{BenchmarkId, Throughput};
use gemm::Parallelism;
use opensora_benches::{criterion, published_sizes};
use opensora_gemm::{MatRef, available, multiply};
use std::hint::black_box;

const CHANNELS: usize = 1152;

/// Input and output widths of a block's layers: queries, keys and values; MLP.
const LAYERS: [[usize; 2]; 3] =
    [[CHANNELS, 3 * CHANNELS], [CHANNELS, 4 * CHANNELS], [4 * CHANNELS, CHANNELS]];

/// Returns `count` values between -1 and 1.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.7).sin()).collect()
}

/// Computes `a b` with the crate `gemm` on rayon's threads; `a` is `[m, k]`, `b` `[k, n]`.
fn reference(a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f32> {
    assert!(a.len() == m * k && b.len() == k * n);
    let mut c = vec![0.0; m * n];
    let [a_stride, b_stride] = [k, n].map(usize::cast_signed);
    // SAFETY: all three matrices are contiguous and of these sizes.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            b_stride,
            false,
            a.as_ptr(),
            1,
            a_stride,
            b.as_ptr(),
            1,
            b_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
    c
}

fn main() {
    if !available() {
        eprintln!("opensora-gemm has no strategy for this processor");
        return;
    }
    let m = if published_sizes() { 4096 } else { 256 };
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("gemm");
    for [k, n] in LAYERS {
        let (a, b) = (values(m * k), values(k * n));
        let size = format!("{m}x{k}x{n}");
        group.throughput(Throughput::Elements((m * n * k) as u64));
        group.bench_function(BenchmarkId::new("opensora-gemm", &size), |bencher| {
            let (a, b) = (MatRef::row_major(&a, k), MatRef::row_major(&b, n));
            bencher.iter(|| black_box(multiply(a, b, |_, _| ())));
        });
        group.bench_function(BenchmarkId::new("gemm", &size), |bencher| {
            bencher.iter(|| black_box(reference(&a, &b, [m, n, k])));
        });
    }
    group.finish();
    criterion.final_summary();
}
