//! Activations in the form that is fastest on burn's backends.

use burn::tensor::{Tensor, activation::sigmoid};

/// `sqrt(8 / pi)`, from `0.5 * (1 + tanh(z)) = sigmoid(2 z)` with `z = sqrt(2 / pi) * (x + 0.044715 x^3)`.
const TWICE_SQRT_2_OVER_PI: f64 = 1.595_769_121_605_730_7;

/// GELU in the tanh approximation, `torch.nn.GELU(approximate="tanh")`; any shape.
///
/// Written with a sigmoid: the same function (the identity above), without the `tanh` that is
/// slow on burn's CPU backends.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    // x + 0.044715 x^3 = x * (1 + 0.044715 x^2)
    let inner = x.clone() * ((x.clone() * x.clone()) * 0.044715 + 1.0);
    x * sigmoid(inner * TWICE_SQRT_2_OVER_PI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_tanh_formula() {
        let device = burn::tensor::Device::flex();
        let points: Vec<f32> = (-80..=80).map(|i| i as f32 * 0.25).collect();
        let got = gelu_tanh(Tensor::<1>::from_floats(points.as_slice(), &device));
        let got = got.into_data().try_to_vec::<f32>().unwrap();
        for (x, y) in points.iter().map(|&x| x as f64).zip(got) {
            let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh();
            let want = 0.5 * x * (1.0 + tanh);
            assert!((y as f64 - want).abs() <= 2e-6 * (1.0 + want.abs()), "{x}: {y} != {want}");
        }
    }
}
