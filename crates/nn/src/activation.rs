//! Activations of transformers and of the VAE.

use crate::kernels;
use burn::{
    nn::Linear,
    tensor::{
        Tensor,
        activation::{self, sigmoid},
    },
};

/// `sqrt(8 / pi)`, from `0.5 * (1 + tanh(z)) = sigmoid(2 z)` with `z = sqrt(2 / pi) * (x + 0.044715 x^3)`.
pub(crate) const TWICE_SQRT_2_OVER_PI: f64 = 1.595_769_121_605_730_7;

/// Returns GELU in the tanh approximation, `torch.nn.GELU(approximate="tanh")`; any shape.
///
/// Computed with a sigmoid (the identity above), since `tanh` is slow on burn's CPU backends.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    kernels::gelu(x).unwrap_or_else(|x| {
        // c (x + 0.044715 x^3) = x * (c + 0.044715 c x^2), in as few operations as possible.
        let square = x.clone() * x.clone();
        let inner = square * (0.044715 * TWICE_SQRT_2_OVER_PI) + TWICE_SQRT_2_OVER_PI;
        x.clone() * sigmoid(x * inner)
    })
}

/// Returns [`gelu_tanh`] of a linear layer's output, `[.., in] -> [.., out]`.
pub fn linear_gelu_tanh<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    kernels::linear_gelu(layer, x).unwrap_or_else(|x| gelu_tanh(layer.forward(x)))
}

/// Returns SiLU, `x * sigmoid(x)`; any shape.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    kernels::silu(x).unwrap_or_else(activation::silu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// Returns points and the values of `f` there, by the kernel and by burn's operations.
    fn by_kernel_and_operations(f: fn(Tensor<1>) -> Tensor<1>) -> [Vec<(f64, f64)>; 2] {
        let points: Vec<f32> = (-80..=80).map(|i| i as f32 * 0.25).collect();
        [Device::flex(), Device::flex().autodiff()].map(|device| {
            let got = f(Tensor::<1>::from_floats(points.as_slice(), &device));
            let got = got.into_data().try_to_vec::<f32>().unwrap();
            points.iter().zip(got).map(|(&x, y)| (x as f64, y as f64)).collect()
        })
    }

    #[test]
    fn gelu_equals_the_tanh_formula() {
        for (x, y) in by_kernel_and_operations(gelu_tanh).into_iter().flatten() {
            let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh();
            let want = 0.5 * x * (1.0 + tanh);
            assert!((y - want).abs() <= 2e-6 * (1.0 + want.abs()), "{x}: {y} != {want}");
        }
    }

    #[test]
    fn silu_equals_its_formula() {
        for (x, y) in by_kernel_and_operations(silu).into_iter().flatten() {
            let want = x / (1.0 + (-x).exp());
            assert!((y - want).abs() <= 1e-6 * (1.0 + want.abs()), "{x}: {y} != {want}");
        }
    }
}
