//! Files that matter, safe from crashes.
//!
//! | module | thought |
//! |---|---|
//! | [`atomic`] | files that appear complete or not at all |
//! | [`journal`] | lines that are on the disk once they were appended |
//! | [`read`] | files of others: regular ones only, of bounded size, below their folder |

pub mod atomic;
pub mod journal;
pub mod read;

pub use atomic::{sync_folder, write_atomically};
pub use journal::Journal;
