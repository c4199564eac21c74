//! A slot for a model that stays in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Holds one model, once it was used.
#[derive(Debug)]
pub(super) struct Slot<T>(Mutex<Option<T>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Slot<T> {
    /// Returns the model in the slot, and loads it first if the slot is empty. Without `keep`, loads the model
    /// and does not use the slot. Clones share their weights. Other threads wait while one thread loads.
    pub(super) fn get<E>(&self, keep: bool, load: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if !keep {
            return load();
        }
        let mut slot = self.lock();
        if let Some(model) = &*slot {
            return Ok(model.clone());
        }
        let model = load()?;
        *slot = Some(model.clone());
        Ok(model)
    }

    /// Empties the slot.
    pub(super) fn clear(&self) {
        *self.lock() = None;
    }

    /// Ignores poisoning: the slot holds a complete model or none, even after a panic while it was locked.
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_loaded_once_and_after_an_error_again() {
        let slot = Slot::default();
        assert_eq!(slot.get(false, || Ok::<_, ()>(1)), Ok(1));
        assert_eq!(slot.get(true, || Err("gone")), Err("gone"));
        assert_eq!(slot.get(true, || Ok::<_, ()>(2)), Ok(2));
        assert_eq!(slot.get(true, || Ok::<_, ()>(3)), Ok(2));
        slot.clear();
        assert_eq!(slot.get(true, || Ok::<_, ()>(4)), Ok(4));
    }
}
