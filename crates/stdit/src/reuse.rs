//! Settings for reusing attention outputs in later sampling steps (pyramid attention broadcast).
//!
//! From one sampling step to the next, the output of attention changes little: cross attention least and
//! spatial attention most. So each kind of attention is computed only in every k-th step of a window of
//! timesteps, and its last output is added in the steps between. That trades fidelity to the full
//! computation for time. A range of 1 computes always and changes nothing.
//!
//! Source: Zhao et al. 2024, "Real-Time Video Generation with Pyramid Attention Broadcast" (arXiv
//! 2408.12588); NUS-HPC-AI-Lab/VideoSys, `videosys/core/pab_mgr.py` and the `OpenSoraPABConfig` of
//! `videosys/pipelines/open_sora/pipeline_open_sora.py`: steps are counted from the first one, and a step
//! is skipped if its count is not a multiple of the range and its timestep is strictly inside the window.
//! The gated output of self-attention is stored, as in `open_sora_transformer_3d.py`. Not ported: the reuse
//! of MLP outputs, which is tied to one list of timesteps.
//!
//! Ranges count steps, not timesteps. They were published for 30 and more steps. In runs of 20 or fewer
//! steps, neighbouring steps lie further apart and the same ranges cost more quality.

use crate::hooks::AttentionKind;
use std::{cmp::Ordering, fmt, str::FromStr};

/// The sampling steps in which attention outputs are reused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionReuse {
    spatial: usize,
    temporal: usize,
    cross: usize,
    above: f32,
    below: f32,
}

/// Error for invalid settings.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionReuseError {
    /// A setting that is not `name=number`, or has an unknown name.
    #[error(
        "unknown setting '{found}', expected settings such as \
         spatial=2,temporal=4,cross=6,above=450,below=930"
    )]
    Part {
        /// The setting.
        found: String,
    },
    /// A range of 0 steps.
    #[error("the {kind} range is 0 steps, expected at least 1")]
    Range {
        /// The kind of attention.
        kind: &'static str,
    },
    /// A window that contains no timestep.
    #[error("the window is above {above} and below {below}, expected timesteps in rising order")]
    Window {
        /// The lower end.
        above: f32,
        /// The upper end.
        below: f32,
    },
}

impl AttentionReuse {
    /// Computes every attention in every step.
    pub const OFF: Self = Self { spatial: 1, temporal: 1, cross: 1, above: 450.0, below: 930.0 };

    /// The published setting for Open-Sora: every 2nd (spatial), 4th (temporal) and 6th (cross) step, at
    /// timesteps between 450 and 930.
    pub const PUBLISHED: Self = Self { spatial: 2, temporal: 4, cross: 6, ..Self::OFF };

    /// Computes one of every `ranges` steps (spatial, temporal, cross) at timesteps strictly between the
    /// ends of the window.
    ///
    /// # Errors
    /// Returns an error if a range is 0, or the window's ends are not numbers in rising order.
    pub fn new(ranges: [usize; 3], [above, below]: [f32; 2]) -> Result<Self, AttentionReuseError> {
        for (kind, range) in ["spatial", "temporal", "cross"].into_iter().zip(ranges) {
            if range == 0 {
                return Err(AttentionReuseError::Range { kind });
            }
        }
        // NaN compares with nothing.
        if above.partial_cmp(&below) != Some(Ordering::Less) {
            return Err(AttentionReuseError::Window { above, below });
        }
        let [spatial, temporal, cross] = ranges;
        Ok(Self { spatial, temporal, cross, above, below })
    }

    /// Returns true if no output is ever reused.
    pub fn is_off(&self) -> bool {
        AttentionKind::ALL.iter().all(|&kind| self.range(kind) == 1)
    }

    fn range(&self, kind: AttentionKind) -> usize {
        match kind {
            AttentionKind::Spatial => self.spatial,
            AttentionKind::Temporal => self.temporal,
            AttentionKind::Cross => self.cross,
        }
    }

    /// Returns true if step `step` of a run, counted from 0, reuses an earlier output.
    pub(crate) fn skips(&self, kind: AttentionKind, step: usize, timestep: f32) -> bool {
        !step.is_multiple_of(self.range(kind)) && self.above < timestep && timestep < self.below
    }

