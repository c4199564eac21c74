//! A trainer that is one of several ranks: reduced gradients, and the state that ZeRO divides.

use super::{PendingReport, Trainer, check_norm};
use crate::{
    error::TrainError,
    optimizer::{GradientNorm, Update, clip_factor},
    parameters::FlatTensors,
    ranks::Ranks,
    shards::{HostSlices, HostValues, Shards, floats},
    zero::Zero,
};
use burn::{
    module::Module,
    tensor::{DType, Device, FloatDType, Tensor, TensorData},
};
use opensora_nn::{device::is_host, read::read};
use std::{collections::BTreeSet, ops::Range};

/// What a trainer has more if it is one of several ranks.
pub(super) struct Over {
    pub(super) ranks: Ranks,
    pub(super) shards: Shards,
    zero: Zero,
    /// Type to compute in, which is that of the whole parameters if the state is divided.
    dtype: FloatDType,
    /// With ZeRO, this rank's f32 slices of all parameters.
    pub(super) master: Option<FlatTensors>,
    /// With ZeRO on rank 0, the whole f32 parameters and averages, while something needs them.
    pub(super) whole: Option<Whole>,
}

/// Whole f32 parameters and averages.
#[derive(Default)]
pub(super) struct Whole {
    pub(super) values: FlatTensors,
    pub(super) average: FlatTensors,
}

/// The gradients of a step, summed over its micro-batches.
#[derive(Default)]
pub(crate) struct GradientSum {
    /// Sums over this rank's samples.
    local: FlatTensors,
    /// This rank's slices of the sums over all ranks, for [`Zero::Gradients`].
    slices: HostSlices,
}

/// Bytes of a trainer's tensors on this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct HeldBytes {
    /// Parameters, in the type to compute in.
    pub parameters: usize,
    /// Moments of AdamW, and with ZeRO the slices of the f32 parameters.
    pub optimizer: usize,
    /// Moving average.
    pub average: usize,
    /// Gradients between two micro-batches, as of the last step.
    pub gradients: usize,
}

