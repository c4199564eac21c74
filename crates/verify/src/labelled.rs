//! Cases of the models with class labels: `dit`, `latte` and `class-sample`.

use super::{
    Case, Failure, Output, Outputs,
    diffusion::{guided_halves, sampled},
};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use opensora::{
    checkpoint::{Checkpoint, PublishedModel},
    denoiser::LabelledDenoiser,
    nn::sincos,
    stdit::{ClassConfig, ClassModel, Dit, Latte},
};

/// Architecture of a model with class labels.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Dit,
    Latte,
}

/// Returns the sizes of a case's model. `input_size`, the size of the reference's buffers, has no effect.
fn config(case: &Case) -> Result<ClassConfig, Failure> {
    case.check_settings(
        "/config",
        &[
            "input_size",
            "in_channels",
            "patch_size",
            "hidden_size",
            "depth",
            "num_heads",
            "mlp_ratio",
            "class_dropout_prob",
            "learn_sigma",
            "condition",
            "no_temporal_pos_emb",
        ],
    )?;
    // Those of the reference's models with text, which have no weights.
    case.get::<String>("/config/condition")?;
    case.get("/config")
}

fn load(
    case: &Case,
    kind: Kind,
    config: &ClassConfig,
    device: &Device,
) -> Result<Box<dyn ClassModel>, Failure> {
    case.begin("loading the model");
    let weights = Checkpoint::open(case.path("/weights")?)?;
    let f32 = FloatDType::F32;
    let model: Box<dyn ClassModel> = match kind {
        Kind::Dit => Box::new(Dit::load(config, &weights, f32, device)?.0),
        Kind::Latte => Box::new(Latte::load(config, &weights, f32, device)?.0),
    };
    case.begin("running the model");
    Ok(model)
}

pub(super) fn dit(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    forward_passes(case, Kind::Dit, device)
}

pub(super) fn latte(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    forward_passes(case, Kind::Latte, device)
}

/// Returns the labels of a case, which may include the null class.
fn labels(case: &Case, name: &str, config: &ClassConfig) -> Result<Vec<usize>, Failure> {
    let (values, _) = case.integers(name)?;
    let labels = values.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>()?;
    match labels.iter().find(|&&label| label >= config.label_rows()) {
        None => Ok(labels),
        Some(label) => {
            let rows = config.label_rows();
            Err(format!("input '{name}': label {label}, the model has {rows}").into())
        }
    }
}

/// Runs one forward pass for each expected combination of timestep and labels.
fn forward_passes(case: &Case, kind: Kind, device: &Device) -> Result<Outputs, Failure> {
    let config = config(case)?;
    let model = load(case, kind, &config, device)?;
    let latents = case.tensor::<5>("x", device)?;
    let y = labels(case, "y", &config)?;
    let int = case.floats("timestep_int")?;

    let mut outputs = Outputs::new();
    let [space, time] = position_tables(&config, case.get("/config/input_size")?, device)?;
    outputs.push(("pos_embed_spatial".into(), space));
    outputs.push(("pos_embed_temporal".into(), time));
    for name in case.output_names() {
        let tensor = match name.as_str() {
            "out_tint" => model.forward(latents.clone(), &int, &y),
            "out_tfrac" => model.forward(latents.clone(), &case.floats("timestep_frac")?, &y),
            "out_null_tint" => {
                let null = config.null_class().ok_or("the model has no null class")?;
                model.forward(latents.clone(), &int, &vec![null; y.len()])
            }
            "out_cfg" => {
                let [samples, channels, ..] = latents.dims();
                let first = latents.clone().narrow(0, 0, samples / 2);
                let out = model.forward(
                    first.repeat_dim(0, 2),
                    &case.floats("timestep_cfg")?,
                    &labels(case, "y_cfg", &config)?,
                );
                guided_halves(out, channels, case.get("/cfg_scale")?)?
            }
            "out_with_temporal_pos_tint" => {
                let with_positions = ClassConfig { no_temporal_pos_emb: false, ..config.clone() };
                let model = load(case, kind, &with_positions, device)?;
                model.forward(latents.clone(), &int, &y)
            }
            "out_other_grid_tint" => {
                model.forward(case.tensor::<5>("x_other_grid", device)?, &int, &y)
            }
            // Unknown outputs are reported as not computed.
            _ => continue,
        };
        outputs.push((name, Output::from_tensor(tensor)?));
    }
    Ok(outputs)
}

/// Returns the position tables of a model for latents of `size`, `[1, S, C]` and `[1, T, C]`.
fn position_tables(
    config: &ClassConfig,
    size: [usize; 3],
    device: &Device,
) -> Result<[Output; 2], Failure> {
    let [frames, rows, columns] = config.grid(size)?;
    let (width, f32) = (config.hidden_size, DType::F32);
    let space: Tensor<3> =
        sincos::spatial([rows, columns], width, 1.0, None, f32, device).unsqueeze();
    let time: Tensor<3> = sincos::temporal(frames, width, 1.0, f32, device).unsqueeze();
    Ok([Output::from_tensor(space)?, Output::from_tensor(time)?])
}

/// Samples a model with labels by IDDPM and DDIM, and computes the guided output of the first step.
pub(super) fn class_sample(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let kind = match case.get::<String>("/model")?.as_str() {
        "DiT" => Kind::Dit,
        "Latte" => Kind::Latte,
        other => return Err(format!("model '{other}', expected DiT or Latte").into()),
    };
    let config = config(case)?;
    let model = load(case, kind, &config, device)?;
    let denoiser = LabelledDenoiser::new(&*model, &labels(case, "y", &config)?)?;
    sampled(case, &denoiser, device)
}
