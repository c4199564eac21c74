//! The interface of all groups of ranks.

use std::{fmt::Debug, sync::Arc};

/// A shared handle of a group of ranks.
pub type Group = Arc<dyn Communicator>;

/// How the contributions of the ranks are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// The sum, added in an order that depends on the number of ranks only.
    Sum,
    /// The maximum.
    Max,
}

/// A group of ranks that exchange data.
///
/// Every method except [`rank`](Self::rank) and [`size`](Self::size) is a collective: all ranks of the group call
/// it, in the same order and with buffers of the same lengths. Results are bit-exact between runs with the same
/// number of ranks.
///
/// # Failures
/// A rank cannot go on without the others, so a collective returns no error: if a rank ended or the network
/// failed, the whole program ends with one message. In a process of MPI that is `MPI_Abort`; ranks that are
/// threads of one process panic.
pub trait Communicator: Debug + Send + Sync {
    /// Returns the number of this rank in the group, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks of the group.
    fn size(&self) -> usize;

    /// Returns after all ranks have called it.
    fn barrier(&self);

    /// Copies the `buffer` of rank `root` to all ranks.
    fn broadcast(&self, root: usize, buffer: &mut [u8]);

    /// Replaces each element by the reduction of the elements of all ranks at its place.
    fn all_reduce(&self, reduction: Reduction, buffer: &mut [f32]);

    /// As [`all_reduce`](Self::all_reduce), in f64, for norms and losses.
    fn all_reduce_f64(&self, reduction: Reduction, buffer: &mut [f64]);

    /// Splits `input` into one part per rank and returns in `output` the sum of all ranks' parts with this
    /// rank's number. `input` is [`size`](Self::size) times as long as `output`.
    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]);

    /// Concatenates the `input` of all ranks in the order of ranks. `output` is [`size`](Self::size) times as
    /// long as `input`.
    fn all_gather(&self, input: &[u8], output: &mut [u8]);

    /// Splits `input` into one part per rank, sends part `i` to rank `i`, and concatenates the received parts in
    /// the order of ranks. Both lengths are equal and multiples of [`size`](Self::size).
    fn all_to_all(&self, input: &[u8], output: &mut [u8]);

    /// Splits the group: ranks with the same `color` form a group, in the order of `key`, then of rank.
    fn split(&self, color: usize, key: usize) -> Group;

    /// Ends all ranks, because this one cannot go on. `message` is the one line that says why. Not a collective.
    fn abort(&self, message: &str) -> !;
}
