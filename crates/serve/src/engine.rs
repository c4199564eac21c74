//! The trait of engines, which make videos, and the observer of a job.

use crate::request::JobRequest;
use opensora_video::Frames;
use serde::Serialize;
use serde_json::Value;
use std::{error::Error, ops::ControlFlow};

/// Any error that can be sent to another thread.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Makes videos, one at a time.
///
/// The worker thread calls [`generate`](Self::generate); [`check`](Self::check) is called by other threads
/// meanwhile.
pub trait Engine: Send + Sync + 'static {
    /// Returns the model's name and defaults.
    fn model(&self) -> &ModelInfo;

    /// Checks that the model supports a job's settings, without computing.
    ///
    /// # Errors
    /// Returns [`EngineError::Request`] if the model does not support them.
    fn check(&self, request: &JobRequest) -> Result<(), EngineError>;

    /// Makes the video of a job. The observer may stop the work at each of its events.
    ///
    /// # Errors
    /// Returns [`EngineError::Stopped`] if the observer stopped the work, [`EngineError::NotFinite`] if the
    /// computation overflowed, and the cause of any failure.
    fn generate(
        &self,
        request: &JobRequest,
        observer: &mut dyn Observer,
    ) -> Result<Generated, EngineError>;
}

/// A video and the record of how it was made.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The video.
    pub clip: Frames,
    /// The settings that reproduce the video, in the format of `opensora sample --from-record`.
    pub record: Value,
}

/// A model's name, and the defaults of requests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelInfo {
    /// Name of the model in requests.
    pub id: String,
    /// Frames of a video.
    pub num_frames: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width and height must be multiples of this number of pixels.
    pub multiple_of: usize,
    /// Frames per second.
    pub fps: f64,
    /// Name of the sampler.
    pub sampler: String,
    /// Steps of that sampler.
    pub steps: usize,
    /// Names of all samplers with their default numbers of steps.
    pub samplers: Vec<(String, usize)>,
    /// Strength of guidance.
    pub guidance_scale: f64,
}

/// Error of an engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model does not support the request.
    #[error("the model cannot make this video")]
    Request(#[source] BoxError),
    /// Loading or computing failed.
    #[error("the video could not be made")]
    Failed(#[source] BoxError),
    /// The video has values that are NaN or infinite. Parameters of a client can cause this, so it does not
    /// count as a failure of the engine. Clients get the message without the source.
    #[error(
        "the video is not finite: the computation overflowed (likely causes: a high guidance_scale, \
         or f16 as the server's float type)"
    )]
    NotFinite(#[source] BoxError),
    /// The observer stopped the work.
    #[error("the work was stopped")]
    Stopped,
}

/// Receives the progress of a job, and may stop it.
pub trait Observer {
    /// A stage of the work begins.
    fn stage(&mut self, _stage: Stage) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A step of the sampler is done.
    fn sampled(&mut self, _event: &Sampled) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Frames are decoded.
    fn decoded(&mut self, _event: &Decoded) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Returns true if a preview of the state after the last step would be shown. Making one costs a read
    /// from the device.
    fn wants_preview(&mut self) -> bool {
        false
    }

    /// A preview of the state after a step, if one was [wanted](Self::wants_preview).
    fn previewed(&mut self, _event: Preview) {}

    /// A problem that does not end the work, as one line of text.
    fn warned(&mut self, _text: &str) {}
}

/// Ignores all events.
impl Observer for () {}

/// A stage of the work on a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Weights are read.
    Loading,
    /// The prompt is encoded.
    Encoding,
    /// The sampler runs.
    Sampling,
    /// The VAE decodes frames.
    Decoding,
    /// The file is written.
    Writing,
}

/// Progress of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sampled {
    /// Steps that are done.
    pub step: usize,
    /// All steps.
    pub steps: usize,
}

impl Sampled {
    /// Returns the event after `step` of `steps` steps.
    pub fn new(step: usize, steps: usize) -> Self {
        Self { step, steps }
    }
}

/// Progress of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoded {
    /// Frames that are decoded.
    pub frames: usize,
    /// All frames.
    pub total: usize,
}

impl Decoded {
    /// Returns the event after `frames` of `total` frames.
    pub fn new(frames: usize, total: usize) -> Self {
        Self { frames, total }
    }
}

/// A small image of what is being sampled: frames one below the other.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preview {
    /// Steps that were done.
    pub step: usize,
    /// Number of frames.
    pub frames: usize,
    /// Width of a frame in pixels.
    pub width: usize,
    /// Height of a frame in pixels.
    pub height: usize,
    /// PNG of `width` by `frames * height` pixels.
    pub png: Vec<u8>,
}

impl Preview {
    /// Returns the preview after `step` steps: a PNG of frames `[frames, height, width]`.
    pub fn new(step: usize, [frames, height, width]: [usize; 3], png: Vec<u8>) -> Self {
        Self { step, frames, width, height, png }
    }
}
