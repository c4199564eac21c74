//! A model's parameters as named, flat tensors.
//!
//! The trained values are held outside the module: one f32 tensor `[N]` for each parameter, under
//! the parameter's path. Optimizer, moving average, gradients and checkpoints are maps of the same
//! names for every model. In each pass the values are the leaves of a fresh graph, and the module's
//! parameters are views of the leaves, cast to the type that is computed in. So gradients arrive at
//! the f32 values.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, FloatDType, Gradients, Tensor},
};
use opensora_checkpoint::ParameterNames;
use opensora_nn::read::{ReadError, read};
use std::collections::BTreeMap;

/// Flat tensors by parameter path.
pub type FlatTensors = BTreeMap<String, Tensor<1>>;

/// Returns the parameters of a module as flat f32 tensors, without autodiff and contiguous.
///
/// # Errors
/// Returns an error if the device fails.
pub fn values<M: Module>(module: &M) -> Result<FlatTensors, ReadError> {
    let mut collector = Collector::default();
    module.visit(&mut collector);
    collector.failed.map_or(Ok(collector.values), Err)
}

/// Replaces all parameters of a module by views of one zero, which keeps shapes and frees the memory.
pub(crate) fn hollow<M: Module>(module: M) -> M {
    module.map(&mut Hollow)
}

/// Replaces the parameters of `module` that are in `values`, cast to `dtype`. Other parameters are kept.
///
/// # Panics
/// Panics if the length of a value differs from the parameter's.
pub fn filled<M: Module>(module: M, values: &FlatTensors, dtype: FloatDType) -> M {
    module.map(&mut Filler { names: ParameterNames::default(), values, dtype })
}

/// A module on an autodiff graph, with the leaves of its parameters.
#[derive(Debug)]
pub struct Graph<M> {
    /// The module; its parameters are views of the leaves.
    pub model: M,
    leaves: FlatTensors,
}

impl<M: Module> Graph<M> {
    /// Creates a graph on `values`. Those for which `trainable` returns true get gradients.
    pub(crate) fn new(
        hollow: M,
        values: &FlatTensors,
        trainable: impl Fn(&str) -> bool,
        dtype: FloatDType,
    ) -> Self {
        let on_graph: FlatTensors = values
            .iter()
            .map(|(name, value)| {
                let value = Tensor::from_inner(value.clone());
                (name.clone(), if trainable(name) { value.require_grad() } else { value })
            })
            .collect();
        let model = filled(hollow, &on_graph, dtype);
        let leaves = on_graph.into_iter().filter(|(name, _)| trainable(name)).collect();
        Self { model, leaves }
    }

    /// Moves the leaves' gradients out of `grads` and adds them to `sum`.
    pub fn collect(&self, grads: &mut Gradients, sum: &mut FlatTensors) {
        for (name, leaf) in &self.leaves {
            // Leaves of a sharded trainer have the type to compute in.
            let Some(grad) = leaf.grad_remove(grads).map(as_f32) else { continue };
            let grad = match sum.remove(name) {
                Some(before) => before + grad,
                None => grad,
            };
            sum.insert(name.clone(), grad);
        }
    }

    /// Returns the gradients of `loss` for all leaves that it depends on.
    pub fn backward(&self, loss: Tensor<1>) -> FlatTensors {
        let mut sum = FlatTensors::new();
        self.collect(&mut loss.backward(), &mut sum);
        sum
    }
}

fn as_f32(tensor: Tensor<1>) -> Tensor<1> {
    if tensor.dtype() == DType::F32 { tensor } else { tensor.cast(FloatDType::F32) }
}

#[derive(Default)]
struct Collector {
    names: ParameterNames,
    values: FlatTensors,
    failed: Option<ReadError>,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val().inner().cast(FloatDType::F32);
        let length = value.shape().num_elements();
        // Through the host: a parameter can be a transposed view, and a resumed run must start from
        // the same memory layout as the run that wrote the checkpoint.
        let device = value.device();
        match read(value) {
            Ok(value) => {
                let value = Tensor::<D>::from_data(value, &device).reshape([length]);
                self.values.insert(self.names.path(), value);
            }
            Err(error) => self.failed = Some(error),
        }
    }
}

struct Hollow;

impl ModuleMapper for Hollow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        let zero = Tensor::<D>::zeros([1; D], &device).inner().expand(shape);
        Param::initialized(param.id, zero)
    }
}

struct Filler<'a> {
    names: ParameterNames,
    values: &'a FlatTensors,
    dtype: FloatDType,
}

impl ModuleMapper for Filler<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(value) = self.values.get(&self.names.path()) else { return param };
        let value = value.clone().reshape(param.lazy_shape());
        let fits = value.dtype() == self.dtype.into();
        let value = if fits { value } else { value.cast(self.dtype) };
        Param::initialized(param.id, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{nn::LinearConfig, tensor::Device};

    #[test]
    fn gradients_arrive_at_the_leaves_and_frozen_parameters_get_none() {
        let device = Device::flex();
        let linear = LinearConfig::new(3, 2).init(&device);
        let values = values(&linear).unwrap();
        assert_eq!(values.keys().collect::<Vec<_>>(), ["bias", "weight"]);
        let hollow = hollow(linear);
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let graph = Graph::new(hollow.clone(), &values, |name| name == "weight", dtype);
            let x = Tensor::<2>::ones([4, 3], &device).cast(dtype);
            let loss = graph.model.forward(x).cast(FloatDType::F32).sum();
            let grads = graph.backward(loss);
            assert_eq!(grads.keys().collect::<Vec<_>>(), ["weight"]);
            assert_eq!(grads["weight"].to_data().try_to_vec::<f32>().unwrap(), [4.0; 6]);
        }
    }
}
