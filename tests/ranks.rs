//! Sampling over ranks: the video of one process, work, stops and models that cannot be divided.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor};
use opensora::{
    ModelFiles, Observer, PipelineError, PipelineOptions, Residency, SampleRequest, TextToVideo,
    checkpoint::{ExportOptions, export},
    diffusion::{SampleError, SamplerKind},
    model_files::{PartPaths, PathPolicy},
    parallel::{Group, threads::run_ranks},
    pipeline::{Decoded, SampledClip, SamplerStep, SamplingRanks},
    stdit::{DenoiserConfig, DenoiserWork, PixArt, keys},
    video::Frames,
};
use opensora_tests::{devices, fixture, tiny_model};
use serde_json::{Value, json};
use std::ops::ControlFlow;

const PROMPTS: [&str; 2] = ["a red fox", "rain over the sea at night"];

fn pipeline(residency: Residency, device: &Device) -> TextToVideo {
    let options = PipelineOptions { residency, ..PipelineOptions::default() };
    TextToVideo::new(tiny_model(), options, device.clone()).unwrap()
}

/// Five frames, which no number of ranks divides.
fn request(sampler: SamplerKind) -> SampleRequest {
    SampleRequest {
        num_frames: 5,
        image_size: [16, 32],
        sampler,
        steps: Some(4),
        batch_size: 2,
        ..SampleRequest::default()
    }
}

/// Latents, clips and the denoiser's work.
type Video = (Vec<f32>, Vec<Frames>, DenoiserWork);

fn sample(pipeline: &TextToVideo, request: &SampleRequest) -> Video {
    let states = pipeline.encode(&PROMPTS, request, &mut ()).unwrap();
    let latents = pipeline.sample(&states, request, &mut ()).unwrap();
    let values = latents.latents.clone().into_data().try_to_vec::<f32>().unwrap();
    let mut observer = ();
    let clips = pipeline.decode(latents.latents, &mut observer).unwrap();
    (values, clips.map(Result::unwrap).collect(), latents.work)
}

/// Rounding in another order: at most 1e-4 of the largest latent, as for another batch size, and one step of a pixel.
fn assert_same_video(found: &Video, expected: &Video, case: &str) {
    let scale = expected.0.iter().fold(1.0f32, |max, value| max.max(value.abs()));
    assert_eq!(found.0.len(), expected.0.len(), "{case}");
    for (found, expected) in found.0.iter().zip(&expected.0) {
        assert!((found - expected).abs() <= 1e-4 * scale, "{case}: {found} {expected} of {scale}");
    }
    assert_eq!(found.1.len(), expected.1.len(), "{case}");
    for (found, expected) in found.1.iter().zip(&expected.1) {
        assert_eq!(found.len(), expected.len(), "{case}");
        for (found, expected) in found.data().iter().zip(expected.data()) {
            assert!(found.abs_diff(*expected) <= 1, "{case}: {found} {expected}");
        }
    }
}

#[test]
fn frames_divided_among_ranks_give_the_same_video() {
    for (name, device) in devices() {
        for sampler in SamplerKind::ALL {
            let request = request(sampler);
            let expected = sample(&pipeline(Residency::Sequential, &device), &request);
            for ranks in 1..=4 {
                let videos = run_ranks(ranks, |group| {
                    let pipeline = pipeline(Residency::Sequential, &device);
                    sample(&pipeline.on_ranks(SamplingRanks::by_frames(group)), &request)
                });
                for video in &videos {
                    assert_same_video(video, &expected, &format!("{name} {sampler} {ranks}"));
                    assert_eq!(video.2, expected.2, "{name} {sampler} {ranks}");
                    // Every rank has the same bits.
                    assert_eq!(video, &videos[0], "{name} {sampler} {ranks}");
                }
            }
        }
    }
}

