use super::*;
use crate::threads::run_ranks;
use burn::tensor::{Device, FloatDType};
use opensora_nn::{
    activation::gelu_tanh,
    linear::{self, NORMAL_02},
};

const RANKS: [usize; 4] = [1, 2, 3, 4];

/// Returns pseudo-random values in [-1, 1], rounded to `dtype`.
fn waves<const D: usize>(shape: [usize; D], phase: f32, dtype: FloatDType) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape(shape).cast(dtype)
}

/// Returns the part of rank `rank` along `axis`.
fn part<const D: usize>(x: &Tensor<D>, axis: usize, rank: usize, ranks: usize) -> Tensor<D> {
    let length = x.dims()[axis] / ranks;
    x.clone().narrow(axis, rank * length, length)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.cast(FloatDType::F32).into_data().try_to_vec::<f32>().unwrap()
}

/// Returns the output and the gradient of `x` for the loss `(f(x) * weights).sum()`.
fn with_gradient<const D: usize>(
    x: Tensor<D>,
    weights: Tensor<D>,
    f: impl Fn(Tensor<D>) -> Tensor<D>,
) -> (Vec<f32>, Vec<f32>) {
    let dtype = x.dtype();
    let leaf = Tensor::from_inner(x).require_grad();
    let y = f(leaf.clone());
    assert_eq!(y.dtype(), dtype);
    let gradients = (y.clone() * Tensor::from_inner(weights)).sum().backward();
    let gradient = leaf.grad(&gradients).unwrap();
    assert_eq!(gradient.dtype(), dtype);
    (values(y.inner()), values(gradient))
}

#[test]
fn all_to_all_moves_one_axis_to_the_other_and_gradients_back() {
    let dims = [2, 12, 3, 24, 5];
    for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16, FloatDType::F64] {
        for (split, concat) in [(1, 3), (3, 1)] {
            let (whole, weights) = (waves(dims, 0.0, dtype), waves(dims, 0.5, dtype));
            for ranks in RANKS {
                run_ranks(ranks, |group| {
                    let rank = group.rank();
                    let x = part(&whole, concat, rank, ranks);
                    let w = part(&weights, split, rank, ranks);
                    let moved = |x| all_to_all(x, split, concat, &group);
                    let (y, dx) = with_gradient(x, w, moved);
                    assert_eq!(y, values(part(&whole, split, rank, ranks)));
                    assert_eq!(dx, values(part(&weights, concat, rank, ranks)));
                });
            }
        }
    }
}

#[test]
fn the_two_axes_may_be_one() {
    // Part i of rank r becomes part r of rank i.
    run_ranks(3, |group| {
        let rank = group.rank();
        let x = waves([6, 4], rank as f32, FloatDType::F32);
        let y = all_to_all(x, 0, 0, &group);
        let expected = (0..3).map(|from| waves([6, 4], from as f32, FloatDType::F32));
        let expected: Vec<_> = expected.map(|x| part(&x, 0, rank, 3)).collect();
        assert_eq!(values(y), values(Tensor::cat(expected, 0)));
    });
}

#[test]
fn all_gather_concatenates_and_sums_gradients() {
    for dtype in [FloatDType::F32, FloatDType::BF16] {
        for ranks in RANKS {
            for axis in 0..3 {
                let mut dims = [3, 5, 2];
                dims[axis] *= ranks;
                let whole = waves(dims, 0.0, dtype);
                let weights = |rank: usize| waves(dims, 0.3 + rank as f32, dtype);
                // The gradient of the whole, in f32: the sum over ranks.
                let sum = (0..ranks).map(|rank| weights(rank).cast(FloatDType::F32));
                let sum = sum.reduce(|a, b| a + b).unwrap().cast(dtype);
                run_ranks(ranks, |group| {
                    let rank = group.rank();
                    let x = part(&whole, axis, rank, ranks);
                    let gather = |x| all_gather(x, axis, &group);
                    let (y, dx) = with_gradient(x, weights(rank), gather);
                    assert_eq!(y, values(whole.clone()));
                    assert_eq!(dx, values(part(&sum, axis, rank, ranks)));
                });
            }
        }
    }
}

#[test]
fn reduce_scatter_sums_and_gathers_gradients() {
    for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F64] {
        for ranks in RANKS {
            for axis in 0..2 {
                let dims = [12, 12];
                let inputs = |rank: usize| waves(dims, rank as f32, dtype);
                let wide = if dtype == FloatDType::F64 { dtype } else { FloatDType::F32 };
                let sum = (0..ranks).map(|rank| inputs(rank).cast(wide));
                let sum = sum.reduce(|a, b| a + b).unwrap().cast(dtype);
                let weights = waves(dims, 0.7, dtype);
                run_ranks(ranks, |group| {
                    let rank = group.rank();
                    let w = part(&weights, axis, rank, ranks);
                    let scatter = |x| reduce_scatter(x, axis, &group);
                    let (y, dx) = with_gradient(inputs(rank), w, scatter);
                    assert_eq!(y, values(part(&sum, axis, rank, ranks)));
                    assert_eq!(dx, values(weights.clone()));
                });
            }
        }
    }
}

