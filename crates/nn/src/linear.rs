//! Linear layers with the initial weights that transformers want.

use burn::{module::Initializer, nn::Linear, tensor::Device};

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