#[test]
fn guidance_divided_between_ranks_gives_the_same_video() {
    let device = Device::flex();
    let negative =
        SampleRequest { negative_prompt: Some("people".into()), ..request(SamplerKind::DpmSolver) };
    for request in [request(SamplerKind::Iddpm), negative] {
        let expected = sample(&pipeline(Residency::Sequential, &device), &request);
        for ranks in [2, 4] {
            let videos = run_ranks(ranks, |group| {
                let pipeline = pipeline(Residency::Sequential, &device);
                sample(&pipeline.on_ranks(SamplingRanks::by_guidance(group).unwrap()), &request)
            });
            for video in videos {
                assert_same_video(&video, &expected, &format!("{ranks} ranks"));
                let (found, expected) = (video.2, expected.2);
                assert_eq!(found.forward_samples, expected.forward_samples);
                // Pruned columns of a prompt's mask are those of each half.
                assert!(found.flops <= expected.flops && found.flops > 0.9 * expected.flops);
            }
        }
    }
}

#[test]
fn streamed_and_cached_attentions_are_divided_too() {
    let device = Device::flex();
    let request = SampleRequest {
        attention_reuse: "spatial=2,temporal=3,cross=2,above=100,below=950".parse().unwrap(),
        steps: Some(6),
        ..request(SamplerKind::DpmSolver)
    };
    let expected = sample(&pipeline(Residency::Streamed, &device), &request);
    assert!(expected.2.attentions_reused > 0);
    let videos = run_ranks(3, |group| {
        let pipeline = pipeline(Residency::Streamed, &device);
        sample(&pipeline.on_ranks(SamplingRanks::by_frames(group)), &request)
    });
    for video in videos {
        assert_same_video(&video, &expected, "streamed");
        assert_eq!(video.2, expected.2);
    }
}

/// Counts in `f32` and `bf16` differ in rounding only.
#[test]
fn bf16_on_ranks_makes_a_video() {
    let device = Device::flex();
    let options = PipelineOptions { dtype: FloatDType::BF16, ..PipelineOptions::default() };
    let videos = run_ranks(2, |group| {
        let pipeline = TextToVideo::new(tiny_model(), options, device.clone()).unwrap();
        let pipeline = pipeline.on_ranks(SamplingRanks::by_frames(group));
        sample(&pipeline, &request(SamplerKind::DpmSolver))
    });
    assert_eq!(videos[0], videos[1]);
    assert!(videos[0].0.iter().all(|value| value.is_finite()));
}

/// Stops on one rank only.
struct StopsOn {
    here: bool,
    step: usize,
    at_decoding: bool,
}

