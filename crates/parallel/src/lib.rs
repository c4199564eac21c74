//! Ranks and collectives for burn models.
//!
//! A program that runs on several devices is several processes, the *ranks* of a *group*. A [`Communicator`] moves
//! data between them, and the functions of [`tensor`] move tensors, with gradients. A [`Group`] is one of:
//!
//! | group | ranks |
//! |---|---|
//! | [`Solo`] | one process; every collective is a copy, so that code for several ranks also runs without them |
//! | `Mpi` | processes of MPI, with the feature `mpi`; [`Launch`] says whether the process was started as one |
//! | [`threads`] | threads, for tests |
//!
//! [`Meter`] counts and times the collectives of a group.

mod bucket;
mod communicator;
mod exchange;
mod launch;
mod measured;
mod mesh;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(any(feature = "mpi", test))]
mod pieces;
mod reduce;
mod scratch;
mod solo;
pub mod tensor;
pub mod threads;
#[cfg(any(feature = "mpi", test))]
mod watchdog;

#[cfg(feature = "mpi")]
pub use self::mpi::{Mpi, MpiError, MpiOptions};
pub use bucket::bucket_bytes;
pub use communicator::{Communicator, Group, Reduction};
pub use exchange::{Lowest, first_error, gather_bytes, lowest};
pub use launch::{Launch, Launcher};
pub use measured::{Meter, Traffic};
pub use mesh::{Mesh, MeshError};
pub use scratch::Scratch;
pub use solo::Solo;

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
