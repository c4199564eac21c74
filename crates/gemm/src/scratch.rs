//! Scratch buffers for packed operands, reused between products: page faults in fresh memory would take a
//! tenth of a product's time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers that are not in use.
pub(crate) type Pool<T> = Mutex<Vec<Vec<T>>>;

/// A buffer from a pool, with unspecified contents; returned to the pool when dropped.
pub(crate) struct Scratch<T: 'static> {
    pool: &'static Pool<T>,
    values: Vec<T>,
    /// The first value on a cache line's boundary.
    first: usize,
    count: usize,
}

impl<T: Clone> Scratch<T> {
    /// Takes a buffer of `count` values; new ones are filled with `fill`.
    pub(crate) fn take(pool: &'static Pool<T>, count: usize, fill: T) -> Self {
        let spare = CACHE_LINE / size_of::<T>();
        let mut values = lock(pool).pop().unwrap_or_default();
        if values.len() < count + spare {
            values = vec![fill; count + spare];
        }
        let first = values.as_ptr().align_offset(CACHE_LINE).min(spare);
        Self { pool, values, first, count }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.values[self.first..][..self.count]
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        lock(self.pool).push(std::mem::take(&mut self.values));
    }
}

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Locks a pool, also if it is poisoned: a panic leaves the list of buffers valid.
fn lock<T>(pool: &Pool<T>) -> MutexGuard<'_, Vec<Vec<T>>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        static POOL: Pool<f32> = Pool::new(Vec::new());
        let address = |of: &mut Scratch<f32>| of.as_mut_slice().as_ptr().addr();
        let mut first = Scratch::take(&POOL, 100, 7.0);
        assert_eq!(first.as_mut_slice(), [7.0; 100]);
        // One cache line more, for the alignment.
        assert_eq!(first.values.len(), 100 + 16);
        let mut second = Scratch::take(&POOL, 33, 0.0);
        let addresses = [address(&mut first), address(&mut second)];
        assert_ne!(addresses[0], addresses[1]);
        assert!(addresses.iter().all(|address| address.is_multiple_of(CACHE_LINE)));
        drop(first);
        // Not larger: the buffer that was just returned.
        for count in [100, 50] {
            let mut third = Scratch::take(&POOL, count, 0.0);
            assert_eq!(address(&mut third), addresses[0]);
            assert_eq!(third.as_mut_slice(), vec![7.0; count]);
        }
        // Larger: a new one in its place.
        let mut fourth = Scratch::take(&POOL, 1000, 1.0);
        assert_eq!(fourth.as_mut_slice(), [1.0; 1000]);
        assert!(address(&mut fourth).is_multiple_of(CACHE_LINE));
        assert!(lock(&POOL).is_empty());
        drop((second, fourth));
        assert_eq!(lock(&POOL).len(), 2);
    }

    #[test]
    fn a_poisoned_pool_still_serves() {
        static POOL: Pool<u8> = Pool::new(Vec::new());
        let poisoned = std::thread::spawn(|| {
            let _guard = POOL.lock();
            panic!("poisons the lock");
        });
        assert!(poisoned.join().is_err());
        assert_eq!(Scratch::take(&POOL, 3, 2).as_mut_slice(), [2; 3]);
    }
}
