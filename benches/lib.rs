//! Sizes, devices and inputs for the benchmarks of single layers.
//!
//! ```sh
//! cargo bench -p opensora-benches                           # small sizes, a minute
//! OPENSORA_BENCH=published cargo bench -p opensora-benches  # a clip of 16x256x256
//! cargo bench -p opensora-benches --bench vae
//! ```

use burn::tensor::{Device, Tensor};
use criterion::Criterion;
use opensora_nn::noise::{Purpose, normal_batch};

/// Returns true if layers are timed at the published sizes instead of small ones.
pub fn published_sizes() -> bool {
    std::env::var("OPENSORA_BENCH").is_ok_and(|size| size == "published")
}

/// Returns the device that is timed.
pub fn device() -> Device {
    Device::flex()
}

/// Returns a standard normal tensor on the device, the same in every call.
pub fn normal<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    normal_batch(0, Purpose::Weights, 0, 0, shape, &device())
}

/// Criterion with few samples, for layers that take up to a second; command line arguments override it.
pub fn criterion() -> Criterion {
    Criterion::default().sample_size(10).configure_from_args()
}
