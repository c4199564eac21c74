//! The streamed denoiser: the numbers of the resident one, and files that change meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor};
use opensora::{
    checkpoint::{Checkpoint, CheckpointError, PublishedModel},
    nn::mask::TokenMask,
    stdit::{AttentionCache, AttentionReuse, DenoiserConfig, PromptModel, StDit, StreamedStDit},
};
use opensora_tests::{devices, fixture, with_causes};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// A checkpoint of each layout with the golden case of its configuration.
const LAYOUTS: [(&str, &str); 5] = [
    ("goldens/stdit-pth/STDiT.pth", "stdit-pth"),
    ("goldens/stdit-safetensors/model.safetensors", "stdit-safetensors"),
    ("goldens/stdit-colossal-sharded/ckpt", "stdit-colossal-sharded"),
    ("goldens/stdit-ema-nested/ema_nested.pt", "stdit-ema-nested"),
    ("checkpoints/legacy.pth", "stdit-safetensors"),
];

fn config(case: &str) -> DenoiserConfig {
    let text = std::fs::read_to_string(fixture("goldens").join(case).join("case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(case["config"].clone()).unwrap()
}

fn stream(
    path: &Path,
    config: &DenoiserConfig,
    dtype: FloatDType,
    device: &Device,
) -> StreamedStDit {
    StreamedStDit::open(config, Checkpoint::open(path).unwrap(), dtype, device).unwrap().0
}

/// Inputs for the models: two clips with a prompt each, one of them short.
struct Question {
    latents: Tensor<5>,
    prompt: Tensor<3>,
    mask: TokenMask,
}

impl Question {
    fn new(config: &DenoiserConfig, device: &Device) -> Self {
        let tokens = config.model_max_length;
        let short = (0..tokens).map(|token| token < 3).collect();
        Self {
            latents: waves([2, config.in_channels, 3, 4, 6], 0.3, device),
            prompt: waves([2, tokens, config.caption_channels], 0.7, device),
            mask: TokenMask::new(vec![short, vec![true; tokens]]).unwrap(),
        }
    }

    fn ask(&self, model: &StreamedStDit) -> Result<Vec<f32>, CheckpointError> {
        let Self { latents, prompt, mask } = self;
        let timesteps = [700.0, 20.5];
        model.forward(latents.clone(), &timesteps, prompt.clone(), Some(mask)).map(values)
    }
}

fn waves<const D: usize>(shape: [usize; D], phase: f32, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
    Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
}

/// Bit-exact on flex; products of other backends can depend on the memory layout of weights.
fn assert_same(found: Tensor<5>, wanted: Tensor<5>, name: &str, what: &str) {
    if name == "flex" {
        assert_eq!(values(found), values(wanted), "{name} {what}");
    } else {
        let size = wanted.clone().abs().max().into_scalar::<f32>();
        let difference = (found - wanted).abs().max().into_scalar::<f32>();
        assert!(difference <= 1e-5 * size, "{name} {what}: {difference} of {size}");
    }
}

fn values(tensor: Tensor<5>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().unwrap()
}

#[test]
fn every_layout_gives_the_resident_models_numbers() {
    for (name, device) in devices() {
        for (file, case) in LAYOUTS {
            let (config, path) = (config(case), fixture(file));
            let checkpoint = Checkpoint::open(&path).unwrap();
            let (resident, resident_report) =
                StDit::load(&config, &checkpoint, FloatDType::F32, &device).unwrap();
            let (streamed, report) =
                StreamedStDit::open(&config, checkpoint, FloatDType::F32, &device).unwrap();
            assert_eq!(report, resident_report);
            assert_eq!(streamed.config(), resident.config());
            let table = |table: Tensor<2>| table.into_data().try_to_vec::<f32>().unwrap();
            assert_eq!(table(streamed.null_prompt()), table(resident.null_prompt()));

            let Question { latents, prompt, mask } = &Question::new(&config, &device);
            let timesteps = [700.0, 20.5];
            for mask in [None, Some(mask)] {
                let (latents, prompt) = (latents.clone(), prompt.clone());
                let wanted = resident.forward(latents.clone(), &timesteps, prompt.clone(), mask);
                let found = streamed.forward(latents, &timesteps, prompt, mask).unwrap();
                assert_same(found, wanted, &name, file);
            }

            // Four steps with attention reuse.
            let reuse = AttentionReuse::new([2, 3, 2], [100.0, 990.0]).unwrap();
            let [mut kept, mut wanted_kept] = [(); 2].map(|()| AttentionCache::new(reuse));
            for timestep in [900.0, 800.0, 700.0, 600.0] {
                let (latents, prompt) = (latents.clone(), prompt.clone());
                let timesteps = [timestep; 2];
                let wanted = resident
                    .forward_cached(
                        latents.clone(),
                        &timesteps,
                        prompt.clone(),
                        Some(mask),
                        &mut wanted_kept,
                    )
                    .unwrap();
                let found = streamed
                    .forward_cached(latents, &timesteps, prompt, Some(mask), &mut kept)
                    .unwrap();
                assert_same(found, wanted, &name, &format!("{file} {timestep}"));
            }
            assert_eq!(kept.work(), wanted_kept.work());
            assert!(kept.work().attentions_reused > 0);
        }
    }
}

#[test]
fn half_precision_is_equal_streamed_and_loaded() {
    let (device, dtype) = (Device::flex(), FloatDType::BF16);
    let (config, path) = (config("stdit-pth"), fixture("goldens/stdit-pth/STDiT.pth"));
    let (resident, _) =
        StDit::load(&config, &Checkpoint::open(&path).unwrap(), dtype, &device).unwrap();
    let question = Question::new(&config, &device);
    let Question { latents, prompt, mask } = &question;
    let wanted = resident.forward(latents.clone(), &[700.0, 20.5], prompt.clone(), Some(mask));
    let found = question.ask(&stream(&path, &config, dtype, &device)).unwrap();
    assert_eq!(found, values(wanted));
}

/// Copies a checkpoint and returns the copy and its largest file.
fn copy(source: &Path, folder: &Path) -> (PathBuf, PathBuf) {
    let target = folder.join(source.file_name().unwrap());
    if source.is_file() {
        std::fs::copy(source, &target).unwrap();
        return (target.clone(), target);
    }
    let mut largest = (0, PathBuf::new());
    let mut folders = vec![(source.to_path_buf(), target.clone())];
    while let Some((from, to)) = folders.pop() {
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                folders.push((path, to));
            } else {
                largest = largest.max((std::fs::copy(&path, &to).unwrap(), to));
            }
        }
    }
    (target, largest.1)
}

