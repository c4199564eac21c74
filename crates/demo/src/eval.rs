//! Measures how often a model's clips match their prompts.
//!
//! Prompts are generated, [`crate::judge()`] recognises what every frame of the sampled clips shows, and correct
//! verdicts are counted per frame and per clip. Two ceilings are reported for comparison: the judge on real clips, and the judge on
//! real clips that the model's VAE has encoded and decoded.
//!
//! ```no_run
//! use opensora::{PipelineOptions, TextToVideo, nn::device};
//! use opensora_demo::eval::{EvalError, Evaluation};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let files = opensora_demo::model_files()?;
//! let evaluation =
//!     Evaluation { prompts: 24, request: files.defaults.clone(), ..Evaluation::default() };
//! let pipeline = TextToVideo::new(files, PipelineOptions::default(), device::parse("flex")?)?;
//! let report = evaluation.run(&pipeline, &mut (), |_judged| Ok::<_, EvalError>(()))?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`prompts`] | the prompts: of triples that training showed or held out |
//! | [`scores`] | counts of correct verdicts with confidence intervals; means of the stability |
//! | [`report`] | the result of an evaluation |

pub mod prompts;
pub mod report;
pub mod scores;

pub use prompts::{DemoPrompt, PromptSet, demo_prompts};
pub use report::Report;
pub use scores::{Attribute, Mean, Scores, Steadiness, Tally};

use crate::{Judgement, Kind, Scene, judge, render};
use burn::tensor::{FloatDType, Tensor, TensorData};
use opensora::{
    Observer, PipelineError, SampleRequest, TextToVideo,
    checkpoint::{Checkpoint, CheckpointError, PublishedModel},
    frames::{ToFramesError, to_frames},
    pipeline::{Decoded, Loaded, Part, SampledClip},
    stdit::DenoiserWork,
    vae::{AutoencoderKl, VaeConfig, VaeConfigError},
    video::{Frames, FramesError},
};
use std::time::{Duration, Instant};

/// Smallest side of clips that can be judged, in pixels.
pub const SMALLEST_SIDE: usize = 32;

/// Maximum number of prompts.
pub const MAX_PROMPTS: usize = 1_000_000;

/// Clips that the VAE processes at once.
const ROUND_TRIP_BATCH: usize = 4;
/// Frames that the VAE processes at once.
const MICRO_BATCH: usize = 16;

/// A sampled clip and its verdict.
#[derive(Debug)]
pub struct Judged<'a> {
    /// Index of the prompt.
    pub index: usize,
    /// The prompt and its labels.
    pub prompt: &'a DemoPrompt,
    /// The clip.
    pub clip: Frames,
    /// What the judge recognised.
    pub judgement: Judgement,
}

