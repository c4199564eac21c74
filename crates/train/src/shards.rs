//! Slices of all parameters, one slice of each per rank, and the collectives between slices and whole tensors.
//!
//! Rank `r` of `N` has the elements `r * c .. (r + 1) * c` of a parameter of `n` elements, with `c = n / N` rounded
//! up; the last slices are shorter or empty. Gradients are reduced and parameters gathered in buckets of a few
//! megabytes, which hold pieces of consecutive slices, the same on all ranks.
//!
//! Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
//! (arXiv 1910.02054). Deviation: every parameter is divided, not the concatenation of all, so that each slice
//! belongs to one name in the optimizer and in checkpoints.

use crate::parameters::FlatTensors;
use burn::tensor::{DType, Tensor, TensorData};
use opensora_nn::read::{ReadError, read};
use opensora_parallel::Group;
use std::{collections::BTreeMap, ops::Range};

/// Default of the elements of a bucket: 4 MiB of f32.
pub(crate) const BUCKET: usize = 1 << 20;

/// Slices in host memory by the name of their parameter.
pub(crate) type HostSlices = BTreeMap<String, Vec<f32>>;

/// Returns the elements that `rank` of `size` ranks has of a parameter of `length` elements.
pub(crate) fn slice(length: usize, rank: usize, size: usize) -> Range<usize> {
    let chunk = length.div_ceil(size);
    (rank * chunk).min(length)..((rank + 1) * chunk).min(length)
}

/// The division of parameters among the ranks of a group.
#[derive(Debug, Clone)]
pub(crate) struct Shards {
    group: Group,
    /// Elements of every parameter.
    lengths: BTreeMap<String, usize>,
    /// Elements of a bucket over all ranks.
    bucket: usize,
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

    fn is_last(&self, size: usize) -> bool {
        self.to == self.length.div_ceil(size)
    }
}