#[test]
fn a_file_truncated_between_two_steps_gives_one_line() {
    let (_, device) = devices().remove(0);
    for (file, case) in LAYOUTS {
        let folder = tempfile::tempdir().unwrap();
        let (path, largest) = copy(&fixture(file), folder.path());
        let config = config(case);
        let model = stream(&path, &config, FloatDType::F32, &device);
        let question = Question::new(&config, &device);
        let before = question.ask(&model).unwrap();

        let whole = std::fs::read(&largest).unwrap();
        for length in [whole.len() / 2, 0] {
            File::options().write(true).open(&largest).unwrap().set_len(length as u64).unwrap();
            let error = question.ask(&model).unwrap_err();
            let line = with_causes(&error);
            let says = format!("{}: tensor 'blocks.", largest.display());
            assert!(line.starts_with(&says) && !line.contains('\n'), "{line}");
            assert!(matches!(error, CheckpointError::Tensor { .. }), "{line}");
        }
        // The error is not permanent: after the bytes are restored, the model works again.
        std::fs::write(&largest, whole).unwrap();
        assert_eq!(question.ask(&model).unwrap(), before, "{file}");
    }
}

/// An open file keeps its bytes.
#[cfg(unix)]
#[test]
fn a_file_that_disappears_or_is_replaced_is_still_read() {
    let (_, device) = devices().remove(0);
    for (file, case) in LAYOUTS {
        let folder = tempfile::tempdir().unwrap();
        let (path, largest) = copy(&fixture(file), folder.path());
        let config = config(case);
        let model = stream(&path, &config, FloatDType::F32, &device);
        let question = Question::new(&config, &device);
        let before = question.ask(&model).unwrap();
        std::fs::remove_file(&largest).unwrap();
        assert_eq!(question.ask(&model).unwrap(), before, "{file}");
        std::fs::write(&largest, "something else").unwrap();
        assert_eq!(question.ask(&model).unwrap(), before, "{file}");
    }
}
