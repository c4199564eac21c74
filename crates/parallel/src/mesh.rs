//! A grid of ranks: groups that share samples, and groups that share the tokens of a sample.

use crate::Group;

/// The ranks of a program as a grid of `data.size()` rows and `sequence.size()` columns.
///
/// The ranks of a row compute the same samples: each holds a part of every clip's tokens. The ranks of a column hold
/// the same part of different samples. Neighbouring ranks form a row, since rows exchange tokens twice in every block,
/// while columns exchange gradients once in a step.
///
/// Gradients need no knowledge of the grid: a task that divides its samples scales them so that the **mean over all
/// ranks of the world** is the gradient of the mean loss over all samples, as it is for a task that does not.
/// Losses that a task reports are those of whole samples, equal on all ranks of a row.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// All ranks.
    pub world: Group,
    /// This rank's column: ranks with other samples.
    pub data: Group,
    /// This rank's row: ranks with other tokens of the same samples.
    pub sequence: Group,
}

/// Error for a world that cannot be divided into rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{ranks} ranks cannot be divided into groups of {sequence}: use a divisor of {ranks}")]
#[non_exhaustive]
pub struct MeshError {
    /// Ranks of the world.
    pub ranks: usize,
    /// Requested ranks of a row.
    pub sequence: usize,
}

impl Mesh {
    /// Arranges the ranks of `world` in rows of `sequence` ranks. All ranks call it.
    ///
    /// # Errors
    /// Returns an error if `sequence` is 0 or does not divide the number of ranks.
    pub fn new(world: Group, sequence: usize) -> Result<Self, MeshError> {
        let ranks = world.size();
        if sequence == 0 || !ranks.is_multiple_of(sequence) {
            return Err(MeshError { ranks, sequence });
        }
        let [row, column] = [world.rank() / sequence, world.rank() % sequence];
        Ok(Self {
            data: world.split(column, row),
            sequence: world.split(row, column),
            world,
        })
    }

    /// Returns the grid of a program that divides samples only: one column.
    pub fn data_parallel(world: Group) -> Self {
        Self { data: world.clone(), sequence: std::sync::Arc::new(crate::Solo), world }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Solo;
    use std::sync::Arc;

    #[test]
    fn one_rank_is_a_grid_of_one() {
        let mesh = Mesh::new(Arc::new(Solo), 1).unwrap();
        assert_eq!([mesh.data.size(), mesh.sequence.size()], [1, 1]);
        let error = MeshError { ranks: 1, sequence: 2 };
        assert_eq!(Mesh::new(Arc::new(Solo), 2).unwrap_err(), error);
        assert_eq!(
            error.to_string(),
            "1 ranks cannot be divided into groups of 2: use a divisor of 1"
        );
    }
}
