//! Collectives of any size and with sums in the order of ranks, from exchanges of limited size.
//!
//! MPI counts elements in 32 bits, so larger buffers are exchanged in pieces. Sums are not MPI's: it may choose another
//! order for another size or network. A sum exchanges the parts of a piece between all ranks, and each rank adds its
//! part in the order of ranks; [`all_reduce`] then gathers the parts. This sends as many bytes as the ring
//! algorithm, and returns the same bits on every network, and on in-process ranks.

use crate::{
    Reduction, Scratch, bucket_bytes,
    reduce::{Number, accumulate},
};
use bytemuck::Pod;

/// Exchanges of bytes between the ranks of a group, of at most [`Limits::message`] bytes.
pub(crate) trait Transport {
    fn size(&self) -> usize;
    fn broadcast(&self, root: usize, buffer: &mut [u8]);
    fn all_gather(&self, input: &[u8], output: &mut [u8]);
    fn all_to_all(&self, input: &[u8], output: &mut [u8]);
}

/// Limits of pieces, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The longest buffer of an exchange.
    pub(crate) message: usize,
    /// The longest piece of a sum, which bounds the additional memory.
    pub(crate) sum: usize,
    /// The longest buffer of which a sum gathers all copies on all ranks, in one exchange instead of two.
    pub(crate) small: usize,
}

impl Limits {
    /// Returns the limits of `ranks` ranks. A piece is as long as a bucket, so that the bucket of a
    /// [`reduce_scatter`] is sent without a copy.
    pub(crate) const fn of(ranks: usize) -> Self {
        Self { message: 1 << 30, sum: bucket_bytes(ranks), small: 16 << 10 }
    }
}

pub(crate) fn broadcast(ranks: &impl Transport, limits: Limits, root: usize, buffer: &mut [u8]) {
    buffer.chunks_mut(limits.message).for_each(|piece| ranks.broadcast(root, piece));
}

pub(crate) fn all_gather(ranks: &impl Transport, limits: Limits, input: &[u8], output: &mut [u8]) {
    let (size, part) = (ranks.size(), input.len());
    assert_eq!(output.len(), part * size, "one part per rank");
    if output.len() <= limits.message {
        return ranks.all_gather(input, output);
    }
    let longest = (limits.message / size).max(1);
    let mut received = vec![0; longest * size];
    for start in (0..part).step_by(longest) {
        let piece = &input[start..part.min(start + longest)];
        let received = &mut received[..piece.len() * size];
        ranks.all_gather(piece, received);
        for (rank, received) in received.chunks(piece.len()).enumerate() {
            output[rank * part + start..][..piece.len()].copy_from_slice(received);
        }
    }
}

pub(crate) fn all_to_all(ranks: &impl Transport, limits: Limits, input: &[u8], output: &mut [u8]) {
    let (size, part) = (ranks.size(), input.len() / ranks.size());
    assert_eq!(input.len(), output.len(), "as much is received as sent");
    assert_eq!(input.len(), part * size, "one part per rank");
    if input.len() <= limits.message {
        return ranks.all_to_all(input, output);
    }
    let longest = (limits.message / size).max(1);
    let mut buffers = [vec![0; longest * size], vec![0; longest * size]];
    for start in (0..part).step_by(longest) {
        let length = longest.min(part - start);
        let [sent, received] = buffers.each_mut().map(|buffer| &mut buffer[..length * size]);
        for (rank, sent) in sent.chunks_mut(length).enumerate() {
            sent.copy_from_slice(&input[rank * part + start..][..length]);
        }
        ranks.all_to_all(sent, received);
        for (rank, received) in received.chunks(length).enumerate() {
            output[rank * part + start..][..length].copy_from_slice(received);
        }
    }
}

pub(crate) fn reduce_scatter<N: Number + Pod>(
    ranks: &impl Transport,
    limits: Limits,
    scratch: &mut Scratch,
    input: &[N],
    output: &mut [N],
) {
    let (size, part) = (ranks.size(), output.len());
    assert_eq!(input.len(), part * size, "one part per rank");
    let longest = (limits.sum.min(limits.message) / size_of::<N>() / size).clamp(1, part.max(1));
    // Parts of a piece must be contiguous; a single piece is the input itself.
    let copied = if longest < part { longest * size } else { 0 };
    let [received, copies]: [&mut [N]; 2] = scratch.slices([longest * size, copied]);
    for (index, output) in output.chunks_mut(longest).enumerate() {
        let (start, length) = (index * longest, output.len());
        let sent = if length == part {
            input
        } else {
            for (rank, sent) in copies[..length * size].chunks_mut(length).enumerate() {
                sent.copy_from_slice(&input[rank * part + start..][..length]);
            }
            &copies[..length * size]
        };
        let received = &mut received[..length * size];
        ranks.all_to_all(bytemuck::cast_slice(sent), bytemuck::cast_slice_mut(received));
        sum_of_parts(Reduction::Sum, received, output);
    }
}

