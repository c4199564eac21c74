//! Slices of all parameters, one slice of each per rank, and the collectives between slices and whole tensors.
//!
//! Rank `r` of `N` has the elements `r * c .. (r + 1) * c` of a parameter of `n` elements, with `c = n / N` rounded
//! up; the last slices are shorter or empty. Gradients are reduced and parameters gathered in buckets of
//! [`bucket_bytes`], which hold pieces of consecutive slices, the same on all ranks. A large parameter that is divided
//! evenly forms its own bucket, which needs no copy: its slices are contiguous, as collectives expect.
//!
//! Buffers are kept between steps, and large tensors in host memory are sent from and received in their own memory:
//! each copy of all gradients is one of the few passes over memory that a step of a small model makes.
//!
//! Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
//! (arXiv 1910.02054). Deviation: every parameter is divided, not the concatenation of all, so that each slice
//! belongs to one name in the optimizer and in checkpoints.

mod bucket;

use crate::parameters::FlatTensors;
use bucket::change_together;
use burn::tensor::{DType, Element, Tensor, TensorData, bf16, f16};
use bytemuck::Pod;
use opensora_nn::read::{ReadError, read};
use opensora_parallel::{Group, Reduction, Scratch, bucket_bytes};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// A parameter of at least `bucket / LARGE` elements forms its own bucket: a copy of it would take longer than the latency
/// of another collective.
pub(crate) const LARGE: usize = 16;

/// Values in host memory by the name of their parameter.
pub(crate) type HostValues = BTreeMap<String, TensorData>;

/// Slices in host memory by the name of their parameter.
pub(crate) type HostSlices = BTreeMap<String, Vec<f32>>;

/// Returns the elements that `rank` of `size` ranks has of a parameter of `length` elements.
pub(crate) fn slice(length: usize, rank: usize, size: usize) -> Range<usize> {
    let chunk = length.div_ceil(size);
    (rank * chunk).min(length)..((rank + 1) * chunk).min(length)
}

/// The division of parameters among the ranks of a group.
#[derive(Debug)]
pub(crate) struct Shards {
    group: Group,
    /// Elements of every parameter.
    lengths: BTreeMap<String, usize>,
    /// Elements of a bucket over all ranks.
    bucket: usize,
    scratch: Mutex<Scratch>,
}

/// A piece of a bucket: elements `from..to` of each rank's slice of a parameter.
struct Piece<'a> {
    name: &'a str,
    length: usize,
    from: usize,
    to: usize,
}

impl Piece<'_> {
    /// Returns where the piece of `rank` is in the whole parameter. It is shorter than the piece, or empty, at
    /// the end of the parameter.
    fn place(&self, rank: usize, size: usize) -> Range<usize> {
        let begin = rank * self.length.div_ceil(size);
        (begin + self.from).min(self.length)..(begin + self.to).min(self.length)
    }

    /// Returns the elements of each rank.
    fn len(&self) -> usize {
        self.to - self.from
    }

    fn is_last(&self, size: usize) -> bool {
        self.to == self.length.div_ceil(size)
    }
}

impl Shards {
    pub(crate) fn new(group: Group, parameters: &FlatTensors) -> Self {
        let lengths = parameters.iter().map(|(name, value)| (name.clone(), value.dims()[0]));
        let bucket = bucket_bytes(group.size()) / size_of::<f32>();
        Self { group, lengths: lengths.collect(), bucket, scratch: Mutex::default() }
    }

    /// Returns this rank's elements of a parameter of `length` elements.
    pub(crate) fn own(&self, length: usize) -> Range<usize> {
        slice(length, self.group.rank(), self.group.size())
    }

    /// Returns the number of elements of every parameter.
    pub(crate) fn lengths(&self) -> &BTreeMap<String, usize> {
        &self.lengths
    }

