//! A prompt becomes a playable MP4.
//!
//! ```sh
//! cargo run --release --example sample -- "a yellow square falls over a gray background"
//! ```

use anyhow::Context;
use opensora::{
    PipelineOptions, SampleRequest, TextToVideo,
    nn::device,
    video::{VideoSpec, Writer},
};
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let prompt = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "a red circle moves to the right on a black background".into());
    // The demo model is bundled; the defaults are its size, sampler and guidance.
    let files = opensora_demo::model_files()?;
    let request = SampleRequest { seed: 7, ..files.defaults.clone() };

    // The output is opened before sampling, so that errors come early.
    let [height, width] = request.image_size;
    let spec = VideoSpec { frames: request.num_frames, width, height, fps: request.fps };
    let writer = Writer::open("outputs/sample.mp4".as_ref(), &spec)?;

    let model = files.name.clone();
    let pipeline = TextToVideo::new(files, PipelineOptions::default(), device::default_device()?)?;
    let clips = pipeline.generate(&[&prompt], &request, &mut ())?;
    let clip = clips.first().context("one prompt gives one clip")?;
    let path =
        writer.write(clip, &json!({"prompt": prompt, "model": model, "seed": request.seed}))?;

    println!("wrote {} ({} frames of {height}x{width})", path.display(), clip.len());
    Ok(())
}