pub(crate) fn all_reduce<N: Number + Pod>(
    ranks: &impl Transport,
    limits: Limits,
    scratch: &mut Scratch,
    reduction: Reduction,
    buffer: &mut [N],
) {
    let size = ranks.size();
    if size_of_val(buffer) * size <= limits.small.min(limits.message) {
        return all_reduce_small(ranks, scratch, reduction, buffer);
    }
    // A multiple of the number of ranks.
    let longest = (limits.sum.min(limits.message) / size_of::<N>() / size).max(1) * size;
    let whole = buffer.len() / size * size;
    let (parts, rest) = buffer.split_at_mut(whole);
    let longest = longest.min(whole).max(size);
    let [received, sum]: [&mut [N]; 2] = scratch.slices([longest, longest / size]);
    for piece in parts.chunks_mut(longest) {
        let received = &mut received[..piece.len()];
        ranks.all_to_all(bytemuck::cast_slice(piece), bytemuck::cast_slice_mut(received));
        let sum = &mut sum[..piece.len() / size];
        sum_of_parts(reduction, received, sum);
        ranks.all_gather(bytemuck::cast_slice(sum), bytemuck::cast_slice_mut(piece));
    }
    if !rest.is_empty() {
        all_reduce_small(ranks, scratch, reduction, rest);
    }
}

/// Gathers all buffers on all ranks.
fn all_reduce_small<N: Number + Pod>(
    ranks: &impl Transport,
    scratch: &mut Scratch,
    reduction: Reduction,
    buffer: &mut [N],
) {
    let [received]: [&mut [N]; 1] = scratch.slices([buffer.len() * ranks.size()]);
    ranks.all_gather(bytemuck::cast_slice(buffer), bytemuck::cast_slice_mut(received));
    sum_of_parts(reduction, received, buffer);
}

/// Reduces the parts of all ranks, which stand one after the other.
fn sum_of_parts<N: Number>(reduction: Reduction, parts: &[N], sum: &mut [N]) {
    if sum.is_empty() {
        return;
    }
    let mut parts = parts.chunks(sum.len());
    sum.copy_from_slice(parts.next().expect("at least one rank"));
    parts.for_each(|part| accumulate(reduction, sum, part));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Group, threads::run_ranks};

    /// In-process ranks that take only short messages.
    struct Short {
        group: Group,
        limits: Limits,
    }

    impl Transport for Short {
        fn size(&self) -> usize {
            self.group.size()
        }

        fn broadcast(&self, root: usize, buffer: &mut [u8]) {
            assert!(buffer.len() <= self.limits.message);
            self.group.broadcast(root, buffer);
        }

        fn all_gather(&self, input: &[u8], output: &mut [u8]) {
            assert!(output.len() <= self.limits.message);
            self.group.all_gather(input, output);
        }

        fn all_to_all(&self, input: &[u8], output: &mut [u8]) {
            assert!(input.len() <= self.limits.message);
            self.group.all_to_all(input, output);
        }
    }

    const LIMITS: [Limits; 4] = [
        Limits::of(2),
        Limits { message: 1 << 20, sum: 64, small: 0 },
        Limits { message: 80, sum: 1 << 20, small: 1 << 20 },
        Limits { message: 64, sum: 24, small: 16 },
    ];

    #[test]
    fn results_do_not_depend_on_the_pieces() {
        for (size, limits) in (1..=4).flat_map(|size| LIMITS.map(|limits| (size, limits))) {
            run_ranks(size, |group| {
                let rank = group.rank();
                let ranks = Short { group: group.clone(), limits };
                // Of all sums of the rank, so that they find the numbers of earlier ones in it.
                let scratch = &mut Scratch::default();
                for length in [0, 1, 2, 3, 5, 7, 16, 41] {
                    let numbers = |count: usize| -> Vec<f32> {
                        (0..count).map(|i| ((i * 7 + rank * 13) as f32).sin()).collect()
                    };
                    for reduction in [Reduction::Sum, Reduction::Max] {
                        let (mut got, mut want) = (numbers(length), numbers(length));
                        all_reduce(&ranks, limits, scratch, reduction, &mut got);
                        group.all_reduce(reduction, &mut want);
                        assert_eq!(got, want);
                    }
                    let (input, mut got) = (numbers(length * size), numbers(length));
                    let mut want = got.clone();
                    reduce_scatter(&ranks, limits, scratch, &input, &mut got);
                    group.reduce_scatter(&input, &mut want);
                    assert_eq!(got, want);

                    let bytes: Vec<u8> = (0..length * size).map(|i| (i * 3 + rank) as u8).collect();
                    let (mut got, mut want) = (bytes.clone(), bytes.clone());
                    all_to_all(&ranks, limits, &bytes, &mut got);
                    group.all_to_all(&bytes, &mut want);
                    assert_eq!(got, want);
                    all_gather(&ranks, limits, &bytes[..length], &mut got);
                    group.all_gather(&bytes[..length], &mut want);
                    assert_eq!(got, want);
                    broadcast(&ranks, limits, size - 1, &mut got);
                    group.broadcast(size - 1, &mut want);
                    assert_eq!(got, want);
                }
            });
        }
    }
}
