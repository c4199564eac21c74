//! The ranks of a run: which of them train on the same rows, and what they have to agree on.

use crate::error::TrainError;
use opensora_data::loader::Part;
use opensora_files::error_line;
use opensora_parallel::{
    Group, Lowest, Mesh, MeshError, Meter, Solo, Traffic, first_error, lowest,
};
use std::sync::Arc;

/// The ranks of a run. The default is one process.
///
/// Each row of the [`Mesh`] trains on its own part of every micro-batch; the ranks of a row share the tokens of its
/// samples.
#[derive(Debug, Clone)]
pub struct Ranks {
    mesh: Mesh,
    meter: Meter,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::new(Arc::new(Solo))
    }
}

impl Ranks {
    /// Returns ranks that all train on different samples.
    pub fn new(world: Group) -> Self {
        let meter = Meter::default();
        Self { mesh: Mesh::data_parallel(meter.measure(world)), meter }
    }

    /// Returns ranks of which `sequence` neighbours share samples. A collective.
    ///
    /// # Errors
    /// Returns an error if the number of ranks is not a multiple of `sequence`.
    pub fn with_sequence(world: Group, sequence: usize) -> Result<Self, MeshError> {
        let meter = Meter::default();
        Ok(Self { mesh: Mesh::new(meter.measure(world), sequence)?, meter })
    }

    /// Returns what the collectives of this rank have cost so far.
    pub fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    /// Returns the group of all ranks.
    pub fn world(&self) -> &Group {
        &self.mesh.world
    }

    /// Returns the group of the ranks that share this rank's samples; a group of one by default.
    pub fn sequence(&self) -> &Group {
        &self.mesh.sequence
    }

    /// Returns true if there is one rank only.
    pub fn is_solo(&self) -> bool {
        self.world().size() == 1
    }

    /// Returns true for rank 0, which writes the run's files and calls its observer and hooks.
    pub fn is_main(&self) -> bool {
        self.world().rank() == 0
    }

    /// Returns true if `rank` is the first of those that share its samples.
    pub(crate) fn is_first_of_row(&self, rank: usize) -> bool {
        rank.is_multiple_of(self.sequence().size())
    }

    /// Returns the part of every micro-batch that this rank trains on.
    pub fn part(&self) -> Part {
        let Mesh { world, data, .. } = &self.mesh;
        Part { group: world.clone(), index: data.rank(), count: data.size() }
    }

    /// Returns the result of this rank if all ranks succeeded. Otherwise returns an error on every rank: that of
    /// this rank, or the first one of another. A collective.
    ///
    /// # Errors
    /// Returns an error if any rank has one.
    pub fn agree<T>(&self, result: Result<T, TrainError>) -> Result<T, TrainError> {
        if self.is_solo() {
            return result;
        }
        let line = result.as_ref().err().map(|error| error_line(error));
        match (first_error(&**self.world(), line.as_deref()), result) {
            (Some((rank, message)), Ok(_)) => Err(TrainError::OtherRank { rank, message }),
            (_, result) => result,
        }
    }

    /// Returns the result of `work`, which only rank 0 does; `None` on other ranks. A collective.
    ///
    /// # Errors
    /// Returns an error on every rank if the work fails.
    pub fn on_main<T>(
        &self,
        work: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<Option<T>, TrainError> {
        self.agree(if self.is_main() { work().map(Some) } else { Ok(None) })
    }

    /// Returns the bytes that rank 0 passes, on all ranks. A collective.
    pub(crate) fn bytes_of_main(&self, bytes: &[u8]) -> Vec<u8> {
        let message = self.is_main().then_some((0, bytes));
        lowest(&**self.world(), message).map(|found| found.bytes).unwrap_or_default()
    }

    /// Returns true if any rank passes true. A collective.
    pub(crate) fn any(&self, flag: bool) -> bool {
        lowest(&**self.world(), flag.then_some((0, &[]))).is_some()
    }

    /// Ends a step: returns true if any rank wants to stop. A collective.
    ///
    /// # Errors
    /// Returns an error on every rank if any rank has one.
    pub(crate) fn settle(
        &self,
        result: Result<(), TrainError>,
        stop: bool,
    ) -> Result<bool, TrainError> {
        if self.is_solo() {
            return result.map(|()| stop);
        }
        let line = result.as_ref().err().map(|error| error_line(error));
        let message = match &line {
            Some(line) => Some((0, line.as_bytes())),
            None => stop.then_some((1, &[][..])),
        };
        let found = lowest(&**self.world(), message);
        result?;
        match found {
            Some(Lowest { key: 0, rank, bytes }) => {
                let message = String::from_utf8_lossy(&bytes).into_owned();
                Err(TrainError::OtherRank { rank, message })
            }
            found => Ok(found.is_some()),
        }
    }

    /// Returns the value, or ends all ranks: others already wait for this one in a collective.
    pub(crate) fn or_abort<T>(&self, result: Result<T, impl Into<TrainError>>) -> T {
        result.unwrap_or_else(|error| {
            let error: TrainError = error.into();
            self.world().abort(&error_line(&error))
        })
    }
}
