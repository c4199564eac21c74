//! Which records of a journal still count.

use serde::{Deserialize, Serialize};

/// What the records of a journal are checked against before they are trusted.
pub struct Trust<'a, T> {
    /// The state of what a row's outcome is made of. It is recorded with the outcome, which counts no
    /// longer when the state is another one.
    pub state: &'a (dyn Fn(usize) -> State + Sync),
    /// Whether what a record speaks of is still there.
    pub holds: &'a dyn Fn(usize, &T) -> bool,
}

impl<T> Trust<'_, T> {
    /// All records are trusted.
    pub(super) const ALL: Self = Self { state: &|_| State::Unknown, holds: &|_, _| true };
}

/// The state of a file that an outcome is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Option<String>", into = "Option<String>")]
pub enum State {
    /// Nobody looked.
    #[default]
    Unknown,
    /// It was not there, or out of reach.
    Gone,
    /// What tells it from an earlier or later version of itself, such as its size and time.
    Known(String),
}

/// A state of [`State::Gone`] in a journal; of a file that is there, the text begins with its size.
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

    /// The text of a file that is there.
    pub fn known(&self) -> Option<&str> {
        match self {
            Self::Known(text) => Some(text),
            Self::Unknown | Self::Gone => None,
        }
    }

    /// Returns true if an outcome of this state says nothing about what is there `now`.
    pub(super) fn is_outdated(&self, now: impl FnOnce() -> Self, is_done: bool) -> bool {
        // Journals of earlier versions have no states.
        if self.is_unknown() {
            return false;
        }
        match now() {
            Self::Unknown => false,
            // What was made of a file outlives it; what was wrong with it is another thing now.
            Self::Gone => !is_done && *self != Self::Gone,
            now => *self != now,
        }
    }
}
