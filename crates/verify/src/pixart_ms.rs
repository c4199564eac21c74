//! Cases of kind `pixart-ms`.

use super::{
    Case, Failure, Output, Outputs,
    denoiser::{denoiser_config, position_tables, prompt_states},
    diffusion::guided_halves,
};
use burn::tensor::{Device, FloatDType};
use opensora::{
    checkpoint::{Checkpoint, PublishedModel},
    nn::mask::TokenMask,
    stdit::{ImageSize, PixArtMs},
};

/// Returns the sizes of a case, from the inputs `hw` and `ar` with a suffix: one per row.
fn sizes(case: &Case, ending: &str) -> Result<Vec<ImageSize>, Failure> {
    let (sides, ratios) =
        (case.floats(&format!("hw{ending}"))?, case.floats(&format!("ar{ending}"))?);
    if sides.len() != 2 * ratios.len() || ratios.is_empty() {
        return Err(format!("inputs 'hw{ending}' and 'ar{ending}' differ in rows").into());
    }
    let size = |(hw, &aspect_ratio): (&[f32], &f32)| ImageSize {
        height: hw[0],
        width: hw[1],
        aspect_ratio,
    };
    Ok(sides.chunks_exact(2).zip(&ratios).map(size).collect())
}

/// Runs one forward pass for each expected combination of timestep, mask and size.
pub(super) fn run(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let config = denoiser_config(case, "/config", &["no_temporal_pos_emb"])?;
    let no_temporal: Option<bool> = case.get("/config/no_temporal_pos_emb")?;
    case.begin("loading the PixArt-alpha weights");
    let weights = Checkpoint::open(case.path("/weights")?)?;
    let load = |temporal_positions: bool| {
        let f32 = FloatDType::F32;
        PixArtMs::load(&config, &weights, f32, device)
            .map(|(model, _)| model.with_temporal_positions(temporal_positions))
    };
    let model = load(!no_temporal.unwrap_or(false))?;
    let temporal = load(true)?;

    case.begin("running the PixArtMS");
    let states = prompt_states(case, "y", device)?;
    let mask = case.mask("mask")?;
    let (int, fractional) = (case.floats("timestep_int")?, case.floats("timestep_frac")?);
    let forward = |model: &PixArtMs,
                   input: &str,
                   timesteps: &[f32],
                   mask: Option<&TokenMask>,
                   sizes: &[ImageSize]| {
        let latents = case.tensor::<5>(input, device)?;
        Output::from_tensor(model.forward(latents, timesteps, states.clone(), mask, sizes))
    };
    // The first half of the latents twice; n rows of the mask for 2n samples.
    let guided = |input: &str, sizes: &[ImageSize]| -> Result<Output, Failure> {
        let latents = case.tensor::<5>(input, device)?;
        let [samples, channels, ..] = latents.dims();
        let both = latents.narrow(0, 0, samples / 2).repeat_dim(0, 2);
        let timesteps = case.floats("timestep_cfg")?;
        let states = prompt_states(case, "y_cfg", device)?;
        let mask: TokenMask = mask.select(0, samples / 2);
        let out = model.forward(both, &timesteps, states, Some(&mask), sizes);
        Output::from_tensor(guided_halves(out, channels, case.get("/cfg_scale")?)?)
    };
    let table = |pointer: &str, table: usize| {
        let tables = position_tables(&config, case.get(pointer)?, true, device)?;
        Output::from_tensor(tables[table].clone())
    };

    let mut outputs = Outputs::new();
    for name in case.output_names() {
        case.begin(format!("computing {name}"));
        let own = || sizes(case, "");
        let output = match name.as_str() {
            "out_mask_tint" => forward(&model, "x", &int, Some(&mask), &own()?)?,
            "out_nomask_tint" => forward(&model, "x", &int, None, &own()?)?,
            "out_mask_tfrac" => forward(&model, "x", &fractional, Some(&mask), &own()?)?,
            "out_holes_tfrac" => {
                forward(&model, "x", &fractional, Some(&case.mask("mask_holes")?), &own()?)?
            }
            "out_one_row_tint" => {
                forward(&model, "x", &int, Some(&mask.select(0, 1)), &own()?[..1])?
            }
            "out_with_temporal_pos_tint" => forward(&temporal, "x", &int, Some(&mask), &own()?)?,
            "out_cfg" => {
                let sizes = own()?;
                guided("x", &sizes[..sizes.len().div_ceil(2)])?
            }
            "out_other_grid_mask_tint" => {
                forward(&model, "x_other_grid", &int, Some(&mask), &sizes(case, "_other_grid")?)?
            }
            "out_other_grid_nomask_tfrac" => {
                forward(&model, "x_other_grid", &fractional, None, &sizes(case, "_other_grid")?)?
            }
            "out_other_grid_cfg" => guided("x_other_grid", &sizes(case, "_other_grid")?[..1])?,
            "pos_embed" => table("/config/input_size", 0)?,
            "pos_embed_temporal" => table("/config/input_size", 1)?,
            "pos_embed_other_grid" => table("/other_input_size", 0)?,
            // Unknown outputs are reported as not computed.
            _ => continue,
        };
        outputs.push((name, output));
    }
    Ok(outputs)
}
