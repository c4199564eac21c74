//! Prompts become a reel: one playable MP4 that shows six clips with their captions, and a contact sheet.
//!
//! ```sh
//! cargo run --release --example sample
//! cargo run --release --example sample -- "a yellow square falls over a gray background"
//! ```

use opensora::{
    Observer, PipelineOptions, SampleRequest, TextToVideo,
    nn::device,
    pipeline::UnknownWords,
    video::{Frames, VideoSpec, Writer, png, sheet::SheetOptions},
};
use opensora_demo::reel::{self, GridOptions, Tile};
use serde_json::json;
use std::path::Path;

/// Times that the reel repeats its clips, which are two seconds long.
const REPEATS: usize = 3;

fn main() -> anyhow::Result<()> {
    let prompt = std::env::args().nth(1);
    let prompts: Vec<&str> = match &prompt {
        Some(prompt) => vec![prompt],
        None => reel::PROMPTS.to_vec(),
    };
    // The demo model is bundled; the defaults are its size, sampler and guidance.
    let files = opensora_demo::model_files()?;
    let request = SampleRequest { seed: 7, batch_size: prompts.len(), ..files.defaults.clone() };
    let model = files.name.clone();
    let pipeline = TextToVideo::new(files, PipelineOptions::default(), device::default_device()?)?;
    let clips = pipeline.generate(&prompts, &request, &mut Lines)?;

    let tiles: Vec<Tile<'_>> =
        prompts.iter().zip(&clips).map(|(&caption, clip)| Tile { caption, clip }).collect();
    let once = reel::grid(&tiles, &GridOptions::default())?;
    let [frames, height, width] = [REPEATS * once.len(), once.height(), once.width()];
    let reel = Frames::from_rgb(once.data().repeat(REPEATS), [frames, height, width])?;
    let spec = VideoSpec { frames, width, height, fps: request.fps };
    let writer = Writer::open("outputs/sample.mp4".as_ref(), &spec)?;
    let path =
        writer.write(&reel, &json!({"prompts": prompts, "model": model, "seed": request.seed}))?;
    println!("wrote {} ({frames} frames of {height}x{width})", path.display());

    let sheet = Path::new("outputs/sample.png");
    png::write(sheet, &reel::sheet(&tiles, &SheetOptions { columns: 8, scale: 2 })?)?;
    println!("wrote {}", sheet.display());

    once.save("outputs/sample.gif", request.fps)?;
    println!("wrote outputs/sample.gif");

    println!(
        "your own words: cargo run --release --example sample -- \"a red box drifts upward over gray\""
    );
    println!("the program, with other models and sizes: cargo install --path crates/cli");
    println!("what it can do: opensora sample --help");
    Ok(())
}

/// Prints words that the model does not know.
struct Lines;

impl Observer for Lines {
    fn unknown_words(&mut self, event: &UnknownWords<'_>) {
        eprintln!("warning: words that the model does not know: {}", event.words.join(", "));
    }
}
