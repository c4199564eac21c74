//! Fused layers: operations that a backend computes by a dedicated kernel.
//!
//! [`FusedOps`] is the only extension trait for layers; burn dispatches its methods to the backend of the
//! tensors. A layer calls one function of this module, which returns the result, or gives the inputs back if
//! [`supported`] is false for an input. The layer then computes the same with burn's operations. `host` has the
//! extension trait for maps that the host computes on all backends.
//!
//! | backend | kernels |
//! |---|---|
//! | flex | all, for f32; those that training needs have gradients (see `flex`) |
//! | tch | linear layers, adaptive norms and gates, without gradients (see `tch`) |
//! | others | none |

#![allow(clippy::result_large_err, reason = "an error gives the inputs back")]
#![allow(deprecated, reason = "burn plans to retire tch; 0.22 has it")]

#[cfg(feature = "flex")]
mod flex;
mod host;
mod in_place;
mod ops;
#[cfg(feature = "tch")]
mod tch;

#[cfg(all(test, feature = "flex"))]
pub(crate) use in_place::CHUNK;
pub(crate) use in_place::update_in_place;
pub(crate) use ops::Operation;

use crate::{attention::Heads, host::HostMap};
#[allow(unused_imports, reason = "no backend with kernels may be compiled in")]
use burn::backend::DispatchDevice;
use burn::{
    backend::{Dispatch, DispatchTensor},
    module::Param,
    nn::{GroupNorm, Linear, PaddingConfig2d, conv::Conv2d},
    tensor::Tensor,
};
use host::HostOps;
use ops::FusedOps;
use std::sync::Arc;

/// The most keys of an attention kernel without autodiff: with more, 2^22 scores are so few queries that the tiles
/// of burn's attention are faster.
const MAX_KEYS: usize = 1 << 12;

/// Returns true if a kernel takes `keys` keys. Under autodiff it takes any number, since burn's attention saves all
/// scores for backward and the kernels of self- and cross-attention save a bounded number.
fn takes_keys<const D: usize>(keys: usize, x: &Tensor<D>) -> bool {
    keys <= MAX_KEYS || x.device().is_autodiff()
}

/// Returns true if the backend of `x` has a kernel for `operation` that takes `x`.
pub(crate) fn supported<const D: usize>(operation: Operation, x: &Tensor<D>) -> bool {
    let device = x.device();
    let autodiff = device.is_autodiff();
    match device.inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => {
            x.dtype() == burn::tensor::DType::F32
                && x.dims().iter().all(|&length| length > 0)
                && flex::supports(operation, autodiff)
        }
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(_) => tch::supports(operation, autodiff),
        #[allow(unreachable_patterns, reason = "which backends there are is a matter of features")]
        _ => {
            let _ = (operation, autodiff);
            false
        }
    }
}

/// Returns true if all tensors are [`supported`] and have one dtype.
fn all_supported<const D: usize, const N: usize>(
    operation: Operation,
    tensors: [&Tensor<D>; N],
) -> bool {
    tensors.iter().all(|x| supported(operation, x) && x.dtype() == tensors[0].dtype())
}

/// Computes [`crate::linear::forward`] by a kernel, or gives the inputs back if none supports them.
pub(crate) fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    let Some([weight, bias]) = linear_parameters(Operation::Linear, layer, &x) else {
        return Err(x);
    };
    Ok(Tensor::from_dispatch(Dispatch::fused_linear(x.into_dispatch(), weight, bias)))
}

/// Computes [`crate::activation::linear_gelu_tanh`] by a kernel, or gives the inputs back if none
/// supports them.
pub(crate) fn linear_gelu<const D: usize>(
    layer: &Linear,
    x: Tensor<D>,
) -> Result<Tensor<D>, Tensor<D>> {
    let Some([weight, bias]) = linear_parameters(Operation::LinearGelu, layer, &x) else {
        return Err(x);
    };
    Ok(Tensor::from_dispatch(Dispatch::fused_linear_gelu(x.into_dispatch(), weight, bias)))
}

