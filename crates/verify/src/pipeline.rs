//! Cases of kind `pipeline`: prompts to pixels, and an image from the same weights.

use super::{
    Case, Failure, Output, Outputs,
    denoiser::{denoiser_config, load_stdit},
    diffusion::noise_of_step,
};
use burn::tensor::{Device, FloatDType, Tensor};
use opensora::checkpoint::{Checkpoint, PublishedModel};
use opensora::{
    denoiser::PromptedDenoiser,
    diffusion::{Guidance, Iddpm, Sampler},
    frames::to_frames,
    stdit::StDit,
    t5::{PromptStates, TextEncoder},
    vae::{AutoencoderKl, VaeConfig},
};

struct Models {
    text_encoder: TextEncoder,
    stdit: StDit,
    vae: AutoencoderKl,
    sampler: Iddpm,
    guidance: Guidance,
}

pub(super) fn run(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    case.check_settings(
        "/config",
        &[
            "t5",
            "stdit",
            "vae",
            "model_max_length",
            "num_sampling_steps",
            "cfg_scale",
            "latent_size",
            "image_latent_size",
        ],
    )?;
    let max_length: usize = case.get("/config/model_max_length")?;
    let f32 = FloatDType::F32;
    let stdit_config = denoiser_config(case, "/config/stdit", &[])?;
    let vae_config: VaeConfig = case.get("/config/vae")?;
    case.begin("loading the models");
    let vae_weights = Checkpoint::open(case.path("/weights/vae")?)?;
    let models = Models {
        text_encoder: TextEncoder::load(&case.path("/weights/t5")?, max_length, f32, device)?.0,
        stdit: load_stdit(case, &stdit_config, "/weights/stdit", device)?,
        vae: AutoencoderKl::load(&vae_config, &vae_weights, f32, device)?.0,
        sampler: Iddpm::with_steps(case.get("/config/num_sampling_steps")?)?,
        guidance: Guidance::first_three_channels(case.get("/config/cfg_scale")?),
    };

    let prompts: Vec<String> = case.get("/prompts")?;
    let mut outputs = clip(case, &models, &prompts, "", "frames_u8", device)?;
    let image_prompt: String = case.get("/image_prompt")?;
    outputs.extend(clip(case, &models, &[image_prompt], "image.", "image.u8", device)?);
    Ok(outputs)
}

/// Runs the pipeline with the noise under `prefix`.
fn clip(
    case: &Case,
    models: &Models,
    prompts: &[String],
    prefix: &str,
    pixels_name: &str,
    device: &Device,
) -> Result<Outputs, Failure> {
    let begin = |step: &str| case.begin(format!("{pixels_name}: {step}"));
    begin("encoding prompts");
    let (mut ids, mut masks) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let tokens = models.text_encoder.tokenize(prompt)?;
        ids.extend(tokens.ids.iter().map(|&id| f64::from(id)));
        masks.extend(tokens.mask.iter().map(|&keep| f64::from(u8::from(keep))));
    }
    let states: PromptStates = models.text_encoder.encode(prompts)?;
    let denoiser = PromptedDenoiser::new(&models.stdit, &states)?;
    let null = denoiser.null_states();
    begin("sampling");
    let z = case.tensor::<5>(&format!("{prefix}z"), device)?;
    let noises = case.tensor::<6>(&format!("{prefix}noises"), device)?;
    let noise = &mut noise_of_step(&noises, z.dims()[0]);
    let latents = models.sampler.sample(&denoiser, &models.guidance, z, noise, &mut ())?;
    begin("decoding latents");
    let decoded = models.vae.decode(latents.clone(), None);

    let clips = to_frames(decoded.clone())?;
    let bytes: Vec<f64> =
        clips.iter().flat_map(|clip| clip.data()).map(|&byte| f64::from(byte)).collect();
    let [_, _, frames, height, width] = decoded.dims();
    // A single image is compared as [H, W, 3], clips as [n, T, H, W, 3].
    let pixel_shape = if frames == 1 && prompts.len() == 1 {
        vec![height, width, 3]
    } else {
        vec![prompts.len(), frames, height, width, 3]
    };

    let rows = vec![prompts.len(), states.mask.len()];
    // [B, L, C] -> [B, 1, L, C], as in the reference.
    let embeddings = |name: &str, states: Tensor<3>| {
        case.output(format!("{prefix}{name}"), states.unsqueeze_dim::<4>(1))
    };
    Ok(vec![
        (format!("{prefix}input_ids"), Output::Values { values: ids, shape: rows.clone() }),
        (format!("{prefix}attention_mask"), Output::Values { values: masks, shape: rows }),
        embeddings("text_embeddings", states.states)?,
        embeddings("null_embeddings", null)?,
        case.output(format!("{prefix}latents"), latents)?,
        case.output(format!("{prefix}decoded"), decoded)?,
        (pixels_name.to_string(), Output::Values { values: bytes, shape: pixel_shape }),
    ])
}
