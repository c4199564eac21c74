//! Applies a function to several slices as if they were contiguous.

use opensora_parallel::Scratch;

/// Copies `parts` into one buffer, calls `change` on it, and copies the results back.
pub(super) fn change_together(
    scratch: &mut Scratch,
    parts: &mut [&mut [f32]],
    change: impl FnOnce(&mut [f32]),
) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    if length == 0 {
        return;
    }
    let [whole] = scratch.slices([length]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_changed_as_one() {
        let mut scratch = Scratch::default();
        let (mut a, mut b) = ([1.0, 2.0, 3.0], [4.0]);
        for _ in 0..2 {
            change_together(&mut scratch, &mut [&mut a, &mut [], &mut b], |all| {
                assert_eq!(all.len(), 4);
                all.iter_mut().for_each(|value| *value += 1.0);
            });
        }
        assert_eq!((a, b), ([3.0, 4.0, 5.0], [6.0]));
        change_together(&mut scratch, &mut [], |_| unreachable!("nothing to change"));
    }
}
