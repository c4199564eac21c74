//! Validity of the records of a journal.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// Checks that decide whether a journal's records are valid.
pub struct Trust<'a, T> {
    /// Returns the state of the file from which a row's outcome is computed. The state is recorded with
    /// the outcome, which is valid until the state changes.
    pub state: &'a (dyn Fn(usize) -> State + Sync),
    /// Returns the file of a row, whose path is left out of recorded reasons; `None` if there is none.
    pub path: &'a (dyn Fn(usize) -> Option<&'a Path> + Sync),
    /// Returns true if the output files of a record exist.
    pub holds: &'a dyn Fn(usize, &T) -> bool,
}

impl<T> Trust<'_, T> {
    /// Trusts all records.
    pub(crate) const ALL: Self =
        Self { state: &|_| State::Unknown, path: &|_| None, holds: &|_, _| true };
}

/// The version of a file from which an outcome was computed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Option<String>", into = "Option<String>")]
pub enum State {
    /// Not recorded.
    #[default]
    Unknown,
    /// The file did not exist or could not be reached.
    Gone,
    /// Text that identifies the version, such as size and time of the file.
    Known(String),
}

/// [`State::Gone`] in a journal. Texts of existing files start with their size.
const GONE: &str = "gone";

impl From<Option<String>> for State {
    fn from(text: Option<String>) -> Self {
        match text.as_deref() {
            None => Self::Unknown,
            Some(GONE) => Self::Gone,
            Some(text) => Self::Known(text.into()),
        }
    }
}

impl From<State> for Option<String> {
    fn from(state: State) -> Self {
        match state {
            State::Unknown => None,
            State::Gone => Some(GONE.into()),
            State::Known(text) => Some(text),
        }
    }
}

impl State {
    pub(super) fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }

    /// Returns the text of an existing file; `None` for other states.
    pub fn known(&self) -> Option<&str> {
        match self {
            Self::Known(text) => Some(text),
            Self::Unknown | Self::Gone => None,
        }
    }

    /// Returns true if an outcome with this state is not valid for the file as it is `now`.
    pub(super) fn is_outdated(&self, now: impl FnOnce() -> Self, is_done: bool) -> bool {
        // Journals of earlier versions have no states.
        if self.is_unknown() {
            return false;
        }
        match now() {
            Self::Unknown => false,
            // A success stays valid after its file is deleted; a failure does not.
            Self::Gone => !is_done && *self != Self::Gone,
            now => *self != now,
        }
    }
}
