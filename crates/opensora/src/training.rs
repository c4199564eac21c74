//! Samples videos during a training run.

use crate::{
    denoiser::PromptedDenoiser,
    diffusion::{Guidance, PredictionType, SamplerKind},
    frames::to_frames,
    nn::noise::{Purpose, normal_batch},
    stdit::StDit,
    t5::{PromptStates, TextEncoder},
    train::{
        TrainError, Trainer,
        denoiser::DenoiserTask,
        recipe::{Recipe, SampleRecipe, StDitPart},
        run::Hooks,
        session::check_encoders,
    },
    vae::{AutoencoderKl, VaeConfig},
    video::{
        frames::MAX_SIDE,
        png,
        sheet::{SheetOptions, contact_sheet, side},
    },
};
use burn::tensor::{Device, FloatDType};
use opensora_checkpoint::{BoxedError, Checkpoint, PublishedModel};
use opensora_data::window::ClipSpec;
use std::{
    error::Error,
    path::{Path, PathBuf},
};

/// Samples the recipe's prompts with the moving average of the weights and writes the clips as a contact sheet
/// with one row per prompt, `RUN/samples/step-00001000.png`.
pub struct SampleSheets {
    recipe: SampleRecipe,
    prediction_type: PredictionType,
    options: SheetOptions,
    prompts: PromptStates,
    vae: AutoencoderKl,
    /// `[B, C, T, h, w]`
    latents: [usize; 5],
    seed: u64,
    folder: PathBuf,
    device: Device,
}

/// Frames per clip on a contact sheet.
const FRAMES_SHOWN: usize = 8;
/// Frames that are decoded at once, as many as in sampling: the memory of training stays in use meanwhile.
const FRAMES_DECODED: usize = 4;
/// Approximate height of a frame on a contact sheet, in pixels.
const SHEET_PIXELS: usize = 128;

impl SampleSheets {
    /// Encodes the prompts, with one block of the text encoder in memory at a time, and loads the VAE.
    ///
    /// # Errors
    /// Returns an error if the recipe lacks the text encoder or the VAE, one of them cannot be loaded or does not fit, or
    /// the clips of all prompts do not fit on a contact sheet.
    pub fn new(
        recipe: &Recipe,
        part: &StDitPart,
        folder: &Path,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let missing = |what| TrainError::other(format!("sample videos need the {what}"));
        let t5 = part.t5.as_ref().ok_or_else(|| missing("text encoder"))?;
        let vae = part.vae.as_ref().ok_or_else(|| missing("VAE"))?;
        // Checked before the first step, since an error at the first sample would end the run.
        let clip = &recipe.data.clip;
        check_encoders(part, clip, vae, t5)?;
        SamplerKind::DpmSolver.build(recipe.sample.steps).map_err(hook)?;
        let options = sheet_options(recipe.sample.prompts.len(), clip)?;
        let tokens = part.config.model_max_length;
        let (encoder, _) =
            TextEncoder::stream(t5, tokens, FloatDType::F32, device).map_err(hook)?;
        let prompts = encoder.encode(&recipe.sample.prompts).map_err(hook)?;
        let config = VaeConfig::beside(vae)?;
        let checkpoint = Checkpoint::open(vae)?;
        let (vae, _) =
            AutoencoderKl::load(&config, &checkpoint, FloatDType::F32, device).map_err(hook)?;
        let [height, width] = clip.image_size;
        let [frames, height, width] = config.latent_size([clip.num_frames, height, width])?;
        let batch = recipe.sample.prompts.len();
        Ok(Self {
            recipe: recipe.sample.clone(),
            prediction_type: part.loss.prediction_type,
            options,
            prompts,
            vae,
            latents: [batch, part.config.in_channels, frames, height, width],
            seed: recipe.run.seed,
            folder: folder.join("samples"),
            device: device.clone(),
        })
    }

    fn sheet(&self, model: &StDit, path: &Path) -> Result<(), TrainError> {
        let sampler = SamplerKind::DpmSolver.build(self.recipe.steps).map_err(hook)?;
        let guidance: Guidance = SamplerKind::DpmSolver.guidance(self.recipe.guidance_scale);
        let denoiser = PromptedDenoiser::new(model, &self.prompts)
            .map_err(hook)?
            .with_prediction_type(self.prediction_type);
        let noise = |purpose, step: usize| {
            normal_batch(self.seed, purpose, 0, step as u64, self.latents, &self.device)
        };
        let latents = sampler
            .sample(
                &denoiser,
                &guidance,
                noise(Purpose::InitialLatents, 0),
                &mut |step| noise(Purpose::SamplerStep, step),
                &mut (),
            )
            .map_err(hook)?;
        let clips = to_frames(self.vae.decode(latents, Some(FRAMES_DECODED))).map_err(hook)?;
        let sheet = contact_sheet(&clips, &self.options).map_err(hook)?;
        std::fs::create_dir_all(&self.folder).map_err(hook)?;
        png::write(path, &sheet).map_err(hook)
    }
}

/// Returns the layout of a contact sheet with a row for each of `rows` clips.
fn sheet_options(rows: usize, clip: &ClipSpec) -> Result<SheetOptions, TrainError> {
    let [height, width] = clip.image_size;
    let scale = SHEET_PIXELS.div_ceil(height.max(1)).max(1);
    let most = (1..=FRAMES_SHOWN).rev().find(|&columns| side(columns, width, scale) <= MAX_SIDE);
    match most {
        Some(columns) if side(rows, height, scale) <= MAX_SIDE => {
            Ok(SheetOptions { columns, scale })
        }
        _ => Err(TrainError::other(format!(
            "{rows} sample videos of {height}x{width} pixels do not fit on a contact sheet of {MAX_SIDE} pixels"
        ))),
    }
}

impl Hooks<DenoiserTask> for SampleSheets {
    fn sample(&mut self, trainer: &Trainer<StDit>, step: u64) -> Result<(), BoxedError> {
        let path = self.folder.join(format!("step-{step:08}.png"));
        Ok(self.sheet(&trainer.average_model(), &path)?)
    }
}

fn hook(error: impl Error + Send + Sync + 'static) -> TrainError {
    TrainError::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheets_have_a_possible_size() {
        let clip = |image_size| ClipSpec { image_size, ..ClipSpec::default() };
        let options = sheet_options(6, &clip([48, 48])).unwrap();
        assert_eq!((options.columns, options.scale), (8, 3));
        let wide = sheet_options(1, &clip([512, 4000])).unwrap();
        assert_eq!((wide.columns, wide.scale), (4, 1));
        let error = sheet_options(32, &clip([512, 512])).unwrap_err().to_string();
        assert!(error.contains("32 sample videos"), "{error}");
    }
}
