//! The measured parts of the flow with their models and inputs.

use super::{BenchError, BenchSpec, Part, StageSeconds, flops, weights};
use burn::tensor::{Device, FloatDType, Tensor};
use opensora::{
    denoiser::PromptedDenoiser,
    diffusion::{Sampler, TRAINING_TIMESTEPS},
    frames::to_frames,
    nn::{
        mask::TokenMask,
        noise::{Purpose, normal_batch},
        read::wait,
    },
    stdit::StDit,
    t5::{PromptStates, T5Config},
    train::{
        Trainer,
        denoiser::{DenoiserBatch, DenoiserRecipe, DenoiserTask},
        metrics::flops::ModelFlops,
        optimizer::OptimizerRecipe,
    },
    vae::AutoencoderKl,
};
use std::time::Instant;

/// Seconds of the stages; `None` if the whole run is measured.
type Stages = Option<StageSeconds>;

/// One run of a part.
type Run = Box<dyn FnMut() -> Result<Stages, BenchError>>;

/// A part with its models and inputs.
pub(super) struct Prepared {
    run: Run,
    flop: f64,
}

impl Prepared {
    pub(super) fn run(&mut self) -> Result<Stages, BenchError> {
        (self.run)()
    }

    /// Returns the floating point operations of one run.
    pub(super) fn flop(&self) -> f64 {
        self.flop
    }
}

/// Creates the part's models and inputs; `latents` is the size of a clip's latents, `[T, h, w]`.
pub(super) fn prepare(
    spec: &BenchSpec,
    latents: [usize; 3],
    device: &Device,
) -> Result<Prepared, BenchError> {
    let inputs = Inputs { spec: spec.clone(), latents, device: device.clone() };
    let frames = (spec.batch_size * spec.num_frames) as f64;
    let config = &spec.preset.denoiser;
    let denoiser = |tokens| -> Result<ModelFlops, BenchError> {
        Ok(ModelFlops::new(config, config.grid(latents)?, tokens))
    };
    let batch = spec.batch_size as f64;
    let t5 = batch * flops::t5(&spec.preset.t5, spec.tokens);
    let vae_decode = frames * flops::vae_decode(&spec.preset.vae, spec.image_size);
    let vae_encode = frames * flops::vae_encode(&spec.preset.vae, spec.image_size);
    let dtype = spec.dtype.float();

    let (run, flop): (Run, f64) = match spec.part {
        Part::Stdit => {
            let flop = denoiser(spec.tokens)?.forward();
            let model = weights::random(config.init::<StDit>(device)?, dtype);
            let (x, states) = (inputs.latents(), inputs.states());
            let timesteps = vec![500.0; spec.batch_size];
            let run = move || {
                model.forward(x.clone(), &timesteps, states.clone(), None);
                Ok(None)
            };
            (Box::new(run), batch * flop)
        }
        Part::VaeEncode => {
            let model = weights::random(spec.preset.vae.init(device)?, dtype);
            let (clip, micro_batch) = (inputs.clip(), spec.micro_batch);
            let run = move || {
                model.encode(clip.clone(), Some(micro_batch));
                Ok(None)
            };
            (Box::new(run), vae_encode)
        }
        Part::VaeDecode => {
            let model = weights::random(spec.preset.vae.init(device)?, dtype);
            let (x, inputs) = (inputs.latents(), inputs);
            let run = move || {
                inputs.decode(&model, x.clone());
                Ok(None)
            };
            (Box::new(run), vae_decode)
        }
        Part::T5 => {
            let model = weights::random(spec.preset.t5.init(device)?, dtype);
            let ids = inputs.ids();
            let run = move || {
                model.forward(&ids, None);
                Ok(None)
            };
            (Box::new(run), t5)
        }
        Part::TrainStep => {
            let flop = denoiser(spec.tokens)?.training(spec.activation_checkpointing);
            (inputs.train_step()?, batch * flop)
        }
        Part::Sample => {
            let steps = spec.steps.unwrap_or(spec.sampler.default_steps());
            let sampler = spec.sampler.build(steps)?;
            // Prompts are padded to the most tokens; guidance asks with and without them.
            let denoise = denoiser(config.model_max_length)?.forward();
            let flop = t5 + 2.0 * steps as f64 * batch * denoise + vae_decode;
            (Box::new(move || inputs.sample(&*sampler)), flop)
        }
    };
    Ok(Prepared { run, flop })
}

/// Sizes and device of a benchmark: creates the random inputs of every part, and runs the parts
/// `train-step` and `sample`.
struct Inputs {
    spec: BenchSpec,
    latents: [usize; 3],
    device: Device,
}

impl Inputs {
    /// Returns random latents, `[B, C, T, h, w]`.
    fn latents(&self) -> Tensor<5> {
        let [frames, height, width] = self.latents;
        let channels = self.spec.preset.denoiser.in_channels;
        self.normal([self.spec.batch_size, channels, frames, height, width])
    }

