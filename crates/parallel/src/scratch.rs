//! A reusable buffer for collectives.

use bytemuck::Pod;
use std::array;

/// A reusable buffer for collectives: it grows on demand and is not zeroed.
#[derive(Debug, Default)]
pub struct Scratch(Vec<f64>);

impl Scratch {
    /// Returns slices of the given lengths with unspecified contents.
    ///
    /// ```
    /// let mut scratch = opensora_parallel::Scratch::default();
    /// let [sent, received] = scratch.slices::<f32, 2>([3, 6]);
    /// assert_eq!((sent.len(), received.len()), (3, 6));
    /// ```
    ///
    /// # Panics
    /// Panics if the alignment of `E` is larger than that of f64, or its size does not divide 8 bytes.
    pub fn slices<E: Pod, const K: usize>(&mut self, lengths: [usize; K]) -> [&mut [E]; K] {
        let words = lengths.iter().sum::<usize>() * size_of::<E>();
        let words = words.div_ceil(size_of::<f64>());
        if self.0.len() < words {
            self.0.resize(words, 0.0);
        }
        let mut rest = bytemuck::cast_slice_mut(&mut self.0);
        array::from_fn(|index| {
            let (slice, after) = std::mem::take(&mut rest).split_at_mut(lengths[index]);
            rest = after;
            slice
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_and_grows() {
        let mut scratch = Scratch::default();
        let [a, b, c] = scratch.slices::<u8, 3>([5, 0, 3]);
        assert_eq!((a.len(), b.len(), c.len()), (5, 0, 3));
        a.fill(1);
        c.fill(2);
        let [all] = scratch.slices::<u8, 1>([8]);
        assert_eq!(all, [1, 1, 1, 1, 1, 2, 2, 2]);
        let [first, second] = scratch.slices::<f32, 2>([2, 5]);
        second.fill(3.0);
        assert_eq!([first[0].to_ne_bytes(), first[1].to_ne_bytes()], [[1; 4], [1, 2, 2, 2]]);
        assert_eq!(scratch.0.len(), 4);
    }
}
