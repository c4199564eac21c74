//! Linear layers with the initial weights that transformers want, and in the form that is fastest.

#[cfg(feature = "flex")]
use crate::fused::{self, Fused};
#[cfg(feature = "tch")]
use crate::torch::{self, Torch};
#[cfg(any(feature = "flex", feature = "tch"))]
use burn::{
    backend::{Dispatch, DispatchTensor},
    module::Param,
};
use burn::{
    module::Initializer,
    nn::Linear,
    tensor::{Device, Tensor},
};

/// A layer `input -> output` with weights from `initializer` and, where wanted, a bias of zeros.
///
/// burn's own configuration draws the bias from the same distribution as the weights; the models
/// here start from zero biases.
pub fn linear(
    input: usize,
    output: usize,
    bias: bool,
    initializer: Initializer,
    device: &Device,
) -> Linear {
    Linear {
        weight: initializer.init_with([input, output], Some(input), Some(output), device),
        bias: bias.then(|| Initializer::Zeros.init([output], device)),
    }
}

/// `torch.nn.init.xavier_uniform_`.
pub const XAVIER: Initializer = Initializer::XavierUniform { gain: 1.0 };

/// `torch.nn.init.normal_(std=0.02)`.
pub const NORMAL_02: Initializer = Initializer::Normal { mean: 0.0, std: 0.02 };

/// The output of `layer`, `[.., in] -> [.., out]`: that of its own `forward` up to rounding, and faster on
/// processors with wide vectors or a matrix unit (on which an infinity makes NaN of what it meets, and
/// numbers below f32's normal range count as zero).
pub fn forward<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if let Some([weight, bias]) = fused_parameters(layer, &x) {
        return Tensor::from_dispatch(Dispatch::fused_linear(x.into_dispatch(), weight, bias));
    }
    #[cfg(feature = "tch")]
    if let Some([weight, bias]) = torch_parameters(layer, &x) {
        return Tensor::from_dispatch(Dispatch::torch_linear(x.into_dispatch(), weight, bias));
    }
    layer.forward(x)
}

/// Weight and bias of `layer` where [`Fused`] takes them and `x`.
#[cfg(feature = "flex")]
pub(crate) fn fused_parameters<const D: usize>(
    layer: &Linear,
    x: &Tensor<D>,
) -> Option<[DispatchTensor; 2]> {
    parameters(layer, fused::takes(x), |weight, bias| fused::takes(weight) && fused::takes(bias))
}

/// Weight and bias of `layer` where [`Torch`] takes them and `x`.
#[cfg(feature = "tch")]
pub(crate) fn torch_parameters<const D: usize>(
    layer: &Linear,
    x: &Tensor<D>,
) -> Option<[DispatchTensor; 2]> {
    let dtype = x.dtype();
    parameters(layer, torch::takes(x), |weight, bias| [weight.dtype(), bias.dtype()] == [dtype; 2])
}

/// Weight and bias of `layer`, a bias of zeros where it has none, if `may` and these `fit`.
#[cfg(any(feature = "flex", feature = "tch"))]
fn parameters(
    layer: &Linear,
    may: bool,
    fit: impl FnOnce(&Tensor<2>, &Tensor<1>) -> bool,
) -> Option<[DispatchTensor; 2]> {
    if !may {
        return None;
    }
    let weight = layer.weight.val();
    let bias =
        layer.bias.as_ref().map(Param::val).unwrap_or_else(|| {
            Tensor::zeros([weight.dims()[1]], (&weight.device(), weight.dtype()))
        });
    fit(&weight, &bias).then(|| [weight.into_dispatch(), bias.into_dispatch()])
}

#[cfg(all(test, feature = "autodiff"))]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_agree, waves};
    use burn::module::ParamId;

    /// Sizes with products of burn's and of our own, each with its weight as `[in, out]` and as a transposed
    /// view, as loading leaves it.
    #[test]
    fn layers_equal_burns() {
        for [rows, input, output] in [[3, 5, 7], [300, 256, 260]] {
            for transposed in [false, true] {
                let layer = |weight: Tensor<2>, bias: Tensor<2>| Linear {
                    weight: Param::initialized(
                        ParamId::new(),
                        if transposed { weight.transpose() } else { weight },
                    ),
                    bias: Some(Param::initialized(ParamId::new(), bias.reshape([output]))),
                };
                let shape = if transposed { [output, input] } else { [input, output] };
                let inputs =
                    [waves([rows, input], 0.0), waves(shape, 1.0) * 0.1, waves([1, output], 2.0)];
                assert_gradients_agree(
                    inputs.clone(),
                    |[x, weight, bias]| forward(&layer(weight, bias), x),
                    |[x, weight, bias]| x.matmul(layer(weight, bias.clone()).weight.val()) + bias,
                );
                assert_gradients_agree(
                    inputs,
                    |[x, weight, bias]| {
                        crate::activation::linear_gelu_tanh(&layer(weight, bias), x)
                    },
                    |[x, weight, bias]| {
                        let x = x.matmul(layer(weight, bias.clone()).weight.val()) + bias;
                        let square = x.clone() * x.clone() * 0.044715 + 1.0;
                        (((x.clone() * square) * 0.797_884_56).tanh() + 1.0) * x * 0.5
                    },
                );
            }
        }
    }
}