impl Observer for StopsOn {
    fn sampler_step(&mut self, event: &SamplerStep<'_>) -> ControlFlow<()> {
        match self.here && event.step == self.step {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn decoded(&mut self, _event: &Decoded) -> ControlFlow<()> {
        match self.here && self.at_decoding {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

#[test]
fn a_stop_on_one_rank_stops_all() {
    let device = Device::flex();
    let run = |at_decoding: bool| {
        run_ranks(3, |group: Group| {
            let step = if at_decoding { usize::MAX } else { 1 };
            let mut observer = StopsOn { here: group.rank() == 1, step, at_decoding };
            let pipeline = pipeline(Residency::Sequential, &device);
            let pipeline = pipeline.on_ranks(SamplingRanks::by_frames(group));
            let request = request(SamplerKind::Iddpm);
            pipeline.generate(&PROMPTS[..1], &request, &mut observer).unwrap_err()
        })
    };
    for error in run(false) {
        let expected = SampleError::Interrupted { completed: 2, total: 4 }.to_string();
        assert_eq!(error.to_string(), expected);
    }
    for error in run(true) {
        assert!(matches!(error, PipelineError::DecodingStopped { .. }), "{error}");
    }
}

/// Latents that are not finite on their way to one rank's frames are an error on all ranks.
#[test]
fn frames_that_are_not_finite_are_an_error_on_all_ranks() {
    let device = Device::flex();
    let errors = run_ranks(2, |group| {
        let pipeline = pipeline(Residency::Sequential, &device);
        let pipeline = pipeline.on_ranks(SamplingRanks::by_frames(group));
        let latents = Tensor::<5>::zeros([1, 4, 4, 2, 4], &device);
        let bad = Tensor::<5>::full([1, 4, 1, 2, 4], f32::NAN, &device);
        let latents = latents.slice_assign([0..1, 0..4, 3..4, 0..2, 0..4], bad);
        let mut observer = ();
        let mut clips = pipeline.decode(latents, &mut observer).unwrap();
        clips.next().unwrap().unwrap_err().to_string()
    });
    for error in &errors {
        assert!(error.starts_with("the decoded frames are not finite"), "{error}");
    }
}

#[test]
fn ranks_that_do_not_fit_are_rejected() {
    let device = Device::flex();
    let errors = run_ranks(3, |group| SamplingRanks::by_guidance(group).unwrap_err().to_string());
    assert!(errors[0].contains("there are 3 ranks"), "{}", errors[0]);

    let folder = pixart(&device);
    let errors = run_ranks(2, |group| {
        let parts = PartPaths { policy: PathPolicy::Anywhere, ..PartPaths::default() };
        let files = ModelFiles::open_with(folder.path(), &parts).unwrap();
        let options = PipelineOptions::default();
        let pipeline = TextToVideo::new(files, options, device.clone()).unwrap();
        let request = request(SamplerKind::Iddpm);
        // One rank loads the model.
        assert!(pipeline.load_denoiser(&request, &mut ()).is_ok());
        let pipeline = pipeline.on_ranks(SamplingRanks::by_frames(group));
        pipeline.load_denoiser(&request, &mut ()).err().unwrap().to_string()
    });
    let expected = "the parts do not fit: small: the frames of pixart cannot be divided among \
                    ranks: use one rank, or two for guidance";
    assert_eq!(errors, [expected; 2]);
}

/// Returns a model folder with a PixArt with random weights, the tiny text encoder and the tiny VAE.
fn pixart(device: &Device) -> tempfile::TempDir {
    let tiny = fixture("tiny-model");
    let text = std::fs::read_to_string(tiny.join("model.json")).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    let config = description["denoiser_config"].clone();
    let weights: DenoiserConfig = serde_json::from_value(config.clone()).unwrap();
    let weights = weights.init::<PixArt>(device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pixart.safetensors");
    export(&weights, &keys::pixart(), ExportOptions::default(), &path).unwrap();
    let part = |name: &str| tiny.join(description[name].as_str().unwrap());
    let description = json!({
        "name": "small", "architecture": "pixart", "denoiser": "pixart.safetensors",
        "denoiser_config": config, "t5": part("t5"), "vae": part("vae"), "num_frames": 1,
        "image_size": [64, 64], "fps": 1.0, "sampler": "dpm-solver", "steps": 3,
    });
    std::fs::write(folder.path().join("model.json"), description.to_string()).unwrap();
    folder
}

/// Clips come one by one on every rank, so that rank 0 can write each as soon as it is decoded.
#[test]
fn clips_arrive_in_order_on_all_ranks() {
    let device = Device::flex();
    let request = SampleRequest { batch_size: 1, ..request(SamplerKind::DpmSolver) };
    let indices = run_ranks(2, |group| {
        let pipeline = pipeline(Residency::Sequential, &device);
        let pipeline = pipeline.on_ranks(SamplingRanks::by_frames(group));
        let states = pipeline.encode(&PROMPTS, &request, &mut ()).unwrap();
        let mut observer = ();
        let clips = pipeline.clips(&states, &request, &mut observer).unwrap();
        clips.map(|clip| clip.map(|SampledClip { index, .. }| index).unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(indices, [[0, 1], [0, 1]]);
}