impl Shards {
    pub(crate) fn new(group: Group, parameters: &FlatTensors) -> Self {
        let lengths = parameters.iter().map(|(name, value)| (name.clone(), value.dims()[0]));
        Self { group, lengths: lengths.collect(), bucket: BUCKET }
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

    /// Returns the pieces of the parameters `names`, in buckets.
    fn buckets<'a>(&'a self, names: impl Iterator<Item = &'a String>) -> Vec<Vec<Piece<'a>>> {
        let size = self.group.size();
        let limit = (self.bucket / size).max(1);
        let (mut buckets, mut bucket, mut filled) = (Vec::new(), Vec::new(), 0);
        for name in names {
            let Some(&length) = self.lengths.get(name) else { continue };
            let (chunk, mut from) = (length.div_ceil(size), 0);
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
        buckets
    }

    /// Adds `weight` times the gradients over all ranks and returns this rank's slices of the sums, by parameter.
    /// A rank without a gradient that others have contributes zero. A collective.
    ///
    /// The gradients of a bucket are freed after it.
    pub(crate) fn reduce(
        &self,
        gradients: FlatTensors,
        weight: f32,
    ) -> Result<HostSlices, ReadError> {
        let mut slices = HostSlices::new();
        self.each_reduced(gradients, weight, |piece, sums| {
            let own = piece.place(self.group.rank(), self.group.size()).len();
            let slice = slices.entry(piece.name.to_string()).or_default();
            slice.extend_from_slice(&sums[..own]);
        })?;
        slices.retain(|_, slice| !slice.is_empty());
        Ok(slices)
    }

    /// As [`reduce`](Self::reduce), for the sums of whole parameters. A collective.
    pub(crate) fn reduce_whole(
        &self,
        gradients: FlatTensors,
        weight: f32,
    ) -> Result<HostSlices, ReadError> {
        let slices = self.reduce(gradients, weight)?;
        let present: Vec<String> = self.present(|name| slices.contains_key(name));
        let mut whole = HostSlices::new();
        let bytes = |name: &str| Ok(slices.get(name).map_or(Vec::new(), |slice| bytes_of(slice)));
        self.gather(present.iter(), DType::F32, bytes, |name, bytes| {
            whole.insert(name.to_string(), floats_of(&bytes));
        })?;
        Ok(whole)
    }

    /// Returns the names of the parameters for which any rank's `mine` returns true. A collective.
    fn present(&self, mine: impl Fn(&str) -> bool) -> Vec<String> {
        let mut flags: Vec<f32> =
            self.lengths.keys().map(|name| f32::from(u8::from(mine(name)))).collect();
        self.group.all_reduce(opensora_parallel::Reduction::Max, &mut flags);
        let names = self.lengths.keys().zip(flags).filter(|(_, flag)| *flag > 0.0);
        names.map(|(name, _)| name.clone()).collect()
    }

    fn each_reduced(
        &self,
        mut gradients: FlatTensors,
        weight: f32,
        mut found: impl FnMut(&Piece<'_>, &[f32]),
    ) -> Result<(), ReadError> {
        let (size, present) =
            (self.group.size(), self.present(|name| gradients.contains_key(name)));
        let mut host: Option<(String, Vec<f32>)> = None;
        for bucket in self.buckets(present.iter()) {
            let chunk: usize = bucket.iter().map(|piece| piece.to - piece.from).sum();
            let mut input = vec![0.0; chunk * size];
            let mut at = 0;
            for piece in &bucket {
                if host.as_ref().is_none_or(|(name, _)| name != piece.name) {
                    let gradient = gradients.remove(piece.name).map(floats).transpose()?;
                    host = gradient.map(|values| (piece.name.to_string(), values));
                }
                // A missing gradient is zero.
                for rank in 0..if host.is_some() { size } else { 0 } {
                    let place = piece.place(rank, size);
                    let values = host.as_ref().map_or(&[][..], |(_, values)| &values[place]);
                    let target = &mut input[rank * chunk + at..][..values.len()];
                    for (target, value) in target.iter_mut().zip(values) {
                        *target = value * weight;
                    }
                }
                at += piece.to - piece.from;
                if piece.is_last(size) {
                    host = None;
                }
            }
            let mut output = vec![0.0; chunk];
            self.group.reduce_scatter(&input, &mut output);
            let mut at = 0;
            for piece in &bucket {
                found(piece, &output[at..]);
                at += piece.to - piece.from;
            }
        }
        Ok(())
    }

    /// Gathers the slices of the parameters `names` in elements of `dtype`: `own` returns the bytes of this rank's
    /// slice, and `found` gets the bytes of each whole parameter, one after another. A collective.
    pub(crate) fn gather<'a>(
        &'a self,
        names: impl Iterator<Item = &'a String>,
        dtype: DType,
        own: impl Fn(&str) -> Result<Vec<u8>, ReadError>,
        mut found: impl FnMut(&str, Vec<u8>),
    ) -> Result<(), ReadError> {
        let (size, width) = (self.group.size(), dtype.size());
        let mut host = Vec::new();
        let mut whole = Vec::new();
        for bucket in self.buckets(names) {
            let chunk: usize = bucket.iter().map(|piece| piece.to - piece.from).sum();
            let mut input = vec![0; chunk * width];
            let mut at = 0;
            for piece in &bucket {
                if piece.from == 0 {
                    host = own(piece.name)?;
                }
                let held = piece.place(self.group.rank(), size).len();
                let begin = if held == 0 { 0 } else { piece.from * width };
                let values = &host[begin..][..held * width];
                input[at * width..][..values.len()].copy_from_slice(values);
                at += piece.to - piece.from;
            }
            let mut output = vec![0; chunk * width * size];
            self.group.all_gather(&input, &mut output);
            let mut at = 0;
            for piece in &bucket {
                if piece.from == 0 {
                    whole = vec![0; piece.length * width];
                }
                for rank in 0..size {
                    let place = piece.place(rank, size);
                    let values = &output[(rank * chunk + at) * width..][..place.len() * width];
                    whole[place.start * width..place.end * width].copy_from_slice(values);
                }
                at += piece.to - piece.from;
                if piece.is_last(size) {
                    found(piece.name, std::mem::take(&mut whole));
                }
            }
        }
        Ok(())
    }

    /// Gathers whole parameters from the `slices` of all ranks, cast to `dtype`, on the device of the slices.
    /// Every rank names the same parameters of the division. A collective.
    pub(crate) fn gather_tensors<'a>(
        &'a self,
        names: impl Iterator<Item = &'a String>,
        slices: &FlatTensors,
        dtype: DType,
        mut found: impl FnMut(&str, TensorData),
    ) -> Result<(), ReadError> {
        let own = |name: &str| match slices.get(name) {
            Some(slice) => Ok(read(slice.clone().cast(dtype))?.as_bytes().to_vec()),
            None => Ok(Vec::new()),
        };
        self.gather(names, dtype, own, |name, bytes| {
            let length = bytes.len() / dtype.size();
            let data = match dtype {
                // Aligned as f32.
                DType::F32 => TensorData::new(floats_of(&bytes), [length]),
                _ => TensorData::from_bytes_vec(bytes, [length], dtype),
            };
            found(name, data);
        })
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

/// Returns the values of a tensor as f32.
fn floats(tensor: Tensor<1>) -> Result<Vec<f32>, ReadError> {
    let data = read(tensor.cast(DType::F32))?;
    Ok(data.as_slice::<f32>().map_or_else(|_| data.iter().collect(), <[f32]>::to_vec))
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().map(|value| value.to_ne_bytes()).collect::<Vec<_>>().into_flattened()
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|value| f32::from_ne_bytes(*value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use opensora_parallel::threads::run_ranks;

    const LENGTHS: [(&str, usize); 5] = [("a", 1), ("b", 100), ("c", 7), ("d", 1000), ("e", 2)];

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
        Shards { bucket, ..Shards::new(group, &tensors(0, &["a", "b", "c", "d", "e"])) }
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
        for (size, bucket) in [(1, 16), (2, 16), (3, 64), (4, 1), (4, 1 << 20)] {
            run_ranks(size, |group| {
                let rank = group.rank();
                let shards = shards(group, bucket);
                // Nobody has "c", and only rank 0 has "e".
                let names = if rank == 0 { &["a", "b", "d", "e"][..] } else { &["a", "b", "d"] };
                let slices = shards.reduce(tensors(rank, names), 0.5).unwrap();
                let whole = shards.reduce_whole(tensors(rank, names), 0.5).unwrap();
                assert_eq!(whole.keys().collect::<Vec<_>>(), ["a", "b", "d", "e"]);
                for (name, sums) in &whole {
                    let ranks = if name == "e" { 1 } else { size };
                    let expected = |index| -> f32 {
                        (0..ranks).map(|rank| 0.5 * value(name, index, rank)).sum()
                    };
                    let expected: Vec<f32> = (0..sums.len()).map(expected).collect();
                    assert_eq!(sums, &expected, "{name} in buckets of {bucket}");
                    let own = shards.own(sums.len());
                    assert_eq!(slices.get(name).map_or(&[][..], Vec::as_slice), &expected[own]);
                }
            });
        }
    }

    #[test]
    fn slices_are_gathered_in_every_dtype() {
        for (size, bucket) in [(2, 16), (3, 10), (4, 1 << 20)] {
            run_ranks(size, |group| {
                let shards = shards(group, bucket);
                let whole = tensors(0, &["a", "b", "c", "d", "e"]);
                let own = shards.take(&whole);
                for dtype in [DType::F32, DType::BF16] {
                    let mut found = Vec::new();
                    let names = shards.lengths().keys();
                    shards
                        .gather_tensors(names, &own, dtype, |name, data| {
                            let expected = whole[name].clone().cast(dtype).into_data();
                            assert_eq!(data, expected, "{name}, {size} ranks");
                            found.push(name.to_string());
                        })
                        .unwrap();
                    assert_eq!(found, ["a", "b", "c", "d", "e"]);
                }
                let sum = shards.square_sum([[3.0, 4.0].as_slice()].into_iter());
                assert_eq!(sum, 25.0 * size as f64);
            });
        }
    }
}
