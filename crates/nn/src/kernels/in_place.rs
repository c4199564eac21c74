//! Updates several flex tensors by a closure, in one pass over memory. Not an operation of
//! [`FusedOps`](super::FusedOps), whose arguments are tensors and numbers only.

use burn::tensor::Tensor;

/// Elements of each tensor in one task: few enough for a core's cache, many enough to outweigh the cost
/// of a task.
#[cfg(feature = "flex")]
pub(crate) const CHUNK: usize = 1 << 14;

/// Updates equally long f32 tensors in host memory by `f`, in parallel chunks of [`CHUNK`] elements;
/// gives other tensors back as the error. See [`crate::pointwise::change`].
#[cfg(feature = "flex")]
pub(crate) fn update_in_place<const N: usize, R: Send>(
    tensors: [Tensor<1>; N],
    f: impl Fn([&mut [f32]; N]) -> R + Sync,
) -> Result<([Tensor<1>; N], Vec<R>), [Tensor<1>; N]> {
    use super::flex::vectorized;
    use burn::tensor::{DType, TensorData};
    use rayon::prelude::*;

    const { assert!(N > 0) };
    let fits = |x: &Tensor<1>| {
        x.dtype() == DType::F32
            && x.dims() == tensors[0].dims()
            && crate::device::is_host(&x.device())
    };
    if !tensors.iter().all(fits) {
        return Err(tensors);
    }
    let device = tensors[0].device();
    // Moved out of the tensors, not copied, unless something else holds them.
    let read = |x| crate::read::read(x).expect("flex tensors are in host memory");
    let mut tensors: [TensorData; N] = tensors.map(read);
    let mut chunks =
        tensors.each_mut().map(|x| x.as_mut_slice().expect("f32, checked above").chunks_mut(CHUNK));
    let chunks = std::iter::from_fn(|| {
        let chunks = chunks.each_mut().map(Iterator::next);
        chunks.iter().all(Option::is_some).then(|| chunks.map(Option::unwrap_or_default))
    });
    let chunks: Vec<[&mut [f32]; N]> = chunks.collect();
    let results = chunks.into_par_iter().map(|chunk| {
        vectorized(
            #[inline(always)]
            || f(chunk),
        )
    });
    let results = results.collect();
    Ok((tensors.map(|x| Tensor::from_data(x, (&device, DType::F32))), results))
}

/// Gives the tensors back as the error: without the feature `flex`, none is supported. See
/// [`crate::pointwise::change`].
#[cfg(not(feature = "flex"))]
pub(crate) fn update_in_place<const N: usize, R: Send>(
    tensors: [Tensor<1>; N],
    _: impl Fn([&mut [f32]; N]) -> R + Sync,
) -> Result<([Tensor<1>; N], Vec<R>), [Tensor<1>; N]> {
    Err(tensors)
}
