//! A bounded, evenly spaced sample of a stream of unknown length.

/// Evenly spaced items of a stream: all at first; beyond the capacity, every second item is dropped and the
/// distance doubles. The kept items depend only on the length of the stream.
pub(crate) struct Thinned<T> {
    capacity: usize,
    stride: usize,
    kept: Vec<(usize, T)>,
}

impl<T> Thinned<T> {
    /// Returns an empty sample of at most `capacity` items. Streams longer than `capacity` leave at least
    /// `capacity / 2`.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), stride: 1, kept: Vec::new() }
    }

    /// Returns true if the item with this index will be kept; others need not be computed.
    pub(crate) fn wants(&self, index: usize) -> bool {
        index.is_multiple_of(self.stride)
    }

    /// Keeps a wanted item. Indices increase from call to call.
    pub(crate) fn keep(&mut self, index: usize, item: T) {
        self.kept.push((index, item));
        while self.kept.len() > self.capacity {
            self.stride *= 2;
            self.kept.retain(|(index, _)| index.is_multiple_of(self.stride));
        }
    }

    /// Returns the items.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.kept.iter().map(|(_, item)| item)
    }

    /// Returns the items nearest to the centres of `count` equal parts of a stream of `total` items. An item
    /// can occur several times. Empty without items.
    pub(crate) fn spread(&self, count: usize, total: usize) -> impl Iterator<Item = &T> {
        (0..count).filter_map(move |part| {
            // In units of 1 / (2 * count) of an item, in which distances are integers.
            let middle = (2 * part + 1) * total;
            let distance = |index: usize| (index * 2 * count + count).abs_diff(middle);
            self.kept.iter().min_by_key(|(index, _)| distance(*index)).map(|(_, item)| item)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(total: usize, capacity: usize) -> Thinned<usize> {
        let mut thinned = Thinned::new(capacity);
        for index in 0..total {
            if thinned.wants(index) {
                thinned.keep(index, index);
            }
        }
        thinned
    }

    #[test]
    fn items_are_evenly_spaced_and_bounded() {
        for total in 1..300 {
            let thinned = of(total, 16);
            let kept: Vec<usize> = thinned.iter().copied().collect();
            assert!(kept.len() <= 16 && kept.len() >= total.min(8), "{total}: {kept:?}");
            assert!(kept.windows(2).all(|pair| pair[1] - pair[0] == thinned.stride));
        }
        assert_eq!(of(0, 4).spread(3, 0).count(), 0);
    }

    #[test]
    fn a_spread_has_the_centres_of_equal_parts() {
        let spread = |total| of(total, 128).spread(5, total).copied().collect::<Vec<_>>();
        assert_eq!(spread(1), [0; 5]);
        assert_eq!(spread(5), [0, 1, 2, 3, 4]);
        assert_eq!(spread(100), [9, 29, 49, 69, 89]);
        // Twice the frame rate: the same moments, within one of the thinned items.
        for (slow, fast) in spread(100).into_iter().zip(spread(400)) {
            assert!((4 * slow + 2).abs_diff(fast) <= 4, "{slow} {fast}");
        }
    }
}
