//! The order in which rows are read: endless, shuffled anew each epoch, with access to any slot.

use opensora_nn::random::{HostRng, Purpose};

/// The order of rows. Slot `k`, counted over the whole run, is one row of epoch `k / rows`.
#[derive(Debug, Clone)]
pub struct Order {
    rows: usize,
    /// Seed of the shuffling; `None` keeps the manifest's order.
    seed: Option<u64>,
    /// The permutation of the epoch that was used last.
    epoch: Option<(u64, Vec<usize>)>,
}

impl Order {
    /// Returns an order over `rows` rows that is shuffled anew each epoch.
    pub fn shuffled(rows: usize, seed: u64) -> Self {
        Self { rows, seed: Some(seed), epoch: None }
    }

    /// Returns the manifest's order of `rows` rows.
    pub fn sequential(rows: usize) -> Self {
        Self { rows, seed: None, epoch: None }
    }

    /// Returns epoch and row of a slot, or `None` if there are no rows.
    pub fn at(&mut self, slot: u64) -> Option<(u64, usize)> {
        let rows = self.rows as u64;
        let (epoch, place) = (slot.checked_div(rows)?, (slot.checked_rem(rows)?) as usize);
        let Some(seed) = self.seed else { return Some((epoch, place)) };
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut rng = HostRng::new(seed, Purpose::Order, epoch, 0);
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
        let mut order = Order::shuffled(50, 3);
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
        assert_eq!(Order::sequential(4).at(6), Some((1, 2)));
        assert_eq!(Order::shuffled(0, 0).at(0), None);
    }
}
