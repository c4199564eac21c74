//! Helpers for the tests of layers.

use burn::tensor::{Device, Tensor};

/// Returns pseudo-random values in [-1, 1], on flex.
pub(crate) fn waves<const D: usize>(shape: [usize; D], phase: f32) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape(shape)
}

/// Compares a layer with equivalent operations of burn: its output with and without autodiff, and the
/// gradients of all inputs.
pub(crate) fn assert_gradients_agree<const N: usize, const D: usize>(
    inputs: [Tensor<D>; N],
    layer: impl Fn([Tensor<D>; N]) -> Tensor<D>,
    operations: impl Fn([Tensor<D>; N]) -> Tensor<D>,
) {
    let with_gradients = |f: &dyn Fn([Tensor<D>; N]) -> Tensor<D>| {
        let leaves = inputs.clone().map(|x| Tensor::from_inner(x).require_grad());
        let output = f(leaves.clone());
        let weights = Tensor::from_inner(waves(output.dims(), 0.5));
        let gradients = (output.clone() * weights).sum().backward();
        (output.inner(), leaves.map(|leaf| leaf.grad(&gradients).expect("a gradient")))
    };
    let (want, want_gradients) = with_gradients(&operations);
    let (got, got_gradients) = with_gradients(&layer);
    assert_near(&got, &want);
    assert_near(&layer(inputs.clone()), &want);
    for (got, want) in got_gradients.iter().zip(&want_gradients) {
        assert_near(got, want);
    }
}

/// Compares with a tolerance for rounding in sums of a few hundred numbers of about 1.
fn assert_near<const D: usize>(got: &Tensor<D>, want: &Tensor<D>) {
    assert_eq!(got.dims(), want.dims());
    let largest = want.clone().abs().max().into_scalar::<f32>();
    let distance = (got.clone() - want.clone()).abs().max().into_scalar::<f32>();
    assert!(distance <= 1e-5 * largest.max(1.0), "{distance} of {largest}");
}