/// Returns the weight and bias of `layer` if they and `x` are supported.
fn linear_parameters<const D: usize>(
    operation: Operation,
    layer: &Linear,
    x: &Tensor<D>,
) -> Option<[DispatchTensor; 2]> {
    if !supported(operation, x) {
        return None;
    }
    let weight = layer.weight.val();
    let bias =
        layer.bias.as_ref().map(Param::val).unwrap_or_else(|| {
            Tensor::zeros([weight.dims()[1]], (&weight.device(), weight.dtype()))
        });
    let dtype = x.dtype();
    let fit = supported(operation, &weight)
        && supported(operation, &bias)
        && [weight.dtype(), bias.dtype()] == [dtype; 2];
    fit.then(|| [weight.into_dispatch(), bias.into_dispatch()])
}

/// Computes [`crate::modulation::norm_and_modulate`] by a kernel, or gives the inputs back if none
/// supports them.
pub(crate) fn norm_and_modulate(
    x: Tensor<3>,
    scale: Tensor<3>,
    shift: Tensor<3>,
    epsilon: f64,
) -> Result<Tensor<3>, [Tensor<3>; 3]> {
    let [batch, _, channels] = x.dims();
    let one_row = |x: &Tensor<3>| x.dims() == [batch, 1, channels];
    let inputs = [&x, &scale, &shift];
    if !(one_row(&scale) && one_row(&shift) && all_supported(Operation::NormAndModulate, inputs)) {
        return Err([x, scale, shift]);
    }
    let [x, scale, shift] = [x, scale, shift].map(Tensor::into_dispatch);
    Ok(Tensor::from_dispatch(Dispatch::fused_norm_and_modulate(x, scale, shift, epsilon)))
}

/// Computes [`crate::modulation::gated_sum`] by a kernel, or gives the inputs back if none supports
/// them.
pub(crate) fn gated_sum(
    x: Tensor<3>,
    gate: Tensor<3>,
    y: Tensor<3>,
) -> Result<Tensor<3>, [Tensor<3>; 3]> {
    let [batch, _, channels] = x.dims();
    let fit = gate.dims() == [batch, 1, channels] && y.dims() == x.dims();
    if !(fit && all_supported(Operation::GatedSum, [&x, &gate, &y])) {
        return Err([x, gate, y]);
    }
    let [x, gate, y] = [x, gate, y].map(Tensor::into_dispatch);
    Ok(Tensor::from_dispatch(Dispatch::fused_gated_sum(x, gate, y)))
}

/// Computes [`crate::attention::self_attention`] by a kernel, or gives the inputs back if none supports
/// them.
pub(crate) fn self_attention(
    qkv: Tensor<4>,
    axis: usize,
    heads: usize,
) -> Result<Tensor<4>, Tensor<4>> {
    if !supported(Operation::SelfAttention, &qkv) || !takes_keys(qkv.dims()[axis], &qkv) {
        return Err(qkv);
    }
    let output = Dispatch::fused_self_attention(qkv.into_dispatch(), axis, heads);
    Ok(Tensor::from_dispatch(output))
}

/// Computes [`crate::attention::cross_attention`] by a kernel, or gives the inputs back if none supports
/// them.
#[allow(clippy::type_complexity, reason = "the inputs")]
pub(crate) fn cross_attention(
    query: Tensor<3>,
    key_value: Tensor<3>,
    bias: Option<Tensor<4>>,
    heads: usize,
) -> Result<Tensor<3>, (Tensor<3>, Tensor<3>, Option<Tensor<4>>)> {
    let operation = Operation::CrossAttention;
    let ([batch, _, channels], [samples, keys, width]) = (query.dims(), key_value.dims());
    if [samples, width] != [batch, 2 * channels]
        || !takes_keys(keys, &query)
        || !all_supported(operation, [&query, &key_value])
        || !bias.as_ref().is_none_or(|bias| is_key_bias(operation, bias, [batch, keys]))
    {
        return Err((query, key_value, bias));
    }
    let bias = bias_rows(bias, keys, &query.device());
    let [query, key_value] = [query, key_value].map(Tensor::into_dispatch);
    let output = Dispatch::fused_cross_attention(query, key_value, bias, heads);
    Ok(Tensor::from_dispatch(output))
}