#[test]
fn all_reduce_sums_values_and_gradients() {
    for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F64] {
        for ranks in RANKS {
            let dims = [3, 7];
            let tensor = |rank: usize, phase: f32| waves(dims, phase + rank as f32, dtype);
            let wide = if dtype == FloatDType::F64 { dtype } else { FloatDType::F32 };
            let sum = |phase| {
                let all = (0..ranks).map(|rank| tensor(rank, phase).cast(wide));
                values(all.reduce(|a, b| a + b).unwrap().cast(dtype))
            };
            run_ranks(ranks, |group| {
                let rank = group.rank();
                let reduce = |x| all_reduce(x, &group);
                let (y, dx) = with_gradient(tensor(rank, 0.0), tensor(rank, 0.5), reduce);
                assert_eq!(y, sum(0.0));
                assert_eq!(dx, sum(0.5));
            });
        }
    }
}

/// Of tokens divided along axis 2: a perceptron over channels, then a softmax over axis 2 and a mean over it.
fn network(x: Tensor<4>, layer: &burn::nn::Linear, group: &Group) -> Tensor<4> {
    let x = gelu_tanh(linear::forward(layer, x));
    let x = all_to_all(x, 1, 2, group);
    let x = burn::tensor::activation::softmax(x, 2) * 3.0;
    let x = all_to_all(x, 2, 1, group);
    let mean = all_reduce(x.clone().mean_dim(2), group) / group.size() as f64;
    x * mean
}

#[test]
fn a_network_has_the_same_gradients_on_any_number_of_ranks() {
    let (dims, width) = ([2, 12, 24, 4], 6);
    let (whole, weights) = (
        waves(dims, 0.0, FloatDType::F32),
        waves([dims[0], dims[1], dims[2], width], 0.5, FloatDType::F32),
    );
    let run = |group: Group| {
        let (rank, ranks) = (group.rank(), group.size());
        let device = Device::flex().autodiff();
        let mut layer = linear::linear(dims[3], width, true, NORMAL_02, &device);
        let matrix = Tensor::from_inner(waves([dims[3], width], 0.2, FloatDType::F32));
        layer.weight = burn::module::Param::from_tensor(matrix);
        // Tokens are divided along axis 2.
        let x = Tensor::from_inner(part(&whole, 2, rank, ranks)).require_grad();
        let y = network(x.clone(), &layer, &group);
        let w = Tensor::from_inner(part(&weights, 2, rank, ranks));
        let gradients = (y.clone() * w).sum().backward();
        let dw = layer.weight.val().grad(&gradients).unwrap();
        [
            values(all_gather(y.inner(), 2, &group)),
            values(all_gather(x.grad(&gradients).unwrap(), 2, &group)),
            values(all_reduce(dw, &group)),
        ]
    };
    let want = run_ranks(1, run).remove(0);
    for ranks in [2, 3, 4] {
        for got in run_ranks(ranks, run) {
            // Values, and gradients, which are sums of hundreds of numbers that cancel.
            for ((got, want), tolerance) in got.iter().zip(&want).zip([1e-5, 1e-4, 1e-4]) {
                let largest = want.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                assert_eq!(got.len(), want.len());
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() <= tolerance * largest, "{got} and {want}");
                }
            }
        }
    }
}

#[test]
fn an_output_that_the_loss_of_a_rank_does_not_use_is_kept() {
    run_ranks(2, |group| {
        let x = waves([2, 3], 0.0, FloatDType::F32);
        let x = Tensor::<2>::from_inner(x).require_grad();
        let y = all_gather(x.clone(), 0, &group);
        let own = x.clone().sum();
        let loss = if group.rank() == 0 { own + y.sum() } else { keep(own, y + f32::INFINITY) };
        let gradients = loss.clone().backward();
        assert!(loss.into_scalar::<f32>().is_finite());
        // One from its own loss, one from that of rank 0.
        assert_eq!(values(x.grad(&gradients).unwrap()), [2.0; 6]);
    });
}

#[test]
fn inputs_without_gradients_need_no_backward_pass() {
    run_ranks(2, |group| {
        let device = Device::flex().autodiff();
        let x = Tensor::from_inner(waves([4, 2], group.rank() as f32, FloatDType::F32));
        let scale = Tensor::<1>::from_floats([2.0], &device).require_grad();
        let y = all_reduce(x, &group) * scale.clone().reshape([1, 1]);
        let gradients = y.sum().backward();
        let sum = waves([4, 2], 0.0, FloatDType::F32) + waves([4, 2], 1.0, FloatDType::F32);
        let want = sum.sum().into_scalar::<f32>();
        let got = scale.grad(&gradients).unwrap().into_scalar::<f32>();
        assert!((got - want).abs() < 1e-5);
    });
}

#[test]
#[should_panic = "axis 1 of [2, 3]: found 3 positions, expected a multiple of 2 ranks"]
fn lengths_must_divide() {
    run_ranks(2, |group| {
        all_to_all(waves([2, 3], 0.0, FloatDType::F32), 1, 0, &group);
    });
}
