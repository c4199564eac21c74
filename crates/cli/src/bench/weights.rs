//! Random weights in the layout of loaded ones.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{FloatDType, Tensor, TensorData},
};
use opensora::checkpoint::ParameterNames;

/// Returns `module` with small random weights in `dtype`, the same ones in every call.
///
/// Weights of linear layers are transposed views, as after [`import`](opensora::checkpoint::import). The host
/// holds one tensor at a time.
pub(crate) fn random<M: Module>(module: M, dtype: FloatDType) -> M {
    module.map(&mut Filler { names: ParameterNames::default(), dtype, state: 1 })
}

struct Filler {
    names: ParameterNames,
    dtype: FloatDType,
    state: u64,
}

impl Filler {
    /// Draws uniform values around zero with a standard deviation of about `1 / sqrt(fan_in)`, so that
    /// activations keep their scale through any number of layers. The generator is a linear congruential one
    /// (Knuth's MMIX), which is fast; the quality of the numbers does not matter.
    fn draw(&mut self, shape: &[usize]) -> Vec<f32> {
        let fan_in: usize = shape.iter().skip(1).product();
        let scale = (12.0 / fan_in.max(1) as f32).sqrt();
        (0..shape.iter().product::<usize>())
            .map(|_| {
                self.state = self
                    .state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((self.state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * scale
            })
            .collect()
    }
}

impl ModuleMapper for Filler {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let device = param.lazy_device();
        let mut shape = param.lazy_shape().to_vec();
        let transposed = self.names.is_transposed();
        if transposed {
            shape.reverse();
        }
        let data = TensorData::new(self.draw(&shape), shape).convert_dtype(self.dtype.into());
        let value = Tensor::<D>::from_data(data, (&device, self.dtype.into()));
        Param::initialized(param.id, if transposed { value.transpose() } else { value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{nn::LinearConfig, tensor::Device};

    #[test]
    fn activations_keep_their_size_and_weights_repeat() {
        let device = Device::flex();
        let layer = || random(LinearConfig::new(64, 256).init(&device), FloatDType::F32);
        let weight = layer().weight.val();
        assert_eq!(weight.dims(), [64, 256]);
        assert_eq!(weight.to_data(), layer().weight.val().to_data());
        let variance = (weight.clone() * weight).mean().into_scalar::<f32>();
        assert!((variance * 64.0 - 1.0).abs() < 0.1, "{variance}");
    }
}
