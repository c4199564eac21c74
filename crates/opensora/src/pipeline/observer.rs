//! Progress of the pipeline, told to the caller.

use crate::checkpoint::ImportReport;
use std::ops::ControlFlow;

/// Receives progress, and may stop the work.
pub trait Observer {
    /// A model is about to be loaded.
    fn loading(&mut self, _what: &str) {}

    /// A model was loaded.
    fn loaded(&mut self, _report: &ImportReport) {}

    /// The text encoder does not know these words of a prompt: they are spelled out of pieces that mean
    /// little, or are one token that stands for anything.
    fn unknown_words(&mut self, _prompt: &str, _words: &[String]) {}

    /// Step `step` of `steps` of the sampler is done (from 1) for batch `batch` of `batches` (from
    /// 0). Returning `Break` stops the sampling.
    fn sampled(
        &mut self,
        _step: usize,
        _steps: usize,
        _batch: usize,
        _batches: usize,
    ) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// `frames` of `total` frames are decoded.
    fn decoded(&mut self, _frames: usize, _total: usize) {}
}

/// An observer that ignores everything and stops nothing.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Observer for Quiet {}
