//! Maps that the host computes, as operations of burn's autodiff graph: see [`crate::host`].

#![cfg_attr(
    not(any(feature = "flex", feature = "tch")),
    allow(unused_variables, reason = "the macro's functions pass their arguments to no backend")
)]

use crate::host::{HostMap, on_host};
#[cfg(feature = "autodiff")]
use burn::backend::{
    Autodiff,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
};
use burn::{
    backend::{
        Backend, BackendTensor, DispatchKindConversion, DispatchTensor, backend_extension,
        tensor::FloatTensor,
    },
    tensor::Tensor,
};
use std::sync::Arc;

/// Maps on the primitives of a backend. The implementations of all backends are [`through_host`].
#[backend_extension(
    Cube: cfg(any(
        feature = "cuda",
        feature = "rocm",
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal"
    )),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Autodiff: cfg(feature = "autodiff")
)]
pub(crate) trait HostOps: Backend {
    /// Applies `map` to `x`, `[n] -> [m]`.
    fn host_map(x: FloatTensor<Self>, map: Arc<dyn HostMap>) -> FloatTensor<Self>;
}

macro_rules! backends {
    ($($backend:ident: $cfg:meta),+) => {
        $(
            #[cfg($cfg)]
            impl HostOps for burn::backend::$backend {
                fn host_map(x: FloatTensor<Self>, map: Arc<dyn HostMap>) -> FloatTensor<Self> {
                    through_host::<Self>(x, &*map)
                }
            }
        )+
    };
}

backends!(
    Cube: any(
        feature = "cuda",
        feature = "rocm",
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal"
    ),
    Flex: feature = "flex",
    NdArray: feature = "ndarray",
    LibTorch: feature = "tch"
);

/// Applies `map` to a tensor of backend `B` as to one of any backend.
fn through_host<B: Backend>(x: FloatTensor<B>, map: &dyn HostMap) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    let x = Tensor::from_dispatch(DispatchTensor::from_backend(BackendTensor::Float(x)));
    match DispatchTensor::try_into_backend(on_host(map, x).into_dispatch()) {
        Ok(y) => y.float(),
        Err(error) => unreachable!("a tensor made on the device of B: {error}"),
    }
}

#[cfg(feature = "autodiff")]
impl<B: HostOps, C: CheckpointStrategy> HostOps for Autodiff<B, C> {
    fn host_map(x: FloatTensor<Self>, map: Arc<dyn HostMap>) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let y = B::host_map(x.into_primitive(), map.clone());
        // Compute bound: checkpointing by operation does not repeat the exchange with other processes.
        match Transposed.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(map, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// The backward pass of a map: its transpose.
#[cfg(feature = "autodiff")]
#[derive(Debug)]
struct Transposed;

#[cfg(feature = "autodiff")]
impl<B: HostOps> Backward<B, 1> for Transposed {
    type State = Arc<dyn HostMap>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, B::host_map(dy, ops.state.transposed()));
        }
    }
}