/// Computes [`crate::attention::attention`] by a kernel, or gives the inputs back if none supports them.
pub(crate) fn attention(heads: Heads) -> Result<Tensor<4>, Heads> {
    let operation = Operation::Attention;
    let ([batch, _, _, head_dim], keys) = (heads.query.dims(), heads.key.dims()[2]);
    if keys > MAX_KEYS
        || !all_supported(operation, [&heads.query, &heads.key, &heads.value])
        || !heads.bias.as_ref().is_none_or(|bias| is_key_bias(operation, bias, [batch, keys]))
    {
        return Err(heads);
    }
    let Heads { query, key, value, bias, scale } = heads;
    let bias = bias_rows(bias, keys, &query.device());
    let scale = scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt());
    let [query, key, value] = [query, key, value].map(Tensor::into_dispatch);
    Ok(Tensor::from_dispatch(Dispatch::fused_attention(query, key, value, bias, scale)))
}

/// See [`crate::host::apply`]; `x` has autodiff.
pub(crate) fn host_map(map: Arc<dyn HostMap>, x: Tensor<1>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as HostOps>::host_map(x.into_dispatch(), map))
}

/// Returns true if `bias` has one element per key, `[1 or B, 1, 1, M]`, and is supported.
fn is_key_bias(operation: Operation, bias: &Tensor<4>, [batch, keys]: [usize; 2]) -> bool {
    let [samples, rest @ ..] = bias.dims();
    rest == [1, 1, keys] && [1, batch].contains(&samples) && supported(operation, bias)
}

/// Returns the bias as `[1 or B, M]`; zeros if there is none.
fn bias_rows(
    bias: Option<Tensor<4>>,
    keys: usize,
    device: &burn::tensor::Device,
) -> DispatchTensor {
    let rows = match bias {
        Some(bias) => bias.reshape([-1, keys as i64]),
        None => Tensor::<2>::zeros([1, keys], device),
    };
    rows.into_dispatch()
}

/// Computes [`crate::activation::gelu_tanh`] by a kernel, or gives the inputs back if none supports
/// them.
pub(crate) fn gelu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    if !supported(Operation::Gelu, &x) {
        return Err(x);
    }
    Ok(Tensor::from_dispatch(Dispatch::fused_gelu(x.into_dispatch())))
}

/// Computes [`crate::activation::silu`] by a kernel, or gives the inputs back if none supports them.
pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    if !supported(Operation::Silu, &x) {
        return Err(x);
    }
    Ok(Tensor::from_dispatch(Dispatch::fused_silu(x.into_dispatch())))
}

/// Computes [`crate::norm::group_norm`] by a kernel, or gives the inputs back if none supports them.
pub(crate) fn group_norm(norm: &GroupNorm, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    let Some([gamma, beta]) = group_norm_parameters(Operation::GroupNorm, norm, &x) else {
        return Err(x);
    };
    let (x, groups, epsilon) = (x.into_dispatch(), norm.num_groups, norm.epsilon);
    Ok(Tensor::from_dispatch(Dispatch::fused_group_norm(x, gamma, beta, groups, epsilon)))
}

/// Computes [`crate::norm::group_norm_silu`] by a kernel, or gives the inputs back if none supports
/// them.
pub(crate) fn group_norm_silu(norm: &GroupNorm, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    let Some([gamma, beta]) = group_norm_parameters(Operation::GroupNormSilu, norm, &x) else {
        return Err(x);
    };
    let (x, groups, epsilon) = (x.into_dispatch(), norm.num_groups, norm.epsilon);
    Ok(Tensor::from_dispatch(Dispatch::fused_group_norm_silu(x, gamma, beta, groups, epsilon)))
}