    /// Returns this rank's slices of whole parameters. Empty slices are left out.
    pub(crate) fn take(&self, parameters: &FlatTensors) -> FlatTensors {
        let own = parameters.iter().filter_map(|(name, value)| {
            let own = self.own(value.dims()[0]);
            // A copy: a view would keep the whole parameter in memory.
            let copy = |own: Range<usize>| value.clone().narrow(0, own.start, own.len()) * 1.0;
            (!own.is_empty()).then(|| (name.clone(), copy(own)))
        });
        own.collect()
    }

    /// Returns true if a parameter of `length` elements forms its own bucket.
    fn is_large(&self, length: usize) -> bool {
        length.is_multiple_of(self.group.size()) && length >= (self.bucket / LARGE).max(1)
    }

    /// Returns the pieces of the parameters `names`, in buckets. Large parameters come last, so that the pieces of
    /// another parameter are in neighbouring buckets.
    fn buckets<'a>(&'a self, names: impl Iterator<Item = &'a String>) -> Vec<Vec<Piece<'a>>> {
        let size = self.group.size();
        let limit = (self.bucket / size).max(1);
        let (mut buckets, mut bucket, mut filled) = (Vec::new(), Vec::new(), 0);
        let mut large = Vec::new();
        for name in names {
            let Some(&length) = self.lengths.get(name) else { continue };
            let (chunk, mut from) = (length.div_ceil(size), 0);
            if self.is_large(length) {
                large.push(vec![Piece { name, length, from, to: chunk }]);
                continue;
            }
            while from < chunk {
                let to = chunk.min(from + limit - filled);
                bucket.push(Piece { name, length, from, to });
                filled += to - from;
                from = to;
                if filled == limit {
                    buckets.push(std::mem::take(&mut bucket));
                    filled = 0;
                }
            }
        }
        if !bucket.is_empty() {
            buckets.push(bucket);
        }
        buckets.append(&mut large);
        buckets
    }

    /// Adds `weight` times the gradients over all ranks and returns this rank's slices of the sums, by parameter.
    /// A rank without a gradient that others have contributes zero. A collective.
    ///
    /// The gradients of a bucket are freed after it.
    pub(crate) fn reduce(
        &self,
        mut gradients: FlatTensors,
        weight: f32,
    ) -> Result<HostSlices, ReadError> {
        let present = self.present(|name| gradients.contains_key(name));
        let mut slices = HostSlices::new();
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut host = None;
        for bucket in self.buckets(present.iter()) {
            if let [piece] = &bucket[..]
                && self.is_large(piece.length)
                && let Some(gradient) = gradients.remove(piece.name)
            {
                let mut gradient = on_host(gradient)?;
                if weight != 1.0 {
                    floats_mut(&mut gradient).iter_mut().for_each(|value| *value *= weight);
                }
                let mut own = vec![0.0; piece.len()];
                self.group.reduce_scatter(floats(&gradient), &mut own);
                slices.insert(piece.name.to_string(), own);
                continue;
            }
            let mut sums =
                self.reduce_bucket(&bucket, &mut gradients, &mut host, weight, &mut scratch)?;
            for piece in &bucket {
                let (piece_sums, rest) = sums.split_at(piece.len());
                let own = piece.place(self.group.rank(), self.group.size()).len();
                let slice = slices.entry(piece.name.to_string()).or_default();
                slice.extend_from_slice(&piece_sums[..own]);
                sums = rest;
            }
        }
        slices.retain(|_, slice| !slice.is_empty());
        Ok(slices)
    }

