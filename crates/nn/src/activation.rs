//! Activations in the form that is fastest on burn's backends.

use crate::host::{self, Values};
#[cfg(feature = "flex")]
use crate::{fused::Fused, linear::fused_parameters};
#[cfg(feature = "tch")]
use crate::{linear::torch_parameters, torch::Torch};
#[cfg(any(feature = "flex", feature = "tch"))]
use burn::backend::Dispatch;
use burn::{
    nn::Linear,
    tensor::{
        Tensor,
        activation::{self, sigmoid},
    },
};

/// `sqrt(8 / pi)`, from `0.5 * (1 + tanh(z)) = sigmoid(2 z)` with `z = sqrt(2 / pi) * (x + 0.044715 x^3)`.
const TWICE_SQRT_2_OVER_PI: f64 = 1.595_769_121_605_730_7;

/// GELU in the tanh approximation, `torch.nn.GELU(approximate="tanh")`; any shape.
///
/// Written with a sigmoid: the same function (the identity above), without the `tanh` that is
/// slow on burn's CPU backends.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match Values::take(x) {
        Ok(values) => values.map(gelu_tanh_of),
        Err(x) => {
            // c (x + 0.044715 x^3) = x * (c + 0.044715 c x^2), in as few passes as there are.
            let square = x.clone() * x.clone();
            let inner = square * (0.044715 * TWICE_SQRT_2_OVER_PI) + TWICE_SQRT_2_OVER_PI;
            x.clone() * sigmoid(x * inner)
        }
    }
}

/// [`gelu_tanh`] of a linear layer's output, `[.., in] -> [.., out]`.
pub fn linear_gelu_tanh<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if let Some([weight, bias]) = fused_parameters(layer, &x) {
        return Tensor::from_dispatch(Dispatch::fused_linear_gelu(x.into_dispatch(), weight, bias));
    }
    #[cfg(feature = "tch")]
    if let Some([weight, bias]) = torch_parameters(layer, &x) {
        return Tensor::from_dispatch(Dispatch::torch_linear_gelu(x.into_dispatch(), weight, bias));
    }
    gelu_tanh(layer.forward(x))
}

/// [`gelu_tanh`] of one value.
#[inline(always)]
pub(crate) fn gelu_tanh_of(x: f32) -> f32 {
    let inner = x * (0.044715 * (x * x) + 1.0);
    x * host::sigmoid(inner * TWICE_SQRT_2_OVER_PI as f32)
}

/// The derivative of [`gelu_tanh_of`].
#[cfg(all(feature = "flex", feature = "autodiff"))]
#[inline(always)]
pub(crate) fn gelu_tanh_slope(x: f32) -> f32 {
    let square = 0.044715 * (x * x);
    let sigmoid = host::sigmoid(x * (square + 1.0) * TWICE_SQRT_2_OVER_PI as f32);
    let slope = (3.0 * square + 1.0) * TWICE_SQRT_2_OVER_PI as f32;
    sigmoid * (1.0 + x * (1.0 - sigmoid) * slope)
}

/// SiLU, `x * sigmoid(x)`; any shape.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match Values::take(x) {
        Ok(values) => values.map(|x| x * host::sigmoid(x)),
        Err(x) => activation::silu(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// The function of a range of points, on the host's own way and on burn's operations.
    fn both_ways(f: fn(Tensor<1>) -> Tensor<1>) -> [Vec<(f64, f64)>; 2] {
        let points: Vec<f32> = (-80..=80).map(|i| i as f32 * 0.25).collect();
        [Device::flex(), Device::flex().autodiff()].map(|device| {
            let got = f(Tensor::<1>::from_floats(points.as_slice(), &device));
            let got = got.into_data().try_to_vec::<f32>().unwrap();
            points.iter().zip(got).map(|(&x, y)| (x as f64, y as f64)).collect()
        })
    }

    #[test]
    fn gelu_equals_the_tanh_formula() {
        for (x, y) in both_ways(gelu_tanh).into_iter().flatten() {
            let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh();
            let want = 0.5 * x * (1.0 + tanh);
            assert!((y - want).abs() <= 2e-6 * (1.0 + want.abs()), "{x}: {y} != {want}");
        }
    }

    #[test]
    fn silu_equals_its_formula() {
        for (x, y) in both_ways(silu).into_iter().flatten() {
            let want = x / (1.0 + (-x).exp());
            assert!((y - want).abs() <= 1e-6 * (1.0 + want.abs()), "{x}: {y} != {want}");
        }
    }
}
