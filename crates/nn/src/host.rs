//! Linear maps of tensors that the host computes, with gradients: exchanges between processes.
//!
//! The gradient of a linear map is its transpose, so a [`HostMap`] says what it computes and which map is its
//! transpose. [`apply`] copies a tensor to the host, applies the map, and copies the result back; on flex, whose
//! tensors are in host memory, nothing is copied.

use crate::{
    kernels,
    read::{ReadError, read},
};
use burn::tensor::{Tensor, TensorData};
use std::{fmt::Debug, sync::Arc};

/// A linear map of flat tensors.
pub trait HostMap: Debug + Send + Sync {
    /// Returns the image of `x`, `[n] -> [m]`, with the dtype of `x`. `x` is an error if the device could not
    /// return the values.
    fn apply(&self, x: Result<TensorData, ReadError>) -> TensorData;

    /// Returns the transposed map, `[m] -> [n]`, which is applied to gradients.
    fn transposed(&self) -> Arc<dyn HostMap>;
}

/// Applies `map` to `x`, `[n] -> [m]`. With the feature `autodiff`, gradients are propagated by the transposed map, in
/// the order in which the backward pass meets the operations: the same for equal graphs.
pub fn apply(map: Arc<dyn HostMap>, x: Tensor<1>) -> Tensor<1> {
    if x.device().is_autodiff() { kernels::host_map(map, x) } else { on_host(&*map, x) }
}

/// Applies `map` to a tensor without autodiff.
pub(crate) fn on_host(map: &dyn HostMap, x: Tensor<1>) -> Tensor<1> {
    let (device, dtype) = (x.device(), x.dtype());
    Tensor::from_data(map.apply(read(x)), (&device, dtype))
}

#[cfg(all(test, feature = "autodiff", feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, FloatDType};

    /// `y[i] = x[i] + x[i + 1]`, or the transposed map.
    #[derive(Debug)]
    struct Neighbours {
        transposed: bool,
    }

    impl HostMap for Neighbours {
        fn apply(&self, x: Result<TensorData, ReadError>) -> TensorData {
            let x = x.expect("host memory");
            let dtype = x.dtype();
            let x = x.iter::<f32>().collect::<Vec<_>>();
            let at = |i: usize| x.get(i).copied().unwrap_or(0.0);
            let y: Vec<f32> = if self.transposed {
                (0..x.len() + 1).map(|i| at(i) + if i > 0 { at(i - 1) } else { 0.0 }).collect()
            } else {
                x.windows(2).map(|pair| pair[0] + pair[1]).collect()
            };
            let shape = [y.len()];
            TensorData::new(y, shape).convert_dtype(dtype)
        }

        fn transposed(&self) -> Arc<dyn HostMap> {
            Arc::new(Self { transposed: !self.transposed })
        }
    }

    fn neighbours(x: Tensor<1>) -> Tensor<1> {
        apply(Arc::new(Neighbours { transposed: false }), x)
    }

    fn values(x: Tensor<1>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    #[test]
    fn gradients_go_through_the_transposed_map() {
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let device = Device::flex();
            let x = Tensor::<1>::from_floats([1.0, 2.0, 4.0], &device).cast(dtype);
            assert_eq!(values(neighbours(x.clone())), [3.0, 6.0]);
            let x = Tensor::from_inner(x).require_grad();
            let weights = Tensor::<1>::from_floats([10.0, 1.0], &device.autodiff()).cast(dtype);
            let y = neighbours(x.clone() * 2.0);
            assert_eq!(y.dtype(), x.dtype());
            let gradients = (y * weights).sum().backward();
            assert_eq!(values(x.grad(&gradients).unwrap()), [20.0, 22.0, 2.0]);
        }
    }

    #[test]
    fn a_constant_has_no_gradient() {
        let device = Device::flex().autodiff();
        let x = Tensor::<1>::from_floats([1.0, 2.0], &device);
        let leaf = Tensor::<1>::from_floats([5.0], &device).require_grad();
        let gradients = (neighbours(x.clone()) * leaf.clone()).sum().backward();
        assert!(x.grad(&gradients).is_none());
        assert_eq!(values(leaf.grad(&gradients).unwrap()), [3.0]);
    }
}
