//! Trains a small model: writes a data set, trains a VAE, a text encoder and a denoiser in three stages, and
//! samples a video from a prompt. Takes minutes on two cores, with the same code as large models.
//!
//! ```sh
//! cargo run --release --example train_three_stages --features train
//! ```
//!
//! So short a training gives poor videos: the example shows how the parts fit together. The bundled demo model
//! was trained in the same way with more steps (`model-cards/demo.md`).

use anyhow::{Context, ensure};
use opensora::{
    ModelFiles, PipelineOptions, SampleRequest, TextToVideo,
    data::{
        ClipDataset, Manifest,
        cache::{self, CacheJob, CacheKey},
        encode::{ClipEncoder, EncoderConfig},
    },
    nn::device,
    train::{Observer, Outcome, Ranks, Recipe, Session, observer::StepDone},
    video::{VideoSpec, Writer},
};
use opensora_demo::{DemoSpec, write_dataset};
use serde_json::json;
use std::{path::Path, time::Instant};

const VAE: &str = r#"
[vae]
unit_latents = 32
[vae.loss]
kl_weight = 1e-5
shrink = [1, 2]
[vae.config]
block_out_channels = [8, 16, 16]
layers_per_block = 1
norm_num_groups = 8
[data.clip]
num_frames = 1
image_size = [32, 32]
[optimizer]
learning_rate = 2e-3
schedule = "cosine"
ema_decay = 0.9
[run]
steps = 80
batch_size = 8
"#;

const T5: &str = r#"
[t5]
max_length = 32
[t5.config]
vocab_size = 256
d_model = 32
d_kv = 8
d_ff = 64
num_layers = 1
num_heads = 4
[optimizer]
learning_rate = 3e-3
ema_decay = 0.9
[run]
steps = 60
batch_size = 16
workers = 0
"#;

/// The recipe of all three stages; `STAGES` has the differences.
const STDIT: &str = r#"
[stdit.loss]
prediction_type = "v_prediction"
[stdit.config]
caption_channels = 32
model_max_length = 32
hidden_size = 48
depth = 2
num_heads = 4
[data.clip]
num_frames = 1
image_size = [16, 16]
horizontal_flip = false
variants = 1
[optimizer]
learning_rate = 1e-3
ema_decay = 0.95
[run]
steps = 60
batch_size = 8
workers = 0
"#;

/// Name, frames, frame interval, side in pixels, space scale, time scale, manifest.
type Stage = (&'static str, usize, usize, usize, f64, f64, &'static str);

/// Images; short clips of low resolution; longer clips of twice the resolution. The position scales agree across
/// the stages.
const STAGES: [Stage; 3] = [
    ("stage 1: images", 1, 1, 16, 0.5, 0.5, "stills.csv"),
    ("stage 2: short clips", 4, 2, 16, 0.5, 0.5, "clips.csv"),
    ("stage 3: longer clips, twice the resolution", 8, 1, 32, 1.0, 1.0, "clips.csv"),
];

