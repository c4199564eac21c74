//! Respacing: the steps of a long training process that a shorter sampling process keeps.
//!
//! Source: `opensora/schedulers/iddpm/respace.py`, `space_timesteps`.
//!
//! Quirks kept: positions accumulate a fractional stride in f64 and are rounded half to even, as
//! Python does. A section of one step keeps its *first* timestep, so a process of one step calls the
//! model at timestep 0 only. `ddimN` needs an integer stride below the number of timesteps.
//! Deviation: a count of 0 is an error; the reference silently skips that section.

use std::{collections::BTreeSet, fmt, str::FromStr};

use thiserror::Error;

use crate::schedule::MAX_TIMESTEPS;

/// The rule that selects the steps. Parsed from `""` (all), `"100"`, `"10,15,20"` (steps of each of
/// three equal sections of the process) or `"ddim50"` (a fixed integer stride).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Respacing {
    /// Every step.
    #[default]
    All,
    /// Number of evenly spaced steps in each of the equal sections of the process.
    Sections(Vec<usize>),
    /// Number of steps an integer stride apart, starting at 0.
    Ddim(usize),
}

/// Error for a respacing that cannot be parsed or applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RespaceError {
    /// A count that is not a whole number.
    #[error(
        "timestep respacing {text:?}: {found:?} is not a number of steps, expected \
         \"100\", \"10,15,20\", \"ddim50\" or nothing for all steps"
    )]
    NotANumber {
        /// The whole text.
        text: String,
        /// The part that is not a count.
        found: String,
    },
    /// A count of 0 steps.
    #[error("timestep respacing: section {section} has 0 steps, expected at least 1")]
    ZeroSteps {
        /// The section, from 0.
        section: usize,
    },
    /// An empty list of sections.
    #[error("timestep respacing: the list of sections is empty, expected at least one count")]
    NoSections,
    /// A count that is larger than its section.
    #[error("timestep respacing: section {section} has {size} steps, cannot keep {count}")]
    SectionTooShort {
        /// The section, from 0.
        section: usize,
        /// Steps of the section.
        size: usize,
        /// The given count.
        count: usize,
    },
    /// A count that no integer stride gives.
    #[error("no integer stride through {num_timesteps} steps gives exactly {count} steps")]
    NoStride {
        /// Length of the process.
        num_timesteps: usize,
        /// The given count.
        count: usize,
    },
    /// A process that is empty or too long.
    #[error("cannot respace a process of {found} steps, expected 1 to {MAX_TIMESTEPS}")]
    NumTimesteps {
        /// Steps of the process.
        found: usize,
    },
}

impl Respacing {
    /// Returns the rule for `count` evenly spaced steps, the reference's `num_sampling_steps`.
    pub fn steps(count: usize) -> Self {
        Self::Sections(vec![count])
    }
}

impl From<Vec<usize>> for Respacing {
    fn from(counts: Vec<usize>) -> Self {
        Self::Sections(counts)
    }
}

impl FromStr for Respacing {
    type Err = RespaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let count = |part: &str| {
            part.trim().parse::<usize>().map_err(|_| RespaceError::NotANumber {
                text: text.to_owned(),
                found: part.trim().to_owned(),
            })
        };
        if text.trim().is_empty() {
            return Ok(Self::All);
        }
        if let Some(rest) = text.trim().strip_prefix("ddim") {
            return Ok(Self::Ddim(count(rest)?));
        }
        Ok(Self::Sections(text.split(',').map(count).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Respacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Ddim(count) => write!(f, "ddim{count}"),
            Self::Sections(counts) => {
                let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
                f.write_str(&counts.join(","))
            }
        }
    }
}

/// Returns the timesteps that `respacing` keeps of a process of `num_timesteps`, in rising order.
///
/// # Errors
/// Returns an error if the counts do not fit the process. They are checked before memory is allocated.
pub fn space_timesteps(
    num_timesteps: usize,
    respacing: &Respacing,
) -> Result<Vec<usize>, RespaceError> {
    if num_timesteps == 0 || num_timesteps > MAX_TIMESTEPS {
        return Err(RespaceError::NumTimesteps { found: num_timesteps });
    }
    match respacing {
        Respacing::All => Ok((0..num_timesteps).collect()),
        Respacing::Ddim(0) => Err(RespaceError::ZeroSteps { section: 0 }),
        Respacing::Ddim(count) => strided(num_timesteps, *count),
        Respacing::Sections(counts) => sections(num_timesteps, counts),
    }
}

fn strided(num_timesteps: usize, count: usize) -> Result<Vec<usize>, RespaceError> {
    (1..num_timesteps)
        .find(|&stride| num_timesteps.div_ceil(stride) == count)
        .map(|stride| (0..num_timesteps).step_by(stride).collect())
        .ok_or(RespaceError::NoStride { num_timesteps, count })
}