    /// Copies the pieces of a bucket together, reduces them, and returns this rank's part. `host` has the gradient
    /// whose last piece is in a later bucket.
    fn reduce_bucket<'a>(
        &self,
        bucket: &[Piece<'_>],
        gradients: &mut FlatTensors,
        host: &mut Option<TensorData>,
        weight: f32,
        scratch: &'a mut Scratch,
    ) -> Result<&'a [f32], ReadError> {
        let size = self.group.size();
        let chunk: usize = bucket.iter().map(Piece::len).sum();
        let [sent, received] = scratch.slices::<f32, 2>([chunk * size, chunk]);
        let mut at = 0;
        for piece in bucket {
            if piece.from == 0 {
                *host = gradients.remove(piece.name).map(on_host).transpose()?;
            }
            for rank in 0..size {
                // A missing gradient is zero, and so are the elements after the end of a parameter.
                let values =
                    host.as_ref().map_or(&[][..], |host| &floats(host)[piece.place(rank, size)]);
                let target = &mut sent[rank * chunk + at..][..piece.len()];
                let (scaled, rest) = target.split_at_mut(values.len());
                for (target, value) in scaled.iter_mut().zip(values) {
                    *target = value * weight;
                }
                rest.fill(0.0);
            }
            at += piece.len();
            if piece.is_last(size) {
                *host = None;
            }
        }
        self.group.reduce_scatter(sent, received);
        Ok(received)
    }

    /// Adds the gradients over all ranks and returns the sums of whole parameters. They have the same bits as those of
    /// [`reduce`](Self::reduce). A collective.
    pub(crate) fn reduce_whole(&self, mut gradients: FlatTensors) -> Result<HostValues, ReadError> {
        let mut whole = HostValues::new();
        for name in self.present(|name| gradients.contains_key(name)) {
            let data = match gradients.remove(&name) {
                Some(gradient) => on_host(gradient)?,
                None => TensorData::zeros::<f32, _>([self.lengths[&name]]),
            };
            whole.insert(name, data);
        }
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let reduce = |buffer: &mut [f32]| self.group.all_reduce(Reduction::Sum, buffer);
        let (mut bucket, mut filled): (Vec<&mut [f32]>, _) = (Vec::new(), 0);
        for data in whole.values_mut() {
            let values = floats_mut(data);
            if values.len() >= (self.bucket / LARGE).max(1) {
                reduce(values);
                continue;
            }
            if filled + values.len() > self.bucket {
                change_together(&mut scratch, &mut bucket, reduce);
                bucket.clear();
                filled = 0;
            }
            filled += values.len();
            bucket.push(values);
        }
        change_together(&mut scratch, &mut bucket, reduce);
        Ok(whole)
    }

    /// Returns the names of the parameters for which any rank's `mine` returns true. A collective.
    fn present(&self, mine: impl Fn(&str) -> bool) -> Vec<String> {
        let mut flags: Vec<f32> =
            self.lengths.keys().map(|name| f32::from(u8::from(mine(name)))).collect();
        self.group.all_reduce(Reduction::Max, &mut flags);
        let names = self.lengths.keys().zip(flags).filter(|(_, flag)| *flag > 0.0);
        names.map(|(name, _)| name.clone()).collect()
    }

    /// Gathers whole parameters from the `slices` of all ranks, cast to `dtype`. Every rank names the same parameters
    /// of the division. `found` gets the parameters one after another, in the memory of `old` where it has values of
    /// the same name. A collective.
    pub(crate) fn gather<'a>(
        &'a self,
        names: impl Iterator<Item = &'a String>,
        slices: &FlatTensors,
        dtype: DType,
        old: HostValues,
        found: impl FnMut(&str, TensorData),
    ) -> Result<(), ReadError> {
        match dtype {
            DType::F64 => self.gather_as::<f64>(names, slices, old, found),
            DType::F32 => self.gather_as::<f32>(names, slices, old, found),
            DType::F16 => self.gather_as::<f16>(names, slices, old, found),
            DType::BF16 => self.gather_as::<bf16>(names, slices, old, found),
            dtype => unreachable!("{dtype:?} is no dtype of parameters"),
        }
    }

    fn gather_as<'a, E: Element + Pod>(
        &'a self,
        names: impl Iterator<Item = &'a String>,
        slices: &FlatTensors,
        mut old: HostValues,
        mut found: impl FnMut(&str, TensorData),
    ) -> Result<(), ReadError> {
        let (rank, size) = (self.group.rank(), self.group.size());
        let own = |name: &str| slices.get(name).map(|own| read(own.clone().cast(E::dtype())));
        let mut memory = |piece: &Piece<'_>| {
            let old = old.remove(piece.name).filter(|old| old.dtype() == E::dtype());
            old.unwrap_or_else(|| TensorData::zeros::<E, _>([piece.length]))
        };
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut host, mut whole) = (None, None);
        for bucket in self.buckets(names) {
            if let [piece] = &bucket[..]
                && self.is_large(piece.length)
                && let Some(own) = own(piece.name)
            {
                let (own, mut whole) = (own?, memory(piece));
                let received = bytemuck::cast_slice_mut(elements_mut::<E>(&mut whole));
                self.group.all_gather(bytemuck::cast_slice(elements::<E>(&own)), received);
                found(piece.name, whole);
                continue;
            }
            let chunk: usize = bucket.iter().map(Piece::len).sum();
            let [sent, received] = scratch.slices::<E, 2>([chunk, chunk * size]);
            let mut at = 0;
            for piece in &bucket {
                if piece.from == 0 {
                    host = own(piece.name).transpose()?;
                }
                let held = piece.place(rank, size).len();
                if let Some(host) = host.as_ref().filter(|_| held > 0) {
                    let values = &elements::<E>(host)[piece.from..][..held];
                    sent[at..][..held].copy_from_slice(values);
                }
                at += piece.len();
            }
            self.group.all_gather(bytemuck::cast_slice(sent), bytemuck::cast_slice_mut(received));
            let mut at = 0;
            for piece in &bucket {
                let mut data = whole.take().unwrap_or_else(|| memory(piece));
                for rank in 0..size {
                    let place = piece.place(rank, size);
                    let values = &received[rank * chunk + at..][..place.len()];
                    elements_mut::<E>(&mut data)[place].copy_from_slice(values);
                }
                at += piece.len();
                if piece.is_last(size) {
                    found(piece.name, data);
                } else {
                    whole = Some(data);
                }
            }
        }
        Ok(())
    }

    /// Replaces the values of all ranks by those of rank 0. A collective.
    pub(crate) fn broadcast(&self, values: &mut FlatTensors) -> Result<(), ReadError> {
        for value in values.values_mut() {
            let (device, dtype, shape) = (value.device(), value.dtype(), value.dims());
            let mut bytes = read(value.clone())?.as_bytes().to_vec();
            self.group.broadcast(0, &mut bytes);
            *value = Tensor::from_data(TensorData::from_bytes_vec(bytes, shape, dtype), &device);
        }
        Ok(())
    }

    /// Returns the sum of the squares of all slices over all ranks, added in the order of ranks. A collective.
    pub(crate) fn square_sum<'a>(&self, slices: impl Iterator<Item = &'a [f32]>) -> f64 {
        // Short runs, so that f32 lanes lose nothing.
        const RUN: usize = 4096;
        let runs = slices.flat_map(|slice| slice.chunks(RUN));
        let mut own = 0.0;
        for run in runs {
            own += crate::optimizer::square_sum(run);
        }
        let mut all = vec![0; 8 * self.group.size()];
        self.group.all_gather(&f64::to_ne_bytes(own), &mut all);
        all.as_chunks::<8>().0.iter().map(|sum| f64::from_ne_bytes(*sum)).sum()
    }
}

