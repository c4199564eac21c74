//! Memory of buckets, which is kept between steps.

use bytemuck::Pod;

/// The memory of a bucket that is sent and of one that is received.
#[derive(Debug, Default)]
pub(super) struct Buffers([Vec<f64>; 2]);

impl Buffers {
    /// Returns a slice of each buffer with any contents, for elements whose alignment is at most that of f64.
    pub(super) fn of<E: Pod>(&mut self, lengths: [usize; 2]) -> [&mut [E]; 2] {
        let [first, second] = &mut self.0;
        [slice(first, lengths[0]), slice(second, lengths[1])]
    }

    /// Copies the `parts` of a bucket together, calls `change`, and copies them back.
    pub(super) fn through(&mut self, parts: &mut [&mut [f32]], change: impl FnOnce(&mut [f32])) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length == 0 {
            return;
        }
        let [whole, _] = self.of([length, 0]);
        let mut rest = &mut *whole;
        for part in parts.iter() {
            let (target, after) = rest.split_at_mut(part.len());
            target.copy_from_slice(part);
            rest = after;
        }
        change(whole);
        let mut rest = &*whole;
        for part in parts {
            let (found, after) = rest.split_at(part.len());
            part.copy_from_slice(found);
            rest = after;
        }
    }
}

fn slice<E: Pod>(buffer: &mut Vec<f64>, length: usize) -> &mut [E] {
    let words = (length * size_of::<E>()).div_ceil(size_of::<f64>());
    if buffer.len() < words {
        buffer.resize(words, 0.0);
    }
    &mut bytemuck::cast_slice_mut(buffer)[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_changed_as_one() {
        let mut buffers = Buffers::default();
        let (mut a, mut b) = ([1.0, 2.0, 3.0], [4.0]);
        for _ in 0..2 {
            buffers.through(&mut [&mut a, &mut [], &mut b], |all| {
                assert_eq!(all.len(), 4);
                all.iter_mut().for_each(|value| *value += 1.0);
            });
        }
        assert_eq!((a, b), ([3.0, 4.0, 5.0], [6.0]));
        buffers.through(&mut [], |_| unreachable!("nothing to change"));
        let [bytes, rest] = buffers.of::<u8>([5, 3]);
        assert_eq!((bytes.len(), rest.len()), (5, 3));
    }
}
