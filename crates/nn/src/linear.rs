//! Linear layers, with the initial weights of transformers.

use crate::kernels;
use burn::{
    module::Initializer,
    nn::Linear,
    tensor::{Device, Tensor},
};

/// Returns a layer `input -> output` with weights from `initializer` and, if `bias`, a bias of zeros.
///
/// burn's `LinearConfig` draws the bias from the distribution of the weights; these models start from zero
/// biases.
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

/// Returns the output of `layer`, `[.., in] -> [.., out]`: equal to burn's `forward` up to rounding, and
/// faster on flex and tch.
///
/// On processors with AMX, infinities become NaN in flex's products, and subnormal numbers count as zero.
pub fn forward<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    kernels::linear(layer, x).unwrap_or_else(|x| layer.forward(x))
}

#[cfg(all(test, feature = "autodiff"))]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_agree, waves};
    use burn::module::{Param, ParamId};

    /// Sizes below and above the threshold of `opensora_gemm`, each with its weight as `[in, out]` and as a
    /// transposed view, the layout of loaded weights.
    #[test]
    fn layers_equal_those_of_burn() {
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
