//! Collectives over tensors, through which gradients are propagated.
//!
//! Each rank passes its tensor, of the same shape and dtype on all ranks. The gradient of a collective is its
//! transpose, for the sum of the losses of all ranks:
//!
//! | collective | gradient |
//! |---|---|
//! | [`all_to_all`] | [`all_to_all`] with the axes exchanged |
//! | [`all_gather`] | [`reduce_scatter`] |
//! | [`reduce_scatter`] | [`all_gather`] |
//! | [`all_reduce`] | [`all_reduce`] |
//!
//! Values move in the tensor's dtype; sums are in f32 (f64 for f64) and rounded once. In a group of one rank every
//! function returns its input.
//!
//! # Order
//! A backward pass repeats the collectives in the reverse order, which burn derives from the graph: equal graphs, equal
//! order. So all ranks must compute the same graph. Inputs require gradients on all ranks or on none, and if the
//! loss of a rank does not depend on the output of a collective that matters on another rank, [`keep`] adds the
//! dependency.
//!
//! # Example
//!
//! Each rank holds rows of a matrix, and sees columns in between:
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use opensora_parallel::{tensor::all_to_all, threads::run_ranks};
//!
//! let sums = run_ranks(2, |group| {
//!     let first = 4.0 * group.rank() as f32;
//!     let row = Tensor::<2>::from_floats([[first, first + 1.0, first + 2.0, first + 3.0]], &Device::flex());
//!     let columns = all_to_all(row, 1, 0, &group); // [1, 4] -> [2, 2]
//!     let columns = columns.cumsum(0);
//!     let row = all_to_all(columns, 0, 1, &group); // [2, 2] -> [1, 4]
//!     row.to_data().try_to_vec::<f32>().unwrap()
//! });
//! assert_eq!(sums, [[0.0, 1.0, 2.0, 3.0], [4.0, 6.0, 8.0, 10.0]]);
//! ```

use crate::{Group, Reduction};
use burn::tensor::{DType, Element, Tensor, TensorData, bf16, f16};
use bytemuck::Pod;
use opensora_nn::{
    host::{self, HostMap},
    read::ReadError,
};
use std::sync::Arc;

/// Divides axis `split` among the ranks, and concatenates the received parts along axis `concat`, in the order of
/// ranks: `[.., split, .., concat, ..] -> [.., split / N, .., concat * N, ..]` on N ranks.
///
/// # Panics
/// Panics if the length of axis `split` is not a multiple of the number of ranks.
pub fn all_to_all<const D: usize>(
    x: Tensor<D>,
    split: usize,
    concat: usize,
    group: &Group,
) -> Tensor<D> {
    if group.size() == 1 {
        return x;
    }
    let part = part_of(x.dims(), split, group);
    let received = exchange(Collective::AllToAll, parts(x, split, group), group);
    join(received, part, concat, group)
}

/// Concatenates the tensors of all ranks along `axis`, in the order of ranks: `[.., n, ..] -> [.., n * N, ..]` on N
/// ranks.
pub fn all_gather<const D: usize>(x: Tensor<D>, axis: usize, group: &Group) -> Tensor<D> {
    if group.size() == 1 {
        return x;
    }
    let part = x.dims();
    join(exchange(Collective::AllGather, flat(x), group), part, axis, group)
}

/// Divides `axis` among the ranks, and returns the sum of all ranks' parts with this rank's number:
/// `[.., n, ..] -> [.., n / N, ..]` on N ranks.
///
/// # Panics
/// Panics if the length of `axis` is not a multiple of the number of ranks.
pub fn reduce_scatter<const D: usize>(x: Tensor<D>, axis: usize, group: &Group) -> Tensor<D> {
    if group.size() == 1 {
        return x;
    }
    let part = part_of(x.dims(), axis, group);
    exchange(Collective::ReduceScatter, parts(x, axis, group), group).reshape(part)
}

/// Returns the sum of the tensors of all ranks.
pub fn all_reduce<const D: usize>(x: Tensor<D>, group: &Group) -> Tensor<D> {
    if group.size() == 1 {
        return x;
    }
    let dims = x.dims();
    exchange(Collective::AllReduce, flat(x), group).reshape(dims)
}

/// Returns `x` so that it also depends on `unused`, with a gradient of zero: for a rank whose loss does not use the output
/// of a collective that the losses of other ranks use.
pub fn keep<const D: usize, const E: usize>(x: Tensor<D>, unused: Tensor<E>) -> Tensor<D> {
    let element = unused.slice([(); E].map(|()| 0..1));
    // Not a product with zero, which infinities and NaN survive.
    let all = element.zeros_like().equal_elem(0.0);
    x + element.mask_fill(all, 0.0).reshape([1; D])
}

/// Returns the shape of a rank's part of `dims`.
fn part_of<const D: usize>(mut dims: [usize; D], axis: usize, group: &Group) -> [usize; D] {
    let (length, ranks) = (dims[axis], group.size());
    assert!(
        length.is_multiple_of(ranks),
        "axis {axis} of {dims:?}: found {length} positions, expected a multiple of {ranks} ranks"
    );
    dims[axis] /= ranks;
    dims
}

