//! Layers, random numbers and the device table that the models of `opensora` share.
//!
//! The crate contains what the models need and burn does not have, and fused versions of burn's layers
//! that are faster on some backends. It knows no model, no file and no diffusion process.
//!
//! # Example
//!
//! Attention of video tokens to prompts of different lengths:
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use opensora_nn::{attention::cross_attention, mask::TokenMask};
//! use opensora_nn::noise::{Purpose, normal_batch};
//!
//! let device = Device::default();
//! let (channels, heads) = (8, 2);
//! let draw = |index, shape| normal_batch(42, Purpose::Weights, index, 0, shape, &device);
//! let tokens: Tensor<3> = draw(0, [2, 16, channels]); // 2 samples of 16 tokens
//! let prompts: Tensor<3> = draw(2, [2, 4, 2 * channels]); // Keys and values of 4 tokens each
//!
//! // The second prompt has only 3 tokens.
//! let mask = TokenMask::new(vec![vec![true; 4], vec![true, true, true, false]]).unwrap();
//! let bias = mask.bias(tokens.dtype(), &device);
//! let output = cross_attention(tokens, prompts, bias, heads);
//! assert_eq!(output.dims(), [2, 16, channels]);
//! ```
//!
//! # Contents
//!
//! | module | contents |
//! |---|---|
//! | [`device`] | the table of backends: parse `--device`, list available devices |
//! | [`dtype`] | float types of weights and activations |
//! | [`read`] | copies of tensors to the host, and a count of waits for devices |
//! | [`host`] | linear maps that the host computes, with gradients |
//! | [`random`] | random numbers drawn on the host, by key |
//! | [`noise`] | Gaussian noise that is the same on every backend |
//! | [`attention`] | multi-head attention with an additive bias |
//! | [`mask`] | masks over prompt tokens |
//! | [`linear`] | linear layers, with the initial weights of transformers |
//! | [`activation`] | GELU (tanh) and SiLU |
//! | [`modulation`] | adaptive norms and gates |
//! | [`norm`] | LayerNorm without parameters, group norm, T5's RMS norm |
//! | [`conv`] | convolution and upsampling of images |
//! | [`timestep`] | embedding of timesteps |
//! | [`sincos`] | sine-cosine position tables |
//! | [`pointwise`] | updates of several tensors in one pass over memory |
//!
//! # Features
//!
//! A feature with burn's name compiles a backend in: `flex`, `ndarray`, `tch`, `cuda`, `rocm`, `wgpu`,
//! `vulkan`, `metal`. `flex` and `tch` also have kernels for fused layers; elsewhere these layers use
//! burn's operations. `autodiff` adds the kernels' gradients on `flex`. `fusion` and `autotune` are burn's.

pub mod activation;
pub mod attention;
pub mod conv;
pub mod device;
pub mod dtype;
pub mod host;
mod kernels;
pub mod linear;
pub mod mask;
pub mod modulation;
pub mod noise;
pub mod norm;
pub mod pointwise;
pub mod random;
pub mod read;
pub mod sincos;
#[cfg(all(test, feature = "autodiff"))]
mod testing;
pub mod timestep;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