fn sections(num_timesteps: usize, counts: &[usize]) -> Result<Vec<usize>, RespaceError> {
    if counts.is_empty() {
        return Err(RespaceError::NoSections);
    }
    let (base, extra) = (num_timesteps / counts.len(), num_timesteps % counts.len());
    let mut kept = BTreeSet::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = base + usize::from(section < extra);
        if count == 0 {
            return Err(RespaceError::ZeroSteps { section });
        }
        if count > size {
            return Err(RespaceError::SectionTooShort { section, size, count });
        }
        let stride = if count == 1 { 1.0 } else { (size - 1) as f64 / (count - 1) as f64 };
        // The sum is accumulated, not `i * stride`: the two can round differently.
        let mut position = 0.0_f64;
        for _ in 0..count {
            kept.insert(start + position.round_ties_even() as usize);
            position += stride;
        }
        start += size;
    }
    Ok(kept.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Golden;

    #[test]
    fn the_first_sections_are_longer_if_the_process_does_not_divide() {
        // Sections of 4, 3 and 3 steps.
        let kept = |counts: [usize; 3]| space_timesteps(10, &Respacing::Sections(counts.into()));
        assert_eq!(kept([4, 1, 1]).unwrap(), [0, 1, 2, 3, 4, 7]);
        assert_eq!(kept([2, 2, 3]).unwrap(), [0, 3, 4, 6, 7, 8, 9]);
        assert!(kept([5, 1, 1]).is_err() && kept([1, 4, 1]).is_err());
        assert!(space_timesteps(MAX_TIMESTEPS, &Respacing::steps(2)).is_ok());
    }

    #[test]
    fn equals_the_reference() {
        let golden = Golden::open("iddpm-tables");
        let cases = golden.case["config"]["space_timesteps"].as_array().unwrap().clone();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let counts = &case["section_counts"];
            let respacing = match counts.as_str() {
                Some(text) => text.parse().unwrap(),
                None => {
                    let counts = counts.as_array().unwrap().iter();
                    let counts: Vec<usize> =
                        counts.map(|count| count.as_u64().unwrap() as usize).collect();
                    Respacing::from(counts)
                }
            };
            let num_timesteps = case["num_timesteps"].as_u64().unwrap() as usize;
            let kept = space_timesteps(num_timesteps, &respacing).unwrap();
            assert_eq!(kept, golden.expected_indices(case["name"].as_str().unwrap()), "{case}");
        }
    }

    #[test]
    fn display_and_parse_round_trip() {
        for text in ["", "100", "10,15,20", "ddim50"] {
            assert_eq!(text.parse::<Respacing>().unwrap().to_string(), text);
        }
        assert_eq!(" 10, 20 ".parse(), Ok(Respacing::Sections(vec![10, 20])));
    }

    #[test]
    fn invalid_text_is_rejected() {
        for text in ["ten", "-5", "10,,20", "10,", "ddim", "ddim-1", "1.5", "99999999999999999999"]
        {
            let rejected = text.parse::<Respacing>();
            assert!(
                matches!(rejected, Err(RespaceError::NotANumber { .. })),
                "{text}: {rejected:?}"
            );
        }
        let rejected = |text: &str| space_timesteps(1000, &text.parse().unwrap()).unwrap_err();
        assert_eq!(rejected("0"), RespaceError::ZeroSteps { section: 0 });
        assert_eq!(rejected("10,0"), RespaceError::ZeroSteps { section: 1 });
        assert_eq!(rejected("ddim0"), RespaceError::ZeroSteps { section: 0 });
        assert_eq!(
            rejected("1001"),
            RespaceError::SectionTooShort { section: 0, size: 1000, count: 1001 }
        );
        let huge = usize::MAX;
        assert_eq!(
            rejected(&huge.to_string()),
            RespaceError::SectionTooShort { section: 0, size: 1000, count: huge }
        );
        // ddim1 would need a stride of 1000, which the reference does not try.
        for count in [1, 7_000, huge] {
            let expected = RespaceError::NoStride { num_timesteps: 1000, count };
            assert_eq!(rejected(&format!("ddim{count}")), expected);
        }
        assert_eq!(space_timesteps(10, &vec![].into()), Err(RespaceError::NoSections));
        for found in [0, huge] {
            let expected = Err(RespaceError::NumTimesteps { found });
            assert_eq!(space_timesteps(found, &Respacing::All), expected);
        }
    }

    #[test]
    fn halves_round_to_even() {
        // Stride 4.5 over 10 steps: 0, 4.5 -> 4 (not 5), 9.
        assert_eq!(space_timesteps(10, &Respacing::steps(3)).unwrap(), [0, 4, 9]);
        assert_eq!(space_timesteps(1000, &Respacing::steps(2)).unwrap(), [0, 999]);
    }
}
