//! Sampling over ranks: who computes which part of a clip, and how ranks agree.
//!
//! All ranks make the same calls with the same arguments and get the same results. The work is divided in three
//! ways:
//!
//! | step | divided by |
//! |---|---|
//! | denoiser | frames: each rank holds the tokens of some frames ([`FrameShards`](crate::stdit::FrameShards)) |
//! | guidance | condition: half of the ranks predict with the prompt, the other half without it |
//! | VAE decoder | frames |
//!
//! Every rank runs the sampler on the latents of the whole clip, with the noise of one process: latents are small beside
//! the tokens in a block. The text encoder is not divided.
//!
//! An error on one rank (a file that cannot be read, a lost device) is not agreed upon: the other ranks wait for it in
//! their next collective, so the program has to end all ranks. Outputs that are not finite and the will of an observer
//! to stop are errors on all ranks.

use super::PipelineError;
use crate::{
    parallel::{Group, Mesh, Reduction, Solo},
    stdit::DenoiserWork,
};
use std::{ops::ControlFlow, sync::Arc};

/// The ranks of a [`TextToVideo`](crate::TextToVideo) and what each computes.
#[derive(Debug, Clone)]
pub struct SamplingRanks {
    /// All ranks.
    world: Group,
    /// Ranks that divide the frames of the denoiser's clips.
    frames: Group,
    /// Two ranks, of which the first predicts with the prompt and the second without; or this rank alone.
    guidance: Group,
}

/// One process.
impl Default for SamplingRanks {
    fn default() -> Self {
        let solo: Group = Arc::new(Solo);
        Self { world: solo.clone(), frames: solo.clone(), guidance: solo }
    }
}

impl SamplingRanks {
    /// Divides the frames of a clip among all ranks of `world`.
    pub fn by_frames(world: Group) -> Self {
        Self { frames: world.clone(), guidance: Arc::new(Solo), world }
    }

    /// Divides the two predictions of guidance between the halves of `world`, and the frames of a clip among the ranks
    /// of each half. All ranks of `world` call it.
    ///
    /// # Errors
    /// Returns an error if the number of ranks is odd.
    pub fn by_guidance(world: Group) -> Result<Self, PipelineError> {
        let ranks = world.size();
        if !ranks.is_multiple_of(2) {
            return Err(PipelineError::Parts(format!(
                "guidance is divided between two halves of the ranks, but there are {ranks} ranks: use an even number"
            )));
        }
        match Mesh::new(world, ranks / 2) {
            Ok(Mesh { world, data, sequence }) => {
                Ok(Self { world, frames: sequence, guidance: data })
            }
            Err(error) => Err(PipelineError::Parts(error.to_string())),
        }
    }

    /// Returns the group of all ranks.
    pub fn world(&self) -> &Group {
        &self.world
    }

    /// Returns the ranks that divide the frames of a clip, if there are several.
    pub(super) fn frames(&self) -> Option<&Group> {
        (self.frames.size() > 1).then_some(&self.frames)
    }

    /// Returns the two ranks that divide the predictions of guidance.
    pub(super) fn guidance(&self) -> Option<&Group> {
        (self.guidance.size() > 1).then_some(&self.guidance)
    }

    /// Returns `Break` on all ranks if one of them wants to stop.
    pub(super) fn agree(&self, flow: ControlFlow<()>) -> ControlFlow<()> {
        match self.largest(u8::from(flow.is_break())) {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }

    /// Returns the largest number of any rank.
    pub(super) fn largest(&self, number: u8) -> u8 {
        if self.world.size() == 1 {
            return number;
        }
        let mut buffer = [f32::from(number)];
        self.world.all_reduce(Reduction::Max, &mut buffer);
        buffer[0] as u8
    }

    /// Returns the work of a clip: that of both predictions if two ranks divide them. Ranks that divide frames each
    /// count the whole clip.
    pub(super) fn whole_work(&self, work: DenoiserWork) -> DenoiserWork {
        let Some(group) = self.guidance() else { return work };
        let DenoiserWork { forward_samples, attentions_computed, attentions_reused, flops } = work;
        let mut sums =
            [forward_samples as f64, attentions_computed as f64, attentions_reused as f64, flops];
        group.all_reduce_f64(Reduction::Sum, &mut sums);
        let [forward_samples, attentions_computed, attentions_reused, flops] = sums;
        DenoiserWork {
            forward_samples: forward_samples as u64,
            attentions_computed: attentions_computed as u64,
            attentions_reused: attentions_reused as u64,
            flops,
        }
    }
}
