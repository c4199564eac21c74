//! A prompt becomes a playable MP4.
//!
//! ```sh
//! cargo run --release --example sample -- "a red fox in a misty forest"
//! ```

use anyhow::Context;
use opensora::{
    ModelFiles, Quiet, SampleRequest, TextToVideo,
    diffusion::SamplerKind,
    nn::{device, dtype::Dtype},
    video::{VideoSpec, Writer},
};
use opensora_examples::tiny_model;
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or("a red fox in a misty forest".into());
    let files = ModelFiles::open(&tiny_model())?;
    let request =
        SampleRequest { sampler: SamplerKind::DpmSolver, seed: 7, ..files.defaults.clone() };

    // The output is opened first: nothing is sampled that could not be kept.
    let [height, width] = request.image_size;
    let spec = VideoSpec { frames: request.num_frames, width, height, fps: request.fps };
    let writer = Writer::open("outputs/sample.mp4".as_ref(), &spec)?;

    let model = files.name.clone();
    let pipeline = TextToVideo::new(files, Dtype::F32, Dtype::F32, device::default_device()?)?;
    let clips = pipeline.generate(&[&prompt], &request, &mut Quiet)?;
    let clip = clips.first().context("one prompt gives one clip")?;
    let path = writer.write(
        clip,
        &json!({"prompt": prompt, "model": model, "sampler": "dpm-solver", "seed": request.seed}),
    )?;

    println!("wrote {} ({} frames of {height}x{width})", path.display(), clip.len());
    println!("The weights of this model are untrained: the video is coloured noise.");
    Ok(())
}
