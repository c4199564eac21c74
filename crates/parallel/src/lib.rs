//! Ranks and collectives for burn models.
//!
//! A program that runs on several devices is several processes, the *ranks* of a *group*. A [`Communicator`]
//! moves data between them. [`Solo`] is the group of one process, in which every collective is a copy, so that
//! code for several ranks also runs without them.

mod communicator;
mod mesh;
mod reduce;
mod solo;
pub mod threads;

pub use communicator::{Communicator, Group, Reduction};
pub use mesh::{Mesh, MeshError};
pub use solo::Solo;