/// Returns the parts of the ranks along `axis`, one after the other.
fn parts<const D: usize>(x: Tensor<D>, axis: usize, group: &Group) -> Tensor<1> {
    let (dims, ranks) = (x.dims(), group.size());
    let outer = dims[..axis].iter().product::<usize>();
    let inner = dims[axis..].iter().product::<usize>() / ranks;
    // [outer, axis, ..] -> [outer, N, axis / N * ..] -> [N, outer, axis / N * ..]
    flat(x.reshape([outer, ranks, inner]).swap_dims(0, 1))
}

/// Concatenates parts of shape `part`, which stand one after the other, along `axis`.
fn join<const D: usize>(
    parts: Tensor<1>,
    part: [usize; D],
    axis: usize,
    group: &Group,
) -> Tensor<D> {
    let ranks = group.size();
    let outer = part[..axis].iter().product::<usize>();
    let inner = part[axis..].iter().product::<usize>();
    let mut dims = part;
    dims[axis] *= ranks;
    // [N, outer, axis * ..] -> [outer, N, axis * ..] -> [outer, N * axis, ..]
    parts.reshape([ranks, outer, inner]).swap_dims(0, 1).reshape(dims)
}

fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let length = x.dims().iter().product::<usize>();
    x.reshape([length])
}

fn exchange(collective: Collective, x: Tensor<1>, group: &Group) -> Tensor<1> {
    host::apply(Arc::new(Exchange { collective, group: group.clone() }), x)
}

/// A collective over flat tensors.
#[derive(Debug, Clone, Copy)]
enum Collective {
    /// `[N m] -> [N m]`
    AllToAll,
    /// `[m] -> [N m]`
    AllGather,
    /// `[N m] -> [m]`
    ReduceScatter,
    /// `[m] -> [m]`
    AllReduce,
}

/// A collective of a group.
#[derive(Debug)]
struct Exchange {
    collective: Collective,
    group: Group,
}

impl HostMap for Exchange {
    fn apply(&self, x: Result<TensorData, ReadError>) -> TensorData {
        let x = x.unwrap_or_else(|error| self.group.abort(&error.to_string()));
        match self.collective {
            Collective::AllToAll | Collective::AllGather => match x.dtype() {
                DType::F32 => self.moved::<f32>(&x),
                DType::F64 => self.moved::<f64>(&x),
                DType::F16 => self.moved::<f16>(&x),
                DType::BF16 => self.moved::<bf16>(&x),
                dtype => unreachable!("{dtype:?} is no dtype of float tensors"),
            },
            Collective::ReduceScatter | Collective::AllReduce => self.summed(x),
        }
    }

    fn transposed(&self) -> Arc<dyn HostMap> {
        let collective = match self.collective {
            Collective::AllToAll => Collective::AllToAll,
            Collective::AllGather => Collective::ReduceScatter,
            Collective::ReduceScatter => Collective::AllGather,
            Collective::AllReduce => Collective::AllReduce,
        };
        Arc::new(Self { collective, group: self.group.clone() })
    }
}

impl Exchange {
    fn moved<E: Element + Pod>(&self, x: &TensorData) -> TensorData {
        let x = x.as_slice::<E>().expect("host memory of this dtype");
        let gathers = matches!(self.collective, Collective::AllGather);
        let length = if gathers { x.len() * self.group.size() } else { x.len() };
        let mut y = vec![E::zeroed(); length];
        let (input, output) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(&mut y));
        if gathers {
            self.group.all_gather(input, output);
        } else {
            self.group.all_to_all(input, output);
        }
        TensorData::new(y, [length])
    }

    fn summed(&self, x: TensorData) -> TensorData {
        let dtype = x.dtype();
        if dtype == DType::F64 {
            return self.summed_f64(x);
        }
        let mut x = x.convert::<f32>();
        let numbers = x.as_mut_slice::<f32>().expect("host memory of f32");
        let y = if matches!(self.collective, Collective::ReduceScatter) {
            let mut y = vec![0.0; numbers.len() / self.group.size()];
            self.group.reduce_scatter(numbers, &mut y);
            let length = y.len();
            TensorData::new(y, [length])
        } else {
            self.group.all_reduce(Reduction::Sum, numbers);
            x
        };
        y.convert_dtype(dtype)
    }

    fn summed_f64(&self, mut x: TensorData) -> TensorData {
        let numbers = x.as_mut_slice::<f64>().expect("host memory of f64");
        self.group.all_reduce_f64(Reduction::Sum, numbers);
        if !matches!(self.collective, Collective::ReduceScatter) {
            return x;
        }
        let part = numbers.len() / self.group.size();
        let mine = numbers[self.group.rank() * part..][..part].to_vec();
        TensorData::new(mine, [part])
    }
}

#[cfg(test)]
mod tests;