#[allow(clippy::too_many_lines, reason = "an example reads from top to bottom")]
fn main() -> anyhow::Result<()> {
    let began = Instant::now();
    let device = device::default_device()?;
    let root = Path::new("outputs/three-stages");
    if root.exists() {
        std::fs::remove_dir_all(root)?;
    }
    let data = root.join("data");
    let spec = DemoSpec {
        clips: 64,
        stills: 64,
        image_size: [32, 32],
        num_frames: 8,
        ..DemoSpec::default()
    };
    write_dataset(&data, &spec, &mut ())?;
    println!("{} clips and {} images: {}", spec.clips, spec.stills, data.display());

    let run = |name: &str, recipe: Recipe| -> anyhow::Result<()> {
        let folder = root.join(name);
        println!("{name}");
        let session = Session {
            recipe,
            folder,
            resume: false,
            peak_flops: None,
            device: device.clone(),
            ranks: Ranks::default(),
        };
        let outcome = session.run(&mut Lines, &mut ())?;
        ensure!(matches!(outcome, Outcome::Finished(_)), "{name} did not finish");
        Ok(())
    };
    let mut recipe = Recipe::parse(VAE)?;
    recipe.data.manifest = Some(data.join("stills.csv"));
    run("vae", recipe)?;
    let mut recipe = Recipe::parse(T5)?;
    recipe.data.manifest = Some(data.join("clips.csv"));
    run("t5", recipe)?;

    let (vae, t5) = (root.join("vae/vae"), root.join("t5/t5"));
    let mut before = None;
    for (name, num_frames, frame_interval, side, space_scale, time_scale, manifest) in STAGES {
        let mut recipe = Recipe::parse(STDIT)?;
        let part = recipe.stdit.as_mut().context("a recipe for an STDiT")?;
        part.config.scales.space_scale = space_scale;
        part.config.scales.time_scale = time_scale;
        part.init = before.take();
        let clip = &mut recipe.data.clip;
        (clip.num_frames, clip.frame_interval, clip.image_size) =
            (num_frames, frame_interval, [side, side]);

        // Latents and prompt states are computed once; training reads them.
        let (clip, seed) = (recipe.data.clip.clone(), recipe.run.seed);
        let dataset = ClipDataset::new(Manifest::read(&data.join(manifest))?, clip.clone(), seed)?;
        let encoder = EncoderConfig {
            vae: vae.clone(),
            t5: t5.clone(),
            max_length: part.config.model_max_length,
            vae_micro_batch: None,
        };
        let key = CacheKey::new(&clip, seed, &encoder)?;
        let encoder = ClipEncoder::load(&encoder, &device)?;
        let folder = root.join(format!("{name} (latents)"));
        cache::write(&CacheJob::new(&dataset, &encoder, &key), &folder, &mut ())?;
        recipe.data.cache = Some(folder);

        run(name, recipe)?;
        before = Some(root.join(name).join("stdit/ema.safetensors"));
    }

    // A model is a folder with its parts and a description.
    let (_, num_frames, _, side, space_scale, time_scale, _) = STAGES[2];
    let stage = Recipe::parse(STDIT)?.stdit.context("a recipe for an STDiT")?;
    let mut config = serde_json::to_value(stage.config)?;
    (config["space_scale"], config["time_scale"]) = (space_scale.into(), time_scale.into());
    let description = json!({
        "name": "three stages in miniature",
        "denoiser": before.context("three stages")?.strip_prefix(root)?,
        "denoiser_config": config,
        "prediction_type": stage.loss.prediction_type,
        "t5": "t5/t5",
        "vae": "vae/vae",
        "num_frames": num_frames,
        "image_size": [side, side],
        "fps": spec.fps,
        "sampler": "dpm-solver",
        "guidance_scale": 3.0,
    });
    std::fs::write(root.join("model.json"), serde_json::to_string_pretty(&description)?)?;

    let files = ModelFiles::open(root)?;
    let request = SampleRequest { seed: 7, ..files.defaults.clone() };
    let [height, width] = request.image_size;
    let video = VideoSpec { frames: request.num_frames, width, height, fps: request.fps };
    let writer = Writer::open(&root.join("sample.mp4"), &video)?;
    let prompt = "a red circle moves to the right on a black background";
    let pipeline = TextToVideo::new(files, PipelineOptions::default(), device)?;
    let clips = pipeline.generate(&[prompt], &request, &mut ())?;
    let path = writer.write(clips.first().context("one clip")?, &json!({ "prompt": prompt }))?;
    println!("wrote {} after {:.0} s", path.display(), began.elapsed().as_secs_f64());
    Ok(())
}

/// Prints a line every 20 steps.
struct Lines;

impl Observer for Lines {
    fn step(&mut self, event: &StepDone<'_>) {
        let (record, total) = (event.record, event.total_steps);
        if record.step.is_multiple_of(20) {
            println!("  step {}/{total}, loss {:.4}", record.step, record.loss);
        }
    }
}
