//! Room for factors that were prepared, kept for the next product: to have tens of megabytes zeroed by the
//! system each time would take a tenth of a product's time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Rooms that nothing uses at present.
pub(super) type Rooms<T> = Mutex<Vec<Vec<T>>>;

/// Values with anything in them, given back to where they came from when dropped.
pub(super) struct Kept<T: 'static> {
    rooms: &'static Rooms<T>,
    values: Vec<T>,
    /// The first value that lies where a line of the caches begins.
    first: usize,
    count: usize,
}

impl<T: Clone> Kept<T> {
    /// `count` values, with `empty` in those that are new.
    pub(super) fn of(rooms: &'static Rooms<T>, count: usize, empty: T) -> Self {
        let spare = LINE / size_of::<T>();
        let mut values = lock(rooms).pop().unwrap_or_default();
        if values.len() < count + spare {
            values = vec![empty; count + spare];
        }
        let first = values.as_ptr().align_offset(LINE).min(spare);
        Self { rooms, values, first, count }
    }

    pub(super) fn get(&mut self) -> &mut [T] {
        &mut self.values[self.first..][..self.count]
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        lock(self.rooms).push(std::mem::take(&mut self.values));
    }
}

/// Bytes of a line of the caches.
const LINE: usize = 64;

/// What a panic elsewhere left behind is a list of rooms all the same.
fn lock<T>(rooms: &Rooms<T>) -> MutexGuard<'_, Vec<Vec<T>>> {
    rooms.lock().unwrap_or_else(PoisonError::into_inner)
}