/// Why a model cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A number of prompts that is out of range.
    #[error("{found} prompts, expected 1 to {MAX_PROMPTS}")]
    Prompts {
        /// The number of prompts.
        found: usize,
    },
    /// Clips that are too small to be judged.
    #[error(
        "{}x{}: clips under {SMALLEST_SIDE} pixels cannot be judged", image_size[0], image_size[1]
    )]
    TooSmall {
        /// Height and width in pixels.
        image_size: [usize; 2],
    },
    /// Clips that are too short to show a motion.
    #[error("{num_frames} frames: motion takes at least 2")]
    TooShort {
        /// Frames of a clip.
        num_frames: usize,
    },
    /// The model cannot be sampled.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The VAE's configuration cannot be used.
    #[error(transparent)]
    VaeConfig(#[from] VaeConfigError),
    /// The VAE's weights cannot be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The VAE cannot be loaded.
    #[error(transparent)]
    Vae(#[from] opensora::vae::LoadError),
    /// The decoded values cannot be converted to frames.
    #[error(transparent)]
    ToFrames(#[from] ToFramesError),
    /// A real clip does not support the size of the request.
    #[error(transparent)]
    Frames(#[from] FramesError),
}

/// An evaluation of a model on demo prompts.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    /// Triples of shape, colour and motion to ask for.
    pub set: PromptSet,
    /// Number of prompts.
    pub prompts: usize,
    /// Size, length, sampler, guidance, seed (of prompts and noise).
    pub request: SampleRequest,
    /// True to measure the ceiling of the VAE as well.
    pub vae_ceiling: bool,
}

impl Evaluation {
    /// Returns the prompts, in order.
    pub fn prompts(&self) -> Vec<DemoPrompt> {
        demo_prompts(self.set, self.prompts, self.request.seed)
    }

    /// Checks that the model can make such clips and that they can be judged.
    ///
    /// # Errors
    /// Returns an error if there are no prompts, the clips are too small or too short to be judged, or the
    /// model cannot make them.
    pub fn check(&self, pipeline: &TextToVideo) -> Result<(), EvalError> {
        if !(1..=MAX_PROMPTS).contains(&self.prompts) {
            return Err(EvalError::Prompts { found: self.prompts });
        }
        let SampleRequest { num_frames, image_size, .. } = self.request;
        if image_size.iter().any(|&side| side < SMALLEST_SIDE) {
            return Err(EvalError::TooSmall { image_size });
        }
        if num_frames < 2 {
            return Err(EvalError::TooShort { num_frames });
        }
        pipeline.check(&self.request)?;
        Ok(())
    }

    /// Samples a clip for every prompt and judges it; `sink` receives each as soon as it is judged. The text
    /// encoder, the denoiser and the VAE are loaded once each (and the VAE once more for its ceiling).
    ///
    /// # Errors
    /// Returns the errors of [`check`](Self::check) and of the pipeline, and those of `sink`.
    pub fn run<E: From<EvalError>>(
        &self,
        pipeline: &TextToVideo,
        observer: &mut dyn Observer,
        mut sink: impl FnMut(Judged<'_>) -> Result<(), E>,
    ) -> Result<Report, E> {
        self.check(pipeline)?;
        let fail = |error: PipelineError| E::from(EvalError::Pipeline(error));
        let prompts = self.prompts();
        let texts: Vec<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        let (started, mut in_sink) = (Instant::now(), Duration::ZERO);
        let conditioning = pipeline.encode(&texts, &self.request, observer).map_err(fail)?;
        let (mut model, mut work) = (Scores::default(), DenoiserWork::default());
        let clips = pipeline.clips(&conditioning, &self.request, observer).map_err(fail)?;
        for (sampled, prompt) in clips.zip(&prompts) {
            let SampledClip { index, clip, work: so_far, .. } = sampled.map_err(fail)?;
            work = so_far;
            let judgement = judge(&clip);
            model.add(&prompt.labels, prompt.is_new_sentence, &judgement);
            let judged = Instant::now();
            sink(Judged { index, prompt, clip, judgement })?;
            in_sink += judged.elapsed();
        }
        let seconds = (started.elapsed() - in_sink).as_secs_f64();
        let vae = if self.vae_ceiling {
            Some(vae_ceiling(pipeline, &prompts, &self.request, observer)?)
        } else {
            None
        };
        Ok(Report {
            model_name: pipeline.files().name.clone(),
            set: self.set,
            request: self.request.clone(),
            judge: judge_ceiling(&prompts, &self.request)?,
            vae,
            model,
            work,
            seconds_per_clip: seconds / prompts.len() as f64,
        })
    }
}

/// Draws the real clip of a prompt.
fn real_clip(
    prompt: &DemoPrompt,
    index: usize,
    request: &SampleRequest,
) -> Result<Frames, EvalError> {
    let scene = Scene::draw(prompt.labels, &mut Kind::RealClip.rng(request.seed, index as u64));
    Ok(render(&scene, request.num_frames, request.image_size)?)
}

/// Scores the judge on real clips of the prompts: the ceiling of every model.
///
/// # Errors
/// Returns an error if clips do not support the size of the request.
pub fn judge_ceiling(prompts: &[DemoPrompt], request: &SampleRequest) -> Result<Scores, EvalError> {
    let mut scores = Scores::default();
    for (index, prompt) in prompts.iter().enumerate() {
        let clip = real_clip(prompt, index, request)?;
        scores.add(&prompt.labels, prompt.is_new_sentence, &judge(&clip));
    }
    Ok(scores)
}

/// Scores the judge on real clips that the model's VAE has encoded (to the mean of the posterior) and
/// decoded: the ceiling of the denoiser.
///
/// # Errors
/// Returns an error if the VAE cannot be loaded or clips do not support the size of the request.
pub fn vae_ceiling(
    pipeline: &TextToVideo,
    prompts: &[DemoPrompt],
    request: &SampleRequest,
    observer: &mut dyn Observer,
) -> Result<Scores, EvalError> {
    observer.loading(Part::Vae);
    let path = &pipeline.files().vae;
    let checkpoint = Checkpoint::open(path)?;
    let config = VaeConfig::beside(path)?;
    let device = pipeline.device();
    let (vae, loaded) = AutoencoderKl::load(&config, &checkpoint, FloatDType::F32, device)?;
    observer.loaded(&Loaded::new(Part::Vae, &loaded));
    let mut scores = Scores::default();
    let [height, width] = request.image_size;
    for (part, few) in prompts.chunks(ROUND_TRIP_BATCH).enumerate() {
        let mut values = Vec::new();
        for (index, prompt) in few.iter().enumerate() {
            let clip = real_clip(prompt, part * ROUND_TRIP_BATCH + index, request)?;
            values.extend(signed(&clip));
        }
        let shape = [few.len(), 3, request.num_frames, height, width];
        let clips = Tensor::<5>::from_data(TensorData::new(values, shape), device);
        let latents = vae.encode(clips, Some(MICRO_BATCH)).mean_latents();
        let clips = to_frames(vae.decode(latents, Some(MICRO_BATCH)))?;
        for (prompt, clip) in few.iter().zip(clips) {
            scores.add(&prompt.labels, prompt.is_new_sentence, &judge(&clip));
        }
        let done = (part * ROUND_TRIP_BATCH + few.len()) * request.num_frames;
        let event = Decoded::new(done, prompts.len() * request.num_frames);
        if observer.decoded(&event).is_break() {
            return Err(event.stopped().into());
        }
    }
    Ok(scores)
}

/// Returns a clip's pixels as `[3, T, H, W]` in [-1, 1].
fn signed(clip: &Frames) -> Vec<f32> {
    let mut values = Vec::with_capacity(clip.data().len());
    for channel in 0..3 {
        let plane = clip.data().iter().skip(channel).step_by(3);
        values.extend(plane.map(|&byte| f32::from(byte) / 127.5 - 1.0));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_round_trip_through_planes() {
        let clip = Frames::from_rgb((0..24).map(|i| i * 10).collect(), [2, 2, 2]).unwrap();
        let values = signed(&clip);
        assert_eq!((values[0], values[1]), (-1.0, 30.0 / 127.5 - 1.0));
        assert_eq!(Frames::from_signed(&values, [3, 2, 2, 2]).unwrap(), clip);
    }

    #[test]
    fn real_clips_reach_the_ceiling() {
        let request = SampleRequest {
            image_size: [48, 48],
            num_frames: 12,
            seed: 5,
            ..SampleRequest::default()
        };
        let prompts = demo_prompts(PromptSet::All, 594, 5);
        let scores = judge_ceiling(&prompts, &request).unwrap();
        for attribute in [Attribute::Frames, Attribute::Shape, Attribute::All] {
            assert!(scores.of(attribute).accuracy() >= 0.995, "{attribute}: {scores:?}");
        }
        let steady = &scores.steadiness;
        assert!(steady.area_variation.mean().unwrap() < 0.02, "{steady:?}");
        assert!(steady.overlap.mean().unwrap() > 0.9, "{steady:?}");
        assert!(steady.colour_flicker.mean().unwrap() < 1.0, "{steady:?}");
        assert!(steady.background_flicker.mean().unwrap() < 1.0, "{steady:?}");
        // Wrong motions, everything else right.
        let turned = |prompt: &DemoPrompt| {
            use crate::Motion;
            let motion = match prompt.labels.motion {
                Some(Motion::Left) => Motion::Right,
                _ => Motion::Left,
            };
            let labels = crate::Labels { motion: Some(motion), ..prompt.labels };
            DemoPrompt { labels, ..prompt.clone() }
        };
        let mut wrong = Scores::default();
        for (index, prompt) in prompts.iter().enumerate() {
            let clip = real_clip(&turned(prompt), index, &request).unwrap();
            wrong.add(&prompt.labels, prompt.is_new_sentence, &judge(&clip));
        }
        assert_eq!(wrong.of(Attribute::Motion).right, 0);
        assert!(wrong.of(Attribute::Shape).accuracy() >= 0.99);
    }
}
