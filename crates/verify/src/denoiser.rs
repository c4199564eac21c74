//! Cases of the denoisers: `stdit` and `pixart-init`.

use super::{Case, Failure, Outputs};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use opensora::checkpoint::{Checkpoint, KeyMap, PublishedModel, import};
use opensora::nn::sincos;
use opensora::stdit::{DenoiserConfig, PixArt, StDit, keys};

/// Returns the prompt states of a case, `[B, 1, L, C] -> [B, L, C]`.
pub(super) fn prompt_states(
    case: &Case,
    name: &str,
    device: &Device,
) -> Result<Tensor<3>, Failure> {
    Ok(case.tensor::<4>(name, device)?.squeeze_dim(1))
}

/// Returns the sizes of a denoiser. Settings without effect here are allowed: the size of the reference's buffers,
/// dropout of training, and `others` of the kind.
pub(super) fn denoiser_config(
    case: &Case,
    pointer: &str,
    others: &[&str],
) -> Result<DenoiserConfig, Failure> {
    let known = [
        "in_channels",
        "patch_size",
        "hidden_size",
        "depth",
        "num_heads",
        "mlp_ratio",
        "pred_sigma",
        "caption_channels",
        "model_max_length",
        "space_scale",
        "time_scale",
        "input_size",
        "class_dropout_prob",
        "drop_path",
    ];
    case.check_settings(pointer, &[&known, others].concat())?;
    case.get(pointer)
}

/// Loads the STDiT of a case in f32.
pub(super) fn load_stdit(
    case: &Case,
    config: &DenoiserConfig,
    weights: &str,
    device: &Device,
) -> Result<StDit, Failure> {
    case.begin("loading the STDiT");
    let checkpoint = Checkpoint::open(case.path(weights)?)?;
    let (model, _) = StDit::load(config, &checkpoint, FloatDType::F32, device)?;
    case.begin("running the case");
    Ok(model)
}

/// Returns the position tables of a model for latents of `size`, `[1, S, C]` and `[1, T, C]`.
pub(super) fn position_tables(
    config: &DenoiserConfig,
    size: [usize; 3],
    base_size: bool,
    device: &Device,
) -> Result<[Tensor<3>; 2], Failure> {
    let [t, h, w] = config.grid(size)?;
    let scales = config.scales;
    let base = base_size.then(|| (h * w).isqrt());
    let width = config.hidden_size;
    let space = sincos::spatial([h, w], width, scales.space_scale, base, DType::F32, device);
    let time = sincos::temporal(t, width, scales.time_scale, DType::F32, device);
    Ok([space.unsqueeze(), time.unsqueeze()])
}

/// Runs one forward pass for each combination of timestep and mask.
pub(super) fn stdit(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let config = denoiser_config(case, "/config", &[])?;
    let model = load_stdit(case, &config, "/weights", device)?;
    let latents = case.tensor::<5>("x", device)?;
    let states = prompt_states(case, "y", device)?;
    let mask = case.mask("mask")?;
    let (int, fractional) = (case.floats("timestep_int")?, case.floats("timestep_frac")?);

    case.begin("running the STDiT");
    let forward = |name, timesteps: &[f32], mask| {
        case.output(name, model.forward(latents.clone(), timesteps, states.clone(), mask))
    };
    let [space, time] = position_tables(&config, case.get("/config/input_size")?, false, device)?;
    Ok(vec![
        forward("out_mask_tint", &int, Some(&mask))?,
        forward("out_nomask_tint", &int, None)?,
        forward("out_mask_tfrac", &fractional, Some(&mask))?,
        forward("out_holes_tfrac", &fractional, Some(&case.mask("mask_holes")?))?,
        forward("out_mask_row0_repeated_tint", &int, Some(&mask.select(0, 1)))?,
        case.output("pos_embed", space)?,
        case.output("pos_embed_temporal", time)?,
    ])
}

/// Runs an STDiT and a PixArt from one PixArt-alpha checkpoint.
pub(super) fn pixart_init(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let config = denoiser_config(case, "/config", &["T_values"])?;
    let checkpoint = Checkpoint::open(case.path("/weights")?)?;
    let states = prompt_states(case, "y", device)?;
    let mask = case.mask("mask")?;
    let timesteps = case.floats("timestep")?;
    let [_, height, width]: [usize; 3] = case.get("/config/input_size")?;

    case.begin("loading the PixArt-alpha weights");
    // The case contains the initial temporal attention as well, although its projection is zero.
    let (stdit, _) = StDit::from_pixart(&config, &checkpoint, FloatDType::F32, device)?;
    let temporal = Checkpoint::open(case.path("/attn_temp_init")?)?;
    let only_temporal = KeyMap::new("the temporal attention of an STDiT")
        .rename(move |path| keys::stdit().published_key(path))
        .allow_missing("*");
    let (stdit, _) = import(stdit, &temporal, &only_temporal, FloatDType::F32)?;

    let mut outputs = Outputs::new();
    for frames in case.get::<Vec<usize>>("/config/T_values")? {
        case.begin(format!("running the STDiT on {frames} frames"));
        let latents = case.tensor::<5>(&format!("x_T{frames}"), device)?;
        let forward = |name: String, mask| {
            case.output(name, stdit.forward(latents.clone(), &timesteps, states.clone(), mask))
        };
        let [space, _] = position_tables(&config, [frames, height, width], false, device)?;
        outputs.push(forward(format!("stdit_T{frames}"), Some(&mask))?);
        outputs.push(forward(format!("stdit_T{frames}_nomask"), None)?);
        outputs.push(case.output(format!("stdit_T{frames}.pos_embed"), space)?);
    }
    case.begin("running the PixArt");
    let images = case.tensor::<5>("x_T1", device)?;
    for (name, temporal_positions) in [("pixart", false), ("pixart_with_temporal_pos", true)] {
        let (pixart, _) = PixArt::load(&config, &checkpoint, FloatDType::F32, device)?;
        let pixart = pixart.with_temporal_positions(temporal_positions);
        let eps = pixart.forward(images.clone(), &timesteps, states.clone(), Some(&mask));
        outputs.push(case.output(name, eps)?);
    }
    let [space, _] = position_tables(&config, [1, height, width], true, device)?;
    outputs.push(case.output("pixart.pos_embed", space)?);
    Ok(outputs)
}