/// Returns the values of a tensor as f32, in the tensor's memory if that is possible.
fn on_host(tensor: Tensor<1>) -> Result<TensorData, ReadError> {
    read(tensor.cast(DType::F32))
}

/// Returns the values of data of [`on_host`].
pub(crate) fn floats(data: &TensorData) -> &[f32] {
    elements(data)
}

fn floats_mut(data: &mut TensorData) -> &mut [f32] {
    elements_mut(data)
}

fn elements<E: Element>(data: &TensorData) -> &[E] {
    data.as_slice().expect("host memory of this dtype")
}

fn elements_mut<E: Element>(data: &mut TensorData) -> &mut [E] {
    data.as_mut_slice().expect("host memory of this dtype")
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use opensora_parallel::threads::run_ranks;

    const LENGTHS: [(&str, usize); 5] = [("a", 1), ("b", 100), ("c", 7), ("d", 1000), ("e", 6)];

    /// The value of an element on a rank: an integer, so that sums are exact.
    fn value(name: &str, index: usize, rank: usize) -> f32 {
        (name.len() + index * 3 + rank * 5) as f32
    }

    fn tensors(rank: usize, names: &[&str]) -> FlatTensors {
        let made = LENGTHS.iter().filter(|(name, _)| names.contains(name)).map(|(name, length)| {
            let values: Vec<f32> = (0..*length).map(|index| value(name, index, rank)).collect();
            let data = TensorData::new(values, [*length]);
            (name.to_string(), Tensor::from_data(data, &Device::flex()))
        });
        made.collect()
    }

    fn shards(group: Group, bucket: usize) -> Shards {
        let mut shards = Shards::new(group, &tensors(0, &["a", "b", "c", "d", "e"]));
        shards.bucket = bucket;
        shards
    }

    #[test]
    fn slices_cover_a_parameter() {
        for (length, size) in [(1, 4), (9, 4), (8, 3), (0, 2)] {
            let slices = (0..size).flat_map(|rank| slice(length, rank, size)).collect::<Vec<_>>();
            assert_eq!(slices, (0..length).collect::<Vec<_>>());
        }
    }

    #[test]
    fn gradients_are_added_in_buckets_of_any_size() {
        // With 2 ranks and 2,000, "d" alone fills a bucket; with 200, "b" does too. With 3 ranks and 64, "e" does, and
        // "d" before it has pieces in several buckets.
        let sizes =
            [(1, 16), (2, 16), (2, 200), (2, 2000), (3, 64), (4, 1), (4, 900), (4, 1 << 20)];
        for (size, bucket) in sizes {
            run_ranks(size, |group| {
                let rank = group.rank();
                let shards = shards(group, bucket);
                // Nobody has "c", and only rank 0 has "e".
                let names = if rank == 0 { &["a", "b", "d", "e"][..] } else { &["a", "b", "d"] };
                let slices = shards.reduce(tensors(rank, names), 0.5).unwrap();
                let halves = tensors(rank, names).into_iter().map(|(name, x)| (name, x * 0.5));
                let whole = shards.reduce_whole(halves.collect()).unwrap();
                assert_eq!(whole.keys().collect::<Vec<_>>(), ["a", "b", "d", "e"]);
                for (name, sums) in &whole {
                    let sums = floats(sums);
                    let ranks = if name == "e" { 1 } else { size };
                    let expected = |index| -> f32 {
                        (0..ranks).map(|rank| 0.5 * value(name, index, rank)).sum()
                    };
                    let expected: Vec<f32> = (0..sums.len()).map(expected).collect();
                    assert_eq!(sums, expected, "{name} in buckets of {bucket}");
                    let own = shards.own(sums.len());
                    assert_eq!(slices.get(name).map_or(&[][..], Vec::as_slice), &expected[own]);
                }
            });
        }
    }

    #[test]
    fn slices_are_gathered_in_every_dtype() {
        for (size, bucket) in [(2, 16), (2, 200), (3, 10), (4, 1 << 20)] {
            run_ranks(size, |group| {
                let shards = shards(group, bucket);
                let whole = tensors(0, &["a", "b", "c", "d", "e"]);
                let own = shards.take(&whole);
                for dtype in [DType::F32, DType::BF16] {
                    let mut found = Vec::new();
                    let names = shards.lengths().keys();
                    // Memory with other values, of one parameter.
                    let old = TensorData::new(vec![9.0f32; 1000], [1000]);
                    let old = HostValues::from([("d".to_string(), old)]);
                    shards
                        .gather(names, &own, dtype, old, |name, data| {
                            let expected = whole[name].clone().cast(dtype).into_data();
                            assert_eq!(data, expected, "{name}, {size} ranks");
                            found.push(name.to_string());
                        })
                        .unwrap();
                    // Large parameters come last.
                    found.sort();
                    assert_eq!(found, ["a", "b", "c", "d", "e"]);
                }
                let sum = shards.square_sum([[3.0, 4.0].as_slice()].into_iter());
                assert_eq!(sum, 25.0 * size as f64);
            });
        }
    }
}