    /// Returns true if a step at a smaller timestep may reuse the output of the step at `timestep`.
    pub(crate) fn stores(&self, kind: AttentionKind, timestep: f32) -> bool {
        self.range(kind) > 1 && timestep > self.above
    }

    /// Returns true if no step at `timestep` or below reuses an output.
    pub(crate) fn is_past(&self, timestep: f32) -> bool {
        timestep <= self.above
    }
}

impl Default for AttentionReuse {
    fn default() -> Self {
        Self::OFF
    }
}

impl fmt::Display for AttentionReuse {
    /// Writes `off`, or settings that [`from_str`](Self::from_str) reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        let Self { spatial, temporal, cross, above, below } = self;
        write!(f, "spatial={spatial},temporal={temporal},cross={cross},above={above},below={below}")
    }
}

impl FromStr for AttentionReuse {
    type Err = AttentionReuseError;

    /// Reads `off`, `published`, or settings such as `spatial=2,cross=6`. Ranges that are not given are 1,
    /// ends of the window that are not given are the published ones.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "off" => return Ok(Self::OFF),
            "published" => return Ok(Self::PUBLISHED),
            _ => (),
        }
        let mut found = Self::OFF;
        for part in text.split(',') {
            let unknown = || AttentionReuseError::Part { found: part.trim().into() };
            let (name, value) = part.split_once('=').ok_or_else(unknown)?;
            let range = || value.trim().parse::<usize>().map_err(|_| unknown());
            let timestep = || value.trim().parse::<f32>().map_err(|_| unknown());
            match name.trim() {
                "spatial" => found.spatial = range()?,
                "temporal" => found.temporal = range()?,
                "cross" => found.cross = range()?,
                "above" => found.above = timestep()?,
                "below" => found.below = timestep()?,
                _ => return Err(unknown()),
            }
        }
        Self::new([found.spatial, found.temporal, found.cross], [found.above, found.below])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_excludes_its_ends() {
        let reuse = AttentionReuse::new([2, 1, 1], [450.0, 930.0]).unwrap();
        let skips = |step, timestep| reuse.skips(AttentionKind::Spatial, step, timestep);
        assert!(skips(1, 450.1) && skips(1, 929.9) && skips(3, 700.0));
        assert!(!skips(1, 450.0) && !skips(1, 930.0) && !skips(0, 700.0) && !skips(2, 700.0));
        assert!(!reuse.skips(AttentionKind::Temporal, 1, 700.0));
        let stores = |kind, timestep| reuse.stores(kind, timestep);
        assert!(stores(AttentionKind::Spatial, 999.0) && stores(AttentionKind::Spatial, 450.1));
        assert!(!stores(AttentionKind::Spatial, 450.0) && !stores(AttentionKind::Cross, 700.0));
        assert!(reuse.is_past(450.0) && !reuse.is_past(450.1));
        assert!(!reuse.is_off() && AttentionReuse::OFF.is_off());
    }

    #[test]
    fn settings_are_parsed_and_displayed() {
        let parse = |text: &str| text.parse::<AttentionReuse>();
        assert_eq!(parse("published"), Ok(AttentionReuse::PUBLISHED));
        assert_eq!(parse("off"), Ok(AttentionReuse::OFF));
        assert_eq!(
            parse("spatial=2, cross=6,above=100,below=850.5"),
            AttentionReuse::new([2, 1, 6], [100.0, 850.5])
        );
        for reuse in [AttentionReuse::OFF, AttentionReuse::PUBLISHED] {
            assert_eq!(parse(&reuse.to_string()), Ok(reuse));
        }
        for text in ["", "2", "spatial", "spatial=-1", "mlp=2", "spatial=2;cross=6"] {
            assert!(matches!(parse(text), Err(AttentionReuseError::Part { .. })), "{text}");
        }
        let error = parse("spatial=2,temporal=0").unwrap_err();
        assert_eq!(error, AttentionReuseError::Range { kind: "temporal" });
        for text in ["above=NaN", "above=930", "below=100"] {
            assert!(matches!(parse(text), Err(AttentionReuseError::Window { .. })), "{text}");
        }
    }
}
