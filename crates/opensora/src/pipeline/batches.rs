//! Iterators over the results of a pipeline: latents batch by batch, and clips one by one.

use super::{
    Conditioning, Conditions, LoadedDenoiser, LoadedVae, Observer, PipelineError, shared::Core,
};
use crate::{stdit::DenoiserWork, video::Frames};
use burn::tensor::Tensor;
use std::{iter::FusedIterator, ops::Range};

/// Latents of the clips of a batch.
#[derive(Debug, Clone)]
pub struct SampledLatents {
    /// Latents `[B, C, T, h, w]`.
    pub latents: Tensor<5>,
    /// Clips of the batch, as indices into the list of prompts or labels.
    pub clips: Range<usize>,
    /// The denoiser's work so far, over all batches.
    pub work: DenoiserWork,
}

/// A clip with its place in the call.
#[derive(Debug, Clone)]
pub struct SampledClip {
    /// The clip's index in the list of prompts or labels.
    pub index: usize,
    /// Clips that were sampled at once with this one, itself included.
    pub batch: Range<usize>,
    /// The clip.
    pub clip: Frames,
    /// The denoiser's work so far, over all batches.
    pub work: DenoiserWork,
}

/// Iterator over latents, batch by batch. `next` samples a batch; the iterator ends after an error.
pub struct LatentBatches<'a, C: Conditions + ?Sized = Conditioning> {
    /// `None` after the last batch and after an error.
    denoiser: Option<LoadedDenoiser<'a, C>>,
    conditions: &'a C,
    observer: &'a mut dyn Observer,
    batch: usize,
}

impl<'a, C: Conditions + ?Sized> LatentBatches<'a, C> {
    pub(super) fn new(
        denoiser: LoadedDenoiser<'a, C>,
        conditions: &'a C,
        observer: &'a mut dyn Observer,
    ) -> Self {
        let denoiser = (conditions.clips() > 0).then_some(denoiser);
        Self { denoiser, conditions, observer, batch: 0 }
    }

    /// Returns all latents, `[B, C, T, h, w]`; `None` if there are no clips.
    pub(super) fn collect_all(self) -> Result<Option<SampledLatents>, PipelineError> {
        let (clips, mut last) = (0..self.conditions.clips(), None);
        let mut latents = Vec::new();
        for batch in self {
            let batch = batch?;
            latents.push(batch.latents);
            last = Some(batch.work);
        }
        Ok(last.map(|work| SampledLatents { latents: Tensor::cat(latents, 0), clips, work }))
    }

    /// Samples the next batch; the denoiser is dropped after the last one.
    fn sample(
        &mut self,
        mut denoiser: LoadedDenoiser<'a, C>,
    ) -> Result<SampledLatents, PipelineError> {
        let (size, all) = (denoiser.batch_size(), self.conditions.clips());
        let first = self.batch * size;
        let clips = first..(first + size).min(all);
        let conditions = self.conditions.select(clips.clone());
        let start = denoiser.initial_latents(clips.len(), first);
        let batches = [self.batch, all.div_ceil(size)];
        let latents =
            denoiser.sample_batch(start, &conditions, first, batches, &mut *self.observer)?;
        let work = denoiser.work();
        self.batch += 1;
        if clips.end < all {
            self.denoiser = Some(denoiser);
        }
        Ok(SampledLatents { latents, clips, work })
    }
}

impl<C: Conditions + ?Sized> Iterator for LatentBatches<'_, C> {
    type Item = Result<SampledLatents, PipelineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let denoiser = self.denoiser.take()?;
        Some(self.sample(denoiser))
    }
}

impl<C: Conditions + ?Sized> FusedIterator for LatentBatches<'_, C> {}

/// Iterator over decoded clips. Before the first clip of each batch, `next` samples the batch. The iterator ends
/// after an error.
pub struct Clips<'a, C: Conditions + ?Sized = Conditioning> {
    core: &'a Core,
    batches: LatentBatches<'a, C>,
    vae: Option<LoadedVae<'a>>,
    /// The batch that is being decoded, and its next clip.
    current: Option<(SampledLatents, usize)>,
}

impl<'a, C: Conditions + ?Sized> Clips<'a, C> {
    pub(super) fn new(core: &'a Core, batches: LatentBatches<'a, C>) -> Self {
        Self { core, batches, vae: None, current: None }
    }

    /// Decodes clip `index` of a batch.
    fn decode(
        &mut self,
        batch: SampledLatents,
        index: usize,
    ) -> Result<SampledClip, PipelineError> {
        let observer = &mut *self.batches.observer;
        let vae = match &mut self.vae {
            Some(vae) => vae,
            none => none.insert(self.core.load_vae(observer)?),
        };
        let SampledLatents { latents, clips, work } = &batch;
        let one = latents.clone().narrow(0, index - clips.start, 1);
        let all = self.batches.conditions.clips();
        let clip = vae.decode_one(one, [index, all], observer)?;
        let sampled = SampledClip { index, batch: clips.clone(), clip, work: *work };
        if index + 1 < clips.end {
            self.current = Some((batch, index + 1));
        }
        Ok(sampled)
    }
}

impl<C: Conditions + ?Sized> Iterator for Clips<'_, C> {
    type Item = Result<SampledClip, PipelineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (batch, index) = match self.current.take() {
            Some(current) => current,
            None => match self.batches.next()? {
                Ok(batch) => {
                    let first = batch.clips.start;
                    (batch, first)
                }
                Err(error) => return Some(Err(error)),
            },
        };
        let clip = self.decode(batch, index);
        if clip.is_err() {
            self.batches.denoiser = None;
        }
        Some(clip)
    }
}

impl<C: Conditions + ?Sized> FusedIterator for Clips<'_, C> {}