impl<M: Module> Trainer<M> {
    /// Makes the trainer one of `ranks`, which begin with the parameters of rank 0, and divides the state by
    /// `zero`. `dtype` is the type to compute in. Call it before the first step and before a checkpoint is
    /// loaded. A collective.
    ///
    /// # Panics
    /// Panics or ends all ranks if the device fails.
    #[must_use]
    pub fn over(mut self, ranks: &Ranks, zero: Zero, dtype: FloatDType) -> Self {
        if ranks.is_solo() {
            return self;
        }
        let shards = Shards::new(ranks.world().clone(), &self.values);
        ranks.or_abort(shards.broadcast(&mut self.values));
        let trained = |values: &FlatTensors| -> FlatTensors {
            let trained = values.iter().filter(|(name, _)| self.trainable.contains(*name));
            trained.map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let master = if zero == Zero::Off {
            self.average = trained(&self.values);
            None
        } else {
            let master = shards.take(&self.values);
            self.average = trained(&master);
            if dtype != FloatDType::F32 {
                self.values.values_mut().for_each(|value| *value = value.clone().cast(dtype));
            }
            Some(master)
        };
        let ranks = ranks.clone();
        self.over = Some(Over { ranks, shards, zero, dtype, master, whole: None });
        self
    }

    /// Returns the ranks that train together; one by default.
    pub fn ranks(&self) -> Ranks {
        self.over.as_ref().map_or_else(Ranks::default, |over| over.ranks.clone())
    }

    /// Adds `weight` times the gradients of a micro-batch to those of the step. A collective for
    /// [`Zero::Gradients`].
    pub(crate) fn add_gradients(&self, sum: &mut GradientSum, gradients: FlatTensors, weight: f64) {
        if let Some(over) = self.over.as_ref().filter(|over| over.zero == Zero::Gradients) {
            let reduced = over.ranks.or_abort(over.shards.reduce(gradients, weight as f32));
            for (name, slice) in reduced {
                match sum.slices.get_mut(&name) {
                    Some(sum) => sum.iter_mut().zip(slice).for_each(|(sum, value)| *sum += value),
                    None => drop(sum.slices.insert(name, slice)),
                }
            }
            return;
        }
        for (name, gradient) in gradients {
            let gradient = if weight == 1.0 { gradient } else { gradient * weight };
            let gradient = match sum.local.remove(&name) {
                Some(before) => before + gradient,
                None => gradient,
            };
            sum.local.insert(name, gradient);
        }
    }

    /// Updates the parameters from the gradients of a step, as [`apply_pending`](Self::apply_pending) does. A
    /// collective.
    ///
    /// # Errors
    /// Returns an error ([`TrainError::NonFinite`]) on all ranks if the gradients are not finite.
    pub(crate) fn apply_sum(
        &mut self,
        sum: GradientSum,
        losses: Option<Tensor<1>>,
        steps: u64,
    ) -> Result<PendingReport, TrainError> {
        self.gradient_bytes =
            bytes(&sum.local) + 4 * sum.slices.values().map(Vec::len).sum::<usize>();
        let Some(over) = &self.over else {
            return self.apply_pending(sum.local, losses, steps);
        };
        let shards = &over.shards;
        let (gradients, norm) = match over.zero {
            Zero::Off => {
                let whole = over.ranks.or_abort(shards.reduce_whole(sum.local));
                // The same slices as with ZeRO, so that the norms are bit-exact.
                let own =
                    whole.values().map(floats).map(|values| &values[shards.own(values.len())]);
                let norm = shards.square_sum(own).sqrt();
                (whole, norm)
            }
            zero => {
                let slices = match zero {
                    Zero::Gradients => sum.slices,
                    _ => over.ranks.or_abort(shards.reduce(sum.local, 1.0)),
                };
                let norm = shards.square_sum(slices.values().map(Vec::as_slice)).sqrt();
                let data = |slice: Vec<f32>| {
                    let length = slice.len();
                    TensorData::new(slice, [length])
                };
                (slices.into_iter().map(|(name, slice)| (name, data(slice))).collect(), norm)
            }
        };
        // The norm is the same on all ranks, and so is the error.
        check_norm(self.step + 1, norm)?;
        let device = self.device();
        let on_device = |data| Tensor::from_data(data, (&device, DType::F32));
        let gradients = gradients.into_iter().map(|(name, data)| (name, on_device(data)));
        let update = Update::Scaled(clip_factor(norm, self.recipe.gradient_clip));
        let learning_rate = self.change(gradients.collect(), &update, steps);
        self.gather_values(|name, trainable| trainable.contains(name));
        Ok(PendingReport { gradient_norm: GradientNorm::Known(norm), learning_rate })
    }

    /// Gathers the whole parameters that `changed` returns true for, if they are divided. A collective.
    pub(super) fn gather_values(&mut self, changed: impl Fn(&str, &BTreeSet<String>) -> bool) {
        let device = self.device();
        let Some(over) = &self.over else { return };
        let Some(master) = &over.master else { return };
        let (values, dtype) = (&mut self.values, DType::from(over.dtype));
        let names = || over.shards.lengths().keys().filter(|name| changed(name, &self.trainable));
        // The new values are received in the memory of the old ones.
        let mut old = HostValues::new();
        for name in names().filter(|_| is_host(&device)) {
            let value = values.remove(name).map(read).transpose();
            old.extend(over.ranks.or_abort(value).map(|data| (name.clone(), data)));
        }
        let gathered = over.shards.gather(names(), master, dtype, old, |name, data| {
            values.insert(name.to_string(), Tensor::from_data(data, (&device, dtype)));
        });
        over.ranks.or_abort(gathered);
    }

    /// Gathers the whole f32 parameters and averages on rank 0 until [`release`](Self::release), if they are
    /// divided. A collective.
    pub(crate) fn assemble(&mut self) {
        let device = self.device();
        let Some(over) = &mut self.over else { return };
        let Some(master) = &over.master else { return };
        let (mut whole, is_main) = (Whole::default(), over.ranks.is_main());
        for (slices, target) in [(master, &mut whole.values), (&self.average, &mut whole.average)] {
            let is_average = !std::ptr::eq(slices, master);
            let names = over.shards.lengths().keys();
            let names = names.filter(|name| !is_average || self.trainable.contains(*name));
            let gathered =
                over.shards.gather(names, slices, DType::F32, HostValues::new(), |name, data| {
                    if is_main {
                        let tensor = Tensor::from_data(data, (&device, DType::F32));
                        target.insert(name.to_string(), tensor);
                    }
                });
            over.ranks.or_abort(gathered);
        }
        over.whole = is_main.then_some(whole);
    }

    /// Frees what [`assemble`](Self::assemble) gathered.
    pub(crate) fn release(&mut self) {
        if let Some(over) = &mut self.over {
            over.whole = None;
        }
    }

    /// Returns this rank's slices of the f32 parameters if they are divided, else the whole ones.
    pub(crate) fn held_values(&self) -> &FlatTensors {
        self.over.as_ref().and_then(|over| over.master.as_ref()).unwrap_or(&self.values)
    }

    /// Returns true if this rank has slices of the state.
    pub(crate) fn is_divided(&self) -> bool {
        self.over.as_ref().is_some_and(|over| over.master.is_some())
    }

    /// Returns the elements that this rank holds of a parameter of `length` elements: all, or its slice.
    pub(crate) fn own(&self, length: usize) -> Range<usize> {
        match &self.over {
            Some(over) if over.master.is_some() => over.shards.own(length),
            _ => 0..length,
        }
    }

    /// Returns the number of bytes of this rank's tensors.
    pub fn held_bytes(&self) -> HeldBytes {
        let moments = self.moments().map(|(_, state)| 8 * state.moment_1.dims()[0]).sum::<usize>();
        let master = self.over.as_ref().and_then(|over| over.master.as_ref());
        HeldBytes {
            parameters: bytes(&self.values),
            optimizer: moments + master.map_or(0, bytes),
            average: bytes(&self.average),
            gradients: self.gradient_bytes,
        }
    }

    fn device(&self) -> Device {
        let device = self.values.values().next().map(Tensor::device);
        device.unwrap_or_default()
    }
}

fn bytes(tensors: &FlatTensors) -> usize {
    tensors.values().map(|tensor| tensor.dims()[0] * tensor.dtype().size()).sum()
}
