//! Samples the same latents on every backend of the build: the device is a value, not a type.
//!
//! ```sh
//! cargo run --release --example swap_backend --features ndarray
//! ```

use opensora::{
    PipelineOptions, SampleRequest, TextToVideo,
    diffusion::SamplerKind,
    nn::{device, read::read},
};
use opensora_examples::tiny_model;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let files = tiny_model()?;
    let request = SampleRequest {
        sampler: SamplerKind::DpmSolver,
        num_frames: 4,
        image_size: [32, 32],
        ..files.defaults.clone()
    };
    let mut first: Option<Vec<f32>> = None;
    for name in device::list().into_iter().flat_map(|backend| backend.devices) {
        let started = Instant::now();
        let device = device::parse(&name)?;
        let pipeline = TextToVideo::new(files.clone(), PipelineOptions::default(), device)?;
        let states = pipeline.encode(&["a drone above the sea"], &request, &mut ())?;
        let sampled = pipeline.sample(&states, &request, &mut ())?;
        let latents = read(sampled.latents)?.try_to_vec::<f32>()?;
        let seconds = started.elapsed().as_secs_f64();
        let first = first.get_or_insert_with(|| latents.clone());
        let difference =
            latents.iter().zip(first.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: {seconds:.2} s, at most {difference:.1e} from the first backend");
    }
    Ok(())
}
