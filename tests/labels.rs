//! Models with class labels and PixArt-alpha, from published layouts to pixels.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor};
use opensora::{
    ClassFiles, ClassToVideo, ModelFiles, PipelineError, PipelineOptions, Residency, SampleRequest,
    TextToVideo,
    checkpoint::{Checkpoint, ExportOptions, PublishedModel, export},
    denoiser::LabelledDenoiser,
    diffusion::{DpmSolver, Guidance, Sampler},
    model_files::{PartPaths, PathPolicy},
    nn::linear::{XAVIER, linear},
    presets::Architecture,
    stdit::{
        AttentionReuse, ClassConfig, ClassModel, DenoiserConfig, Dit, Latte, LoadError, PixArt,
        PixArtMs, PositionScales, SizeError, keys,
    },
};
use opensora_tests::{devices, fixture};
use serde_json::{Value, json};
use std::path::Path;

/// Opens the configuration and the weights of a golden case.
fn golden(case: &str) -> (Value, Checkpoint) {
    let folder = fixture("goldens").join(case);
    let text = std::fs::read_to_string(folder.join("case.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let weights = Checkpoint::open(folder.join(json["weights"].as_str().unwrap())).unwrap();
    (json, weights)
}

fn class_config(case: &Value) -> ClassConfig {
    serde_json::from_value(case["config"].clone()).unwrap()
}

/// Returns a model folder with a golden case's weights and the tiny VAE.
fn model(case: &str, architecture: &str) -> tempfile::TempDir {
    let (json, weights) = golden(case);
    let folder = tempfile::tempdir().unwrap();
    let [frames, height, width]: [usize; 3] =
        serde_json::from_value(json["config"]["input_size"].clone()).unwrap();
    let tiny: Value =
        serde_json::from_slice(&std::fs::read(fixture("tiny-model/model.json")).unwrap()).unwrap();
    let part = |name: &str| fixture("tiny-model").join(tiny[name].as_str().unwrap());
    let description = json!({
        "name": case, "architecture": architecture, "denoiser": weights.path(),
        "denoiser_config": class_config(&json), "vae": part("vae"), "num_frames": frames,
        // The tiny VAE downsamples by 8.
        "image_size": [8 * height, 8 * width], "fps": 8.0, "sampler": "dpm-solver", "steps": 4,
        "guidance_scale": 4.0,
    });
    std::fs::write(folder.path().join("model.json"), description.to_string()).unwrap();
    folder
}

fn parts() -> PartPaths {
    PartPaths { policy: PathPolicy::Anywhere, ..PartPaths::default() }
}

fn class_pipeline(folder: &Path, device: &Device) -> ClassToVideo {
    let files = ClassFiles::open_with(folder, &parts()).unwrap();
    ClassToVideo::new(files, PipelineOptions::default(), device.clone()).unwrap()
}

/// The sampler of the reference's class configurations; the cases contain its latents for help.
#[test]
fn dpm_solver_follows_labels_as_the_reference_does() {
    for (name, device) in devices() {
        for case in ["class-sample-dit", "class-sample-latte"] {
            let (json, weights) = golden(case);
            let config = class_config(&json);
            let f32 = FloatDType::F32;
            let model: Box<dyn ClassModel> = match json["model"].as_str().unwrap() {
                "DiT" => Box::new(Dit::load(&config, &weights, f32, &device).unwrap().0),
                _ => Box::new(Latte::load(&config, &weights, f32, &device).unwrap().0),
            };
            let folder = fixture("goldens").join(case);
            let read = |file: &str, key: &str| {
                let file = Checkpoint::open(folder.join(file)).unwrap();
                file.tensors()[key].read(key).unwrap()
            };
            let labels: Vec<usize> =
                read("inputs.safetensors", "y").iter::<i64>().map(|y| y as usize).collect();
            let z = Tensor::<5>::from_data(read("inputs.safetensors", "z"), &device);
            let aid = &json["dpm_solver"];
            let steps = aid["num_sampling_steps"].as_u64().unwrap() as usize;
            let guidance = Guidance::all_channels(aid["cfg_scale"].as_f64().unwrap());
            let denoiser = LabelledDenoiser::new(&*model, &labels).unwrap();
            let solver = DpmSolver::with_steps(steps).unwrap();
            let noise = &mut |_| z.zeros_like();
            let sampled = solver.sample(&denoiser, &guidance, z.clone(), noise, &mut ()).unwrap();
            let got: Vec<f32> = sampled.into_data().iter::<f32>().collect();
            let want: Vec<f32> = read("dpm_solver.safetensors", "samples").iter::<f32>().collect();
            let tolerance = |field: &str| aid["tolerances"]["samples"][field].as_f64().unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.into_iter().zip(want) {
                let error = f64::from((got - want).abs());
                let bound = tolerance("atol") + tolerance("rtol") * f64::from(want.abs());
                assert!(error <= bound, "{name}: {case}: {got} instead of {want}");
            }
            // Two samples, each with its null class, in every step.
            assert_eq!(denoiser.work().forward_samples, 4 * steps as u64);
        }
    }
}

#[test]
fn a_published_layout_becomes_an_image_of_a_class() {
    let folder = model("dit-original-pt", "dit");
    for (name, device) in devices() {
        let pipeline = class_pipeline(folder.path(), &device);
        let request = pipeline.files().defaults.clone();
        let images = pipeline.generate(&[3, 7, 3], &request, &mut ()).unwrap();
        assert_eq!(images.len(), 3);
        assert_eq!((images[0].len(), images[0].height(), images[0].width()), (1, 64, 64));
        // The noise depends on the position in the list, the class on the label.
        assert_ne!(images[0].data(), images[1].data(), "{name}");
        assert_ne!(images[0].data(), images[2].data(), "{name}");
        // Sampled alone, the third image is the same up to rounding.
        let third = SampleRequest { noise_index: 2, ..request.clone() };
        let again = pipeline.generate(&[3], &third, &mut ()).unwrap();
        assert_eq!(again[0].data(), images[2].data(), "{name}");
        let other = pipeline.generate(&[7], &third, &mut ()).unwrap();
        assert_ne!(other[0].data(), images[2].data(), "{name}: labels change nothing");
        let together = SampleRequest { batch_size: 3, ..request };
        let together = pipeline.generate(&[3, 7, 3], &together, &mut ()).unwrap();
        for (one, other) in images.iter().zip(&together) {
            let most = one.data().iter().zip(other.data()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(most <= Some(1), "{name}: {most:?}");
        }
    }
}

#[test]
fn a_resident_class_model_opens_no_file_again() {
    let folder = model("dit-original-pt", "dit");
    let (_, device) = devices().remove(0);
    let mut files = ClassFiles::open_with(folder.path(), &parts()).unwrap();
    let copy = folder.path().join(files.denoiser.file_name().unwrap());
    std::fs::copy(&files.denoiser, &copy).unwrap();
    files.denoiser = copy.clone();
    let request = files.defaults.clone();
    let options = PipelineOptions { residency: Residency::Denoiser, ..PipelineOptions::default() };
    let pipeline = ClassToVideo::new(files, options, device).unwrap();
    let first = pipeline.generate(&[3], &request, &mut ()).unwrap();
    // Opening the file again would be an error.
    std::fs::remove_file(&copy).unwrap();
    assert_eq!(pipeline.generate(&[3], &request, &mut ()).unwrap(), first);
    pipeline.release();
    assert!(pipeline.generate(&[3], &request, &mut ()).is_err());
}

#[test]
fn a_latte_makes_clips_of_any_length() {
    let folder = model("latte-ema-nested-pt", "latte");
    let (_, device) = devices().remove(0);
    let pipeline = class_pipeline(folder.path(), &device);
    for num_frames in [1, 5, 8] {
        let request = SampleRequest { num_frames, ..pipeline.files().defaults.clone() };
        let clips = pipeline.generate(&[2], &request, &mut ()).unwrap();
        assert_eq!(clips[0].len(), num_frames);
    }
}

#[test]
fn labels_and_requests_that_do_not_fit_are_rejected_before_a_weight_is_read() {
    let folder = model("dit-original-pt", "dit");
    let (_, device) = devices().remove(0);
    let pipeline = class_pipeline(folder.path(), &device);
    let defaults = pipeline.files().defaults.clone();
    let error = pipeline.check(&[10], &defaults).unwrap_err().to_string();
    assert_eq!(error, "label 10 is out of range, the model has classes 0 to 9");
    for request in [
        SampleRequest { image_size: [64, 48], ..defaults.clone() },
        SampleRequest { image_size: [60, 60], ..defaults.clone() },
        SampleRequest { batch_size: 0, ..defaults.clone() },
        SampleRequest { space_scale: Some(0.5), ..defaults.clone() },
        SampleRequest { steps: Some(1), ..defaults.clone() },
    ] {
        assert!(pipeline.check(&[0], &request).is_err(), "{request:?}");
    }
}

/// Without label dropout there is no null class: guidance is an error, its absence is none.
#[test]
fn a_model_without_a_null_class_is_sampled_without_guidance() {
    let (_, device) = devices().remove(0);
    let (json, _) = golden("dit-original-pt");
    let config = ClassConfig { class_dropout_prob: 0.0, ..class_config(&json) };
    let model = config.init::<Dit>(&device).unwrap();
    let latents = Tensor::<5>::zeros([1, 4, 1, 8, 8], &device);
    let denoiser = LabelledDenoiser::new(&model, &[9]).unwrap();
    let solver = DpmSolver::with_steps(2).unwrap();
    let sample = |guidance| {
        let noise = &mut |_| latents.zeros_like();
        solver.sample(&denoiser, &guidance, latents.clone(), noise, &mut ())
    };
    assert!(sample(Guidance::all_channels(1.0)).is_ok());
    let error = sample(Guidance::all_channels(4.0)).unwrap_err();
    let text = format!("{error}: {error:?}");
    assert!(text.contains("NoNullClass") || text.contains("null class"), "{text}");
}

/// Files that fit a model by accident or almost.
#[test]
fn weights_of_another_model_are_rejected() {
    let (_, device) = devices().remove(0);
    let f32 = FloatDType::F32;
    let (dit, dit_weights) = golden("dit-original-pt");
    let (latte, latte_weights) = golden("latte-ema-nested-pt");
    let error = Latte::load(&class_config(&dit), &dit_weights, f32, &device).unwrap_err();
    assert!(error.to_string().contains("so it is a DiT"), "{error}");
    let error = Dit::load(&class_config(&latte), &latte_weights, f32, &device).unwrap_err();
    assert!(error.to_string().contains("temp_embed"), "{error}");
    // Sizes that differ from the file's.
    for config in [
        ClassConfig { depth: 2, ..class_config(&dit) },
        ClassConfig { class_dropout_prob: 0.0, ..class_config(&dit) },
        ClassConfig { hidden_size: 52, ..class_config(&dit) },
    ] {
        assert!(Dit::load(&config, &dit_weights, f32, &device).is_err(), "{config:?}");
    }
    let bad = ClassConfig { num_heads: 7, ..class_config(&dit) };
    let error = Dit::load(&bad, &dit_weights, f32, &device).unwrap_err();
    assert!(matches!(error, LoadError::Config(SizeError::Config(_))), "{error}");

    // PixArtMS has keys that PixArt lacks; the error names them.
    let (pixart, pixart_weights) = golden("pixart-ms-pth");
    let config: DenoiserConfig = serde_json::from_value(pixart["config"].clone()).unwrap();
    let error = PixArt::load(&config, &pixart_weights, f32, &device).unwrap_err();
    assert!(error.to_string().contains("ar_embedder"), "{error}");
}

/// Returns a model folder with a PixArtMS with random weights (none zero), the tiny text encoder and the tiny VAE.
fn pixart_ms(base_size: Option<usize>, device: &Device) -> tempfile::TempDir {
    let tiny = fixture("tiny-model");
    let tiny: Value =
        serde_json::from_slice(&std::fs::read(tiny.join("model.json")).unwrap()).unwrap();
    let mut config: DenoiserConfig =
        serde_json::from_value(tiny["denoiser_config"].clone()).unwrap();
    config.hidden_size = 48;
    config.scales = PositionScales { space_scale: 2.0, time_scale: 1.0 };
    let mut weights = config.init::<PixArtMs>(device).unwrap();
    let outputs = 4 * config.out_channels();
    weights.base.final_layer.linear = linear(48, outputs, true, XAVIER, device);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pixart.safetensors");
    export(&weights, &keys::pixart_ms(), ExportOptions::default(), &path).unwrap();
    let part = |name: &str| fixture("tiny-model").join(tiny[name].as_str().unwrap());
    let description = json!({
        "name": "small", "architecture": "pixart-ms", "base_size": base_size,
        "denoiser": "pixart.safetensors", "denoiser_config": config, "t5": part("t5"),
        "vae": part("vae"), "num_frames": 1, "image_size": [64, 64], "fps": 1.0,
        "sampler": "dpm-solver", "steps": 3,
    });
    std::fs::write(folder.path().join("model.json"), description.to_string()).unwrap();
    folder
}

/// Text to image: position tables and size conditions follow the size.
#[test]
fn pixart_makes_images_of_many_sizes() {
    for (name, device) in devices() {
        let folder = pixart_ms(None, &device);
        let pipeline = |base_size: Option<usize>| {
            let mut files = ModelFiles::open_with(folder.path(), &parts()).unwrap();
            files.architecture = Architecture::PixArtMs { base_size };
            TextToVideo::new(files, PipelineOptions::default(), device.clone()).unwrap()
        };
        let (reference, original) = (pipeline(None), pipeline(Some(4)));
        let defaults = reference.files().defaults.clone();
        let image = |pipeline: &TextToVideo, image_size| {
            let request = SampleRequest { image_size, ..defaults.clone() };
            pipeline.generate(&["a fox"], &request, &mut ()).unwrap().remove(0)
        };
        // With four tokens a side, both rules for positions give the same.
        assert_eq!(image(&reference, [64, 64]).data(), image(&original, [64, 64]).data(), "{name}");
        let (one, other) = (image(&reference, [32, 96]), image(&original, [32, 96]));
        assert_eq!([one.height(), one.width(), one.len()], [32, 96, 1]);
        assert_ne!(one.data(), other.data(), "{name}");

        let request =
            SampleRequest { attention_reuse: AttentionReuse::PUBLISHED, ..defaults.clone() };
        let error = reference.check(&request).unwrap_err();
        assert!(matches!(error, PipelineError::Request(_)), "{error}");
    }
}

/// A resident PixArt gives the same images and clips as one that is loaded for each request, at any size and
/// position scale.
#[test]
fn a_resident_pixart_follows_each_request() {
    for (name, device) in devices() {
        let folder = pixart_ms(None, &device);
        let files = || ModelFiles::open_with(folder.path(), &parts()).unwrap();
        let made = |residency| {
            let options = PipelineOptions { residency, ..PipelineOptions::default() };
            TextToVideo::new(files(), options, device.clone()).unwrap()
        };
        let (fresh, resident) = (made(Residency::Sequential), made(Residency::All));
        let mut made = Vec::new();
        for (num_frames, image_size, space_scale, time_scale) in [
            (1, [64, 64], None, None),
            (1, [32, 96], None, None),
            (3, [64, 64], None, None),
            (3, [64, 64], Some(0.3), Some(0.5)),
            (1, [64, 64], None, None),
        ] {
            let request = SampleRequest {
                num_frames,
                image_size,
                space_scale,
                time_scale,
                ..fresh.files().defaults.clone()
            };
            let sample = |pipeline: &TextToVideo| {
                let states = pipeline.encode(&["a fox"], &request, &mut ()).unwrap();
                let latents = pipeline.sample(&states, &request, &mut ()).unwrap().latents;
                latents.into_data().iter::<f32>().collect::<Vec<_>>()
            };
            let (expected, found) = (sample(&fresh), sample(&resident));
            let scale = expected.iter().fold(1.0f32, |max, value| max.max(value.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-5 * scale, "{name}: {image_size:?}");
            }
            made.push(found);
        }
        assert_eq!(made[0], made[4], "{name}: a request leaves nothing behind");
        assert_ne!(made[2], made[3], "{name}: scales matter");
    }
}

#[test]
fn a_description_keeps_the_rule_for_positions() {
    let (_, device) = devices().remove(0);
    for base_size in [None, Some(64)] {
        let folder = pixart_ms(base_size, &device);
        let files = ModelFiles::open_with(folder.path(), &parts()).unwrap();
        assert_eq!(files.architecture, Architecture::PixArtMs { base_size });
    }
}
