//! A slot for a model that stays in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Holds one model, once it was used.
#[derive(Debug)]
pub(super) struct Slot<T> {
    model: Mutex<Option<T>>,
    /// Locked while a model is loaded, which may take minutes and calls an observer. `model` is locked for moments only,
    /// so that the observer can [clear](Self::clear) the slot.
    loading: Mutex<()>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { model: Mutex::new(None), loading: Mutex::new(()) }
    }
}

impl<T: Clone> Slot<T> {
    /// Returns the model in the slot, and loads it first if the slot is empty. Without `keep`, loads the model
    /// and does not use the slot. Clones share their weights. Other threads wait while one thread loads.
    pub(super) fn get<E>(&self, keep: bool, load: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if !keep {
            return load();
        }
        let _loading = lock(&self.loading);
        if let Some(model) = lock(&self.model).clone() {
            return Ok(model);
        }
        let model = load()?;
        *lock(&self.model) = Some(model.clone());
        Ok(model)
    }

    /// Empties the slot, without waiting for a model that is being loaded: that model is in the slot afterwards.
    pub(super) fn clear(&self) {
        *lock(&self.model) = None;
    }
}

/// Ignores poisoning: a slot holds a complete model or none, even after a panic while it was locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{Arc, mpsc},
        thread,
        time::Duration,
    };

    #[test]
    fn a_slot_can_be_cleared_while_its_model_is_loaded() {
        let slot = Arc::new(Slot::<i32>::default());
        let (sender, receiver) = mpsc::channel();
        let of_thread = Arc::clone(&slot);
        // On another thread, since a deadlock would never end.
        thread::spawn(move || {
            let load = || {
                of_thread.clear();
                Ok::<_, ()>(1)
            };
            let _ = sender.send(of_thread.get(true, load));
        });
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Ok(Ok(1)));
        // The model was loaded after the call, so it stays; the next call drops it.
        assert_eq!(slot.get(true, || Ok::<_, ()>(2)), Ok(1));
        slot.clear();
        assert_eq!(slot.get(true, || Ok::<_, ()>(3)), Ok(3));
    }

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
