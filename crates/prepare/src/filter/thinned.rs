//! A bounded sample of a stream whose length nobody knows.

/// Items at even distances: all of them at first; where there are too many, each second one is
/// given up and the distance doubles. What is kept depends on the stream's length alone.
pub(crate) struct Thinned<T> {
    capacity: usize,
    stride: usize,
    kept: Vec<(usize, T)>,
}

impl<T> Thinned<T> {
    /// Keeps at most `capacity` items; from half of that on, once there were as many.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), stride: 1, kept: Vec::new() }
    }

    /// Whether the item of this index is to be kept: what is not need not be made.
    pub(crate) fn wants(&self, index: usize) -> bool {
        index.is_multiple_of(self.stride)
    }

    /// Keeps a wanted item; indices grow from call to call.
    pub(crate) fn keep(&mut self, index: usize, item: T) {
        self.kept.push((index, item));
        while self.kept.len() > self.capacity {
            self.stride *= 2;
            self.kept.retain(|(index, _)| index.is_multiple_of(self.stride));
        }
    }

    /// The items.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.kept.iter().map(|(_, item)| item)
    }

    /// The items nearest to the middles of `count` equal parts of a stream of `total` items; one
    /// may come several times. None where there are no items.
    pub(crate) fn spread(&self, count: usize, total: usize) -> impl Iterator<Item = &T> {
        (0..count).filter_map(move |part| {
            // Distances in units of 1 / (2 * count) of an item, so that they are whole.
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
    fn items_lie_evenly_and_are_never_too_many() {
        for total in 1..300 {
            let thinned = of(total, 16);
            let kept: Vec<usize> = thinned.iter().copied().collect();
            assert!(kept.len() <= 16 && kept.len() >= total.min(8), "{total}: {kept:?}");
            assert!(kept.windows(2).all(|pair| pair[1] - pair[0] == thinned.stride));
        }
        assert_eq!(of(0, 4).spread(3, 0).count(), 0);
    }

    #[test]
    fn a_spread_takes_the_middles_of_equal_parts() {
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