/// Returns gamma and beta of `norm` (ones and zeros if it has none) if they and `x` are supported.
fn group_norm_parameters(
    operation: Operation,
    norm: &GroupNorm,
    x: &Tensor<4>,
) -> Option<[DispatchTensor; 2]> {
    if !supported(operation, x) {
        return None;
    }
    let (channels, device) = (x.dims()[1], x.device());
    let [gamma, beta] = [&norm.gamma, &norm.beta].map(|param| param.as_ref().map(Param::val));
    let gamma = gamma.unwrap_or_else(|| Tensor::ones([channels], (&device, x.dtype())));
    let beta = beta.unwrap_or_else(|| Tensor::zeros([channels], (&device, x.dtype())));
    all_supported(operation, [&gamma, &beta]).then(|| [gamma, beta].map(Tensor::into_dispatch))
}

/// Returns mean and biased variance of each group of `x` `[B, C, H, W]`, `[B, groups]` each, and `x`.
#[allow(clippy::type_complexity, reason = "two tensors and the input")]
pub(crate) fn group_moments(
    x: Tensor<4>,
    groups: usize,
) -> Result<([Tensor<2>; 2], Tensor<4>), Tensor<4>> {
    if !supported(Operation::GroupMoments, &x) {
        return Err(x);
    }
    let (mean, variance, x) = Dispatch::fused_group_moments(x.into_dispatch(), groups);
    Ok(([mean, variance].map(Tensor::from_dispatch), Tensor::from_dispatch(x)))
}

/// Computes [`crate::norm::GroupMoments::normalize_silu`] by a kernel, or gives the inputs back if none
/// supports them.
pub(crate) fn affine_silu(
    x: Tensor<4>,
    gain: &Tensor<2>,
    shift: &Tensor<2>,
) -> Result<Tensor<4>, Tensor<4>> {
    let operation = Operation::AffineSilu;
    if !supported(operation, &x) || !all_supported(operation, [gain, shift]) {
        return Err(x);
    }
    let [gain, shift] = [gain, shift].map(|x| x.clone().into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::fused_affine_silu(x.into_dispatch(), gain, shift)))
}

/// Computes [`crate::conv::conv2d`] by a kernel, or gives `x` back if none supports it, or if `conv` is
/// not a 3x3 convolution with stride 1 and padding 1, if height or width is odd, or if there are too few
/// channels.
pub(crate) fn conv3x3(conv: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    /// Below this many input channels the transforms cost more than the products that they save.
    const MIN_INPUTS: usize = 32;
    let operation = Operation::Conv3x3;
    if !supported(operation, &x) {
        return Err(x);
    }
    let [_, inputs, height, width] = x.dims();
    let weight = conv.weight.val();
    let [outputs, _, kernel @ ..] = weight.dims();
    let bias = conv.bias.as_ref().map(Param::val);
    let bias = bias.unwrap_or_else(|| Tensor::zeros([outputs], (&x.device(), x.dtype())));
    let fits = kernel == [3, 3]
        && conv.stride == [1, 1]
        && conv.dilation == [1, 1]
        && conv.groups == 1
        && matches!(conv.padding, PaddingConfig2d::Explicit(1, 1, 1, 1))
        && inputs >= MIN_INPUTS
        && height.is_multiple_of(2)
        && width.is_multiple_of(2)
        && supported(operation, &weight)
        && supported(operation, &bias);
    if !fits {
        return Err(x);
    }
    let (weight, bias) = (weight.into_dispatch(), bias.into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::fused_conv3x3(x.into_dispatch(), weight, bias)))
}

