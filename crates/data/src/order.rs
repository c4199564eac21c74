//! The order in which rows are seen: endless, shuffled anew each epoch, open at any place.

use opensora_nn::random::{HostRng, Purpose};

/// Slot `k`, counted over the whole run, belongs to epoch `k / rows` and to one of its rows.
#[derive(Debug, Clone)]
pub struct Order {
    rows: usize,
    seed: u64,
    shuffle: bool,
    /// The permutation of the epoch that was asked for last.
    epoch: Option<(u64, Vec<usize>)>,
}

impl Order {
    /// An order over `rows` rows, in the manifest's order where `shuffle` is off.
    pub fn new(rows: usize, seed: u64, shuffle: bool) -> Self {
        Self { rows, seed, shuffle, epoch: None }
    }

    /// Epoch and row of a slot; `None` where there are no rows.
    pub fn at(&mut self, slot: u64) -> Option<(u64, usize)> {
        let rows = self.rows as u64;
        let (epoch, place) = (slot.checked_div(rows)?, (slot.checked_rem(rows)?) as usize);
        if !self.shuffle {
            return Some((epoch, place));
        }
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut rng = HostRng::new(self.seed, Purpose::Order, epoch, 0);
            self.epoch = Some((epoch, rng.permutation(self.rows)));
        }
        self.epoch.as_ref().map(|(_, rows)| (epoch, rows[place]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_row_once_in_another_order() {
        let mut order = Order::new(50, 3, true);
        let mut epoch = |epoch: u64| -> Vec<usize> {
            (50 * epoch..50 * (epoch + 1))
                .map(|slot| {
                    let (found, row) = order.at(slot).unwrap();
                    assert_eq!(found, epoch);
                    row
                })
                .collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        assert_eq!(epoch(0), first);
        for mut rows in [first, second] {
            rows.sort_unstable();
            assert_eq!(rows, (0..50).collect::<Vec<_>>());
        }
        assert_eq!(Order::new(4, 0, false).at(6), Some((1, 2)));
        assert_eq!(Order::new(0, 0, true).at(0), None);
    }
}