    /// Returns random frames, `[B, 3, T, H, W]`.
    fn clip(&self) -> Tensor<5> {
        let [height, width] = self.spec.image_size;
        let channels = self.spec.preset.vae.in_channels;
        self.normal([self.spec.batch_size, channels, self.spec.num_frames, height, width])
    }

    /// Returns random prompt states, `[B, L, caption_channels]`.
    fn states(&self) -> Tensor<3> {
        let width = self.spec.preset.denoiser.caption_channels;
        self.normal([self.spec.batch_size, self.spec.tokens, width])
    }

    fn ids(&self) -> Vec<Vec<u32>> {
        let rows = self.spec.preset.t5.vocab_size;
        let row = (0..self.spec.tokens).map(|token| (token * 7 % rows) as u32).collect();
        vec![row; self.spec.batch_size]
    }

    fn normal<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        normal_batch(0, Purpose::InitialLatents, 0, 0, shape, &self.device)
    }

    fn decode(&self, vae: &AutoencoderKl, latents: Tensor<5>) -> Tensor<5> {
        let micro_batch = Some(self.spec.micro_batch);
        match self.spec.tile_rows {
            Some(rows) => vae.decode_in_tiles(latents, micro_batch, rows),
            None => vae.decode(latents, micro_batch),
        }
    }

    /// Returns a training step of the denoiser.
    fn train_step(&self) -> Result<Run, BenchError> {
        let (spec, device) = (&self.spec, &self.device);
        let (config, dtype) = (&spec.preset.denoiser, spec.dtype.float());
        let recipe = DenoiserRecipe {
            activation_checkpointing: spec.activation_checkpointing,
            ..DenoiserRecipe::default()
        };
        let task = DenoiserTask::new(&recipe, config, 0, dtype, device)?;
        let model = weights::random(config.init::<StDit>(device)?, FloatDType::F32);
        let mut trainer = Trainer::new(model, &OptimizerRecipe::default(), |_| true)?;
        let batch = self.training_batch();
        Ok(Box::new(move || {
            let (_, gradients) = task.losses(&trainer.graph(dtype), batch.clone())?;
            trainer.apply(gradients, 1000)?;
            Ok(None)
        }))
    }

    fn training_batch(&self) -> DenoiserBatch {
        let batch = self.spec.batch_size;
        DenoiserBatch {
            latents: self.latents(),
            noise: self.latents(),
            t: (0..batch).map(|sample| (500 + 37 * sample) % TRAINING_TIMESTEPS).collect(),
            states: self.states(),
            mask: TokenMask::all(batch, self.spec.tokens),
            dropped: vec![false; batch],
        }
    }

    /// Runs text encoder, sampler and VAE, each created, used and dropped before the next. The creation of
    /// weights is not measured: it stands for loading them.
    ///
    /// Memory holds one block of the text encoder at a time, as in the pipeline; one block stands in for all
    /// blocks.
    fn sample(&self, sampler: &dyn Sampler) -> Result<Stages, BenchError> {
        let (spec, device) = (&self.spec, &self.device);
        let dtype = spec.dtype.float();
        let synced = || wait(device).map_err(BenchError::Device);

        let block = T5Config { num_layers: 1, ..spec.preset.t5.clone() };
        let encoder = weights::random(block.init(device)?, dtype);
        synced()?;
        let began = Instant::now();
        let mut states = encoder.forward(&self.ids(), None);
        for _ in 1..spec.preset.t5.num_layers {
            states = encoder.forward(&self.ids(), None);
        }
        synced()?;
        let text = began.elapsed().as_secs_f64();
        drop(encoder);

        let model = weights::random(spec.preset.denoiser.init::<StDit>(device)?, dtype);
        let [null_tokens, _] = model.null_prompt().dims();
        let [batch, tokens, width] = states.dims();
        // Shorter prompts are padded, and their mask leaves the padding out.
        let padding = Tensor::zeros([batch, null_tokens - tokens, width], &states.device());
        let mut row = vec![true; tokens];
        row.resize(null_tokens, false);
        let prompts = PromptStates {
            states: Tensor::cat(vec![states.cast(FloatDType::F32), padding], 1),
            mask: TokenMask::new(vec![row; batch]).unwrap_or(TokenMask::all(batch, null_tokens)),
        };
        let start = self.latents();
        synced()?;
        let began = Instant::now();
        let latents = sampler.sample(
            &PromptedDenoiser::new(&model, &prompts)?,
            &spec.sampler.guidance(opensora::diffusion::Guidance::PUBLISHED_SCALE),
            start.clone(),
            &mut |_| start.clone(),
            &mut (),
        )?;
        synced()?;
        let denoise = began.elapsed().as_secs_f64();
        drop(model);

        let vae = weights::random(spec.preset.vae.init(device)?, dtype);
        synced()?;
        let began = Instant::now();
        let frames = to_frames(self.decode(&vae, latents)).map_err(BenchError::Frames)?;
        let decode = began.elapsed().as_secs_f64();
        drop(frames);
        Ok(Some(StageSeconds { text, denoise, decode }))
    }
}