/// Computes [`crate::conv::upsample_nearest`] by a kernel, or gives the inputs back if none supports
/// them.
pub(crate) fn upsample_nearest(x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    if !supported(Operation::UpsampleNearest, &x) {
        return Err(x);
    }
    Ok(Tensor::from_dispatch(Dispatch::fused_upsample_nearest(x.into_dispatch())))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, FloatDType};

    const WITH_GRADIENTS: [Operation; 6] = [
        Operation::Linear,
        Operation::LinearGelu,
        Operation::NormAndModulate,
        Operation::GatedSum,
        Operation::SelfAttention,
        Operation::CrossAttention,
    ];
    const WITHOUT_GRADIENTS: [Operation; 9] = [
        Operation::Attention,
        Operation::Gelu,
        Operation::Silu,
        Operation::GroupNorm,
        Operation::GroupNormSilu,
        Operation::GroupMoments,
        Operation::AffineSilu,
        Operation::Conv3x3,
        Operation::UpsampleNearest,
    ];

    #[test]
    fn flex_supports_f32_and_with_autodiff_the_operations_with_gradients() {
        let device = Device::flex();
        let x = Tensor::<2>::ones([2, 3], &device);
        let tracked = Tensor::<2>::ones([2, 3], &device.clone().autodiff());
        for operation in WITH_GRADIENTS {
            assert!(supported(operation, &x), "{operation:?}");
            assert_eq!(supported(operation, &tracked), cfg!(feature = "autodiff"), "{operation:?}");
        }
        for operation in WITHOUT_GRADIENTS {
            assert!(supported(operation, &x), "{operation:?}");
            assert!(!supported(operation, &tracked), "{operation:?}");
        }
        for operation in WITH_GRADIENTS.into_iter().chain(WITHOUT_GRADIENTS) {
            assert!(!supported(operation, &x.clone().cast(FloatDType::BF16)), "{operation:?}");
            assert!(!supported(operation, &Tensor::<2>::ones([2, 0], &device)), "{operation:?}");
        }
    }

    fn ones<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::ones(shape, &Device::flex())
    }

    fn half<const D: usize>(x: Tensor<D>) -> Tensor<D> {
        x.cast(FloatDType::BF16)
    }

    #[test]
    fn linear_layers_are_taken_in_f32_alone() {
        let layer = |bias| burn::nn::LinearConfig::new(3, 4).with_bias(bias).init(&Device::flex());
        for layer in [layer(true), layer(false)] {
            assert!(linear(&layer, ones([2, 3])).is_ok());
            assert!(linear_gelu(&layer, ones([2, 3])).is_ok());
            assert!(linear(&layer, half(ones([2, 3]))).is_err());
            assert!(linear_gelu(&layer, half(ones([2, 3]))).is_err());
        }
        let half_weight = Linear { weight: Param::from_tensor(half(ones([3, 4]))), ..layer(true) };
        assert!(linear(&half_weight, ones([2, 3])).is_err());
        let half_bias = Linear { bias: Some(Param::from_tensor(half(ones([4])))), ..layer(true) };
        assert!(linear(&half_bias, ones([2, 3])).is_err());
    }

    #[test]
    fn norms_and_gates_are_taken_with_a_row_for_each_sample() {
        let (x, row) = ([2, 5, 4], [2, 1, 4]);
        let norm = |scale, shift| norm_and_modulate(ones(x), ones(scale), ones(shift), 1e-6);
        let gate = |gate, y| gated_sum(ones(x), ones(gate), ones(y));
        assert!(norm(row, row).is_ok() && gate(row, x).is_ok());
        for other in [[1, 1, 4], [2, 5, 4], [2, 1, 1]] {
            assert!(norm(other, row).is_err() && norm(row, other).is_err(), "{other:?}");
            assert!(gate(other, x).is_err(), "{other:?}");
        }
        for other in [[2, 1, 4], [1, 5, 4]] {
            assert!(gate(row, other).is_err(), "{other:?}");
        }
        assert!(norm_and_modulate(ones(x), half(ones(row)), ones(row), 1e-6).is_err());
        assert!(norm_and_modulate(ones(x), ones(row), half(ones(row)), 1e-6).is_err());
        assert!(gated_sum(ones(x), half(ones(row)), ones(x)).is_err());
        assert!(gated_sum(half(ones(x)), ones(row), ones(x)).is_err());
    }

    #[test]
    fn attention_is_taken_with_a_bias_for_each_key() {
        let attend = |bias: Option<Tensor<4>>| {
            let x = || ones([2, 3, 5, 4]);
            attention(Heads { query: x(), key: x(), value: x(), bias, scale: None }).is_ok()
        };
        let cross = |query: [usize; 3], key_value: [usize; 3], bias: Option<Tensor<4>>| {
            cross_attention(ones(query), ones(key_value), bias, 2).is_ok()
        };
        let (query, key_value) = ([2, 7, 4], [2, 5, 8]);
        assert!(attend(None) && cross(query, key_value, None));
        for shape in [[1, 1, 1, 5], [2, 1, 1, 5]] {
            assert!(attend(Some(ones(shape))), "{shape:?}");
            assert!(cross(query, key_value, Some(ones(shape))), "{shape:?}");
            assert!(!attend(Some(half(ones(shape)))), "{shape:?}");
            assert!(!cross(query, key_value, Some(half(ones(shape)))), "{shape:?}");
        }
        for shape in [[1, 3, 1, 5], [1, 1, 7, 5], [1, 1, 1, 4], [3, 1, 1, 5]] {
            assert!(!attend(Some(ones(shape))), "{shape:?}");
            assert!(!cross(query, key_value, Some(ones(shape))), "{shape:?}");
        }
        assert!(!cross(query, [1, 5, 8], None) && !cross(query, [2, 5, 4], None));
        assert!(cross_attention(half(ones(query)), ones(key_value), None, 2).is_err());
        assert!(cross_attention(ones(query), half(ones(key_value)), None, 2).is_err());
        assert!(self_attention(ones([1, 2, 3, 12]), 2, 2).is_ok());
        assert!(self_attention(half(ones([1, 2, 3, 12])), 2, 2).is_err());
    }

    #[test]
    fn attention_takes_a_bounded_number_of_keys() {
        let cross = |keys| cross_attention(ones([1, 1, 2]), ones([1, keys, 4]), None, 1).is_ok();
        assert!(cross(MAX_KEYS) && !cross(MAX_KEYS + 1));
        let of_heads = |keys| {
            let (query, key, value) =
                (ones([1, 1, 1, 2]), ones([1, 1, keys, 2]), ones([1, 1, keys, 2]));
            attention(Heads { query, key, value, bias: None, scale: None }).is_ok()
        };
        assert!(of_heads(MAX_KEYS) && !of_heads(MAX_KEYS + 1));
        assert!(self_attention(ones([1, MAX_KEYS + 1, 1, 6]), 1, 1).is_err());
        assert!(self_attention(ones([1, MAX_KEYS + 1, 1, 6]), 2, 1).is_ok());
        let x = ones([1, 1]);
        assert!(takes_keys(MAX_KEYS, &x) && !takes_keys(MAX_KEYS + 1, &x));
        assert!(takes_keys(MAX_KEYS + 1, &Tensor::<2>::ones([1, 1], &Device::flex().autodiff())));
    }

    #[test]
    fn image_operations_are_taken_in_f32_alone() {
        let x = || ones([2, 4, 6, 8]);
        let norm = burn::nn::GroupNormConfig::new(2, 4).init(&Device::flex());
        let plain = GroupNorm { gamma: None, beta: None, ..norm.clone() };
        for norm in [&norm, &plain] {
            assert!(group_norm(norm, x()).is_ok() && group_norm_silu(norm, x()).is_ok());
            assert!(group_norm(norm, half(x())).is_err());
            assert!(group_norm_silu(norm, half(x())).is_err());
        }
        let gamma = GroupNorm { gamma: Some(Param::from_tensor(half(ones([4])))), ..norm.clone() };
        assert!(group_norm(&gamma, x()).is_err() && group_norm_silu(&gamma, x()).is_err());
        assert!(group_moments(x(), 2).is_ok() && group_moments(half(x()), 2).is_err());
        assert!(silu(x()).is_ok() && silu(half(x())).is_err());
        assert!(gelu(x()).is_ok() && gelu(half(x())).is_err());
        assert!(upsample_nearest(x()).is_ok() && upsample_nearest(half(x())).is_err());
        let row = || ones([2, 4]);
        assert!(affine_silu(x(), &row(), &row()).is_ok());
        assert!(affine_silu(half(x()), &row(), &row()).is_err());
        assert!(affine_silu(x(), &half(row()), &row()).is_err());
        assert!(affine_silu(x(), &row(), &half(row())).is_err());
    }

    #[test]
    fn convolutions_of_one_kind_are_taken() {
        use burn::nn::conv::Conv2dConfig;
        let device = Device::flex();
        let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
        let config = |kernel| Conv2dConfig::new([32, 32], kernel).with_padding(padding.clone());
        let taken =
            |config: &Conv2dConfig, shape| conv3x3(&config.init(&device), ones(shape)).is_ok();
        let (usual, shape) = (config([3, 3]), [1, 32, 6, 8]);
        assert!(taken(&usual, shape) && taken(&usual.clone().with_bias(false), shape));
        for other in [
            config([1, 1]),
            config([3, 1]),
            usual.clone().with_stride([2, 2]),
            usual.clone().with_dilation([2, 2]),
            usual.clone().with_groups(2),
            usual.clone().with_padding(PaddingConfig2d::Valid),
            usual.clone().with_padding(PaddingConfig2d::Explicit(2, 2, 2, 2)),
        ] {
            assert!(!taken(&other, shape), "{other:?}");
        }
        assert!(!taken(&usual, [1, 32, 5, 8]) && !taken(&usual, [1, 32, 6, 7]));
        let narrow = Conv2dConfig::new([31, 32], [3, 3]).with_padding(padding.clone());
        assert!(!taken(&narrow, [1, 31, 6, 8]));
        let conv = usual.init(&device);
        assert!(conv3x3(&conv, half(ones(shape))).is_err());
        let weight = Param::from_tensor(half(ones([32, 32, 3, 3])));
        assert!(conv3x3(&Conv2d { weight, ..conv.clone() }, ones(shape)).is_err());
        let bias = Some(Param::from_tensor(half(ones([32]))));
        assert!(conv3x3(&Conv2d { bias, ..conv }, ones(shape)).is_err());
    }

    #[cfg(feature = "tch")]
    #[test]
    fn libtorch_supports_four_operations_without_autodiff() {
        let device = Device::libtorch();
        let x = Tensor::<2>::ones([2, 3], &device).cast(FloatDType::BF16);
        let tracked = Tensor::<2>::ones([2, 3], &device.autodiff());
        for operation in WITH_GRADIENTS.into_iter().chain(WITHOUT_GRADIENTS) {
            let fused = WITH_GRADIENTS[..4].contains(&operation);
            assert_eq!(supported(operation, &x), fused, "{operation:?}");
            assert!(!supported(operation, &tracked), "{operation:?}");
        }
    }

    #[cfg(feature = "tch")]
    #[test]
    fn kernels_of_libtorch_equal_those_of_flex() {
        use crate::{
            activation::linear_gelu_tanh,
            linear,
            modulation::{gated_sum, norm_and_modulate},
            noise::{Purpose, normal_batch},
        };
        let run = |device: &Device| {
            let draw = |index, shape: [usize; 3]| {
                normal_batch(3, Purpose::Weights, index, 0, shape, device)
            };
            let mut layer = linear::linear(6, 10, true, linear::NORMAL_02, device);
            layer.weight = Param::from_tensor(draw(0, [1, 6, 10]).reshape([6, 10]));
            layer.bias = Some(Param::from_tensor(draw(1, [1, 1, 10]).reshape([10])));
            let (x, y) = (draw(2, [2, 5, 6]), draw(4, [2, 5, 6]));
            let (scale, shift) = (draw(6, [2, 1, 6]), draw(8, [2, 1, 6]));
            [
                linear::forward(&layer, x.clone()),
                linear_gelu_tanh(&layer, x.clone()),
                norm_and_modulate(x.clone(), scale.clone(), shift, 1e-6),
                gated_sum(x, scale, y),
            ]
            .map(|x| x.into_data().try_to_vec::<f32>().unwrap())
        };
        for (found, expected) in run(&Device::libtorch()).iter().zip(run(&Device::flex())) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5 * (1.0 + expected.abs()));
            }
        }
    }
}
