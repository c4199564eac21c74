//! Models of every kind: checks of configurations, counts of work, fresh weights, keys.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use opensora_checkpoint::{Checkpoint, ExportOptions, PublishedModel, export, published_tensors};
use opensora_stdit::{
    AttentionCache, AttentionReuse, ClassConfig, ClassModel, DenoiserConfig, DenoiserWork, Dit,
    ImageSize, LabelCondition, Latte, PixArt, PixArtMs, PromptModel, SizeError, StDit, keys,
    work::BlockFlops,
};
use std::path::PathBuf;

fn config() -> DenoiserConfig {
    DenoiserConfig {
        hidden_size: 24,
        depth: 3,
        num_heads: 2,
        caption_channels: 8,
        model_max_length: 5,
        ..DenoiserConfig::xl_2()
    }
}

fn class_config() -> ClassConfig {
    ClassConfig {
        hidden_size: 24,
        depth: 3,
        num_heads: 2,
        condition: LabelCondition { num_classes: 7 },
        ..ClassConfig::dit_xl_2()
    }
}

#[test]
fn every_model_checks_its_configuration_and_counts_its_blocks() {
    fn check<M, C>(ok: &C, bad: &C)
    where
        M: PublishedModel<Config = C, ConfigError = SizeError>,
    {
        assert_eq!(M::validate(ok), Ok(()));
        assert!(matches!(M::validate(bad), Err(SizeError::Config(_))));
        assert!(M::from_config(bad, &Device::flex()).is_err());
        assert_eq!(M::block_count(ok), ("depth", 3));
    }
    let bad = DenoiserConfig { num_heads: 5, ..config() };
    check::<StDit, _>(&config(), &bad);
    check::<PixArt, _>(&config(), &bad);
    check::<PixArtMs, _>(&config(), &bad);
    let bad = ClassConfig { num_heads: 5, ..class_config() };
    check::<Dit, _>(&class_config(), &bad);
    check::<Latte, _>(&class_config(), &bad);
    // A third of the width embeds each size of an image.
    let uneven = DenoiserConfig { hidden_size: 32, ..config() };
    assert_eq!(StDit::validate(&uneven), Ok(()));
    assert!(PixArtMs::validate(&uneven).is_err());
}

#[test]
fn the_mlp_has_a_width_from_1_to_64_times_that_of_the_model() {
    let of = |mlp_ratio| DenoiserConfig { hidden_size: 16, mlp_ratio, ..config() }.validate();
    for mlp_ratio in [0.0625, 1.0, 64.0] {
        assert_eq!(of(mlp_ratio), Ok(()), "{mlp_ratio}");
    }
    for mlp_ratio in [0.0624, 64.1, 0.0, -4.0, f64::INFINITY, f64::NAN] {
        assert!(matches!(of(mlp_ratio), Err(SizeError::Config(_))), "{mlp_ratio}");
    }
}

#[test]
fn sizes_are_limited_far_above_those_of_any_model() {
    let with_depth = |depth| DenoiserConfig { depth, ..config() }.validate();
    assert!(with_depth(1 << 10).is_ok() && with_depth((1 << 10) + 1).is_err());
    let with_channels = |in_channels| DenoiserConfig { in_channels, ..config() }.validate();
    assert!(with_channels(1 << 20).is_ok() && with_channels((1 << 20) + 1).is_err());
}

/// Models of the largest patch and width are built, since their weights are not allocated.
#[test]
fn models_are_built_for_every_size_that_is_accepted() {
    let (device, patch_size, hidden_size) = (Device::flex(), [1, 1 << 11, 1 << 11], 1 << 20);
    let largest = ClassConfig { patch_size, hidden_size, ..class_config() };
    assert!(largest.init::<Dit>(&device).is_ok() && largest.init::<Latte>(&device).is_ok());
    let largest = DenoiserConfig { patch_size, hidden_size, ..config() };
    assert!(largest.init::<StDit>(&device).is_ok() && largest.init::<PixArt>(&device).is_ok());
    let larger = DenoiserConfig { patch_size: [2, 1 << 11, 1 << 11], ..largest };
    assert!(larger.init::<StDit>(&device).is_err());
}

#[test]
fn the_work_of_class_models_is_that_of_their_attention() {
    let (device, config) = (Device::flex(), class_config());
    let (c, n) = (24.0, 4.0 * 6.0);
    // Per block: four projections, an MLP of four times the width, the modulation, attention to `keys`.
    let block = |keys: f64| 8.0 * c * c * n + 16.0 * c * c * n + 12.0 * c * c + 4.0 * c * n * keys;
    let work = |flops| DenoiserWork {
        forward_samples: 2,
        attentions_computed: 3,
        attentions_reused: 0,
        flops: 2.0 * flops,
    };
    let dit = config.init::<Dit>(&device).unwrap();
    assert_eq!(dit.work(2, [4, 2, 3]), work(3.0 * block(n)));
    // Blocks attend to the 6 tokens of a frame, the 4 frames, the 6 tokens of a frame.
    let latte = config.init::<Latte>(&device).unwrap();
    assert_eq!(latte.work(2, [4, 2, 3]), work(2.0 * block(6.0) + block(4.0)));
}

#[test]
fn all_tokens_of_a_pixart_attend_to_each_other() {
    let (device, config) = (Device::flex(), config());
    let model = config.init::<PixArt>(&device).unwrap();
    let mut cache = AttentionCache::new(AttentionReuse::OFF);
    let (latents, prompt) =
        (Tensor::ones([2, 4, 3, 4, 10], &device), Tensor::ones([2, 5, 8], &device));
    model.forward_cached(latents, &[500.0; 2], prompt, None, &mut cache).unwrap();
    // 3 frames of 2x5 tokens.
    let block = BlockFlops::new(&config, [1, 1, 30], 5);
    let expected = 2.0 * 3.0 * (block.spatial + block.cross + block.mlp);
    assert_eq!(cache.work().flops, expected);
    assert_eq!(cache.work().attentions_computed, 3 * 2);
}

#[test]
fn sizes_of_images_have_an_aspect_ratio() {
    let size = ImageSize::of_pixels([512, 1024]);
    assert_eq!(size, ImageSize { height: 512.0, width: 1024.0, aspect_ratio: 0.5 });
}

#[test]
fn fresh_modulation_tables_have_the_deviation_of_the_reference() {
    let config = DenoiserConfig { hidden_size: 64, ..config() };
    let model = config.init::<StDit>(&Device::flex()).unwrap();
    let tensors = published_tensors(&model, &keys::stdit()).unwrap();
    let values: Vec<f64> = tensors
        .iter()
        .filter(|(key, _)| key.starts_with("blocks.") && key.ends_with("scale_shift_table"))
        .flat_map(|(_, table)| table.iter::<f64>().collect::<Vec<_>>())
        .collect();
    assert_eq!(values.len(), 3 * 6 * 64);
    let deviation = (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt();
    // 1 / sqrt(64), with five standard errors.
    let error = 5.0 / (2.0 * values.len() as f64).sqrt();
    assert!((deviation * 8.0 - 1.0).abs() < error, "{deviation}");
}

#[test]
fn the_original_file_of_a_dit_is_not_a_latte() {
    let (device, config) = (Device::flex(), class_config());
    let dit = config.init::<Dit>(&device).unwrap();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dit-or-latte.safetensors");
    let check = |tables: &[&str]| {
        let table = |name: &&str| (name.to_string(), TensorData::new(vec![0.0f32; 24], [1, 24]));
        let buffers = tables.iter().map(table).collect();
        let options = ExportOptions::default().with_dtype(FloatDType::F32).with_buffers(buffers);
        export(&dit, &keys::dit(), options, &path).unwrap();
        Latte::check(&config, &Checkpoint::open(&path).unwrap(), &device)
    };
    assert!(check(&["pos_embed", "temp_embed"]).is_ok());
    assert!(check(&["pos_embed_spatial", "pos_embed_temporal"]).is_ok());
    let error = check(&["pos_embed"]).unwrap_err().to_string();
    assert!(error.contains("so it is a DiT, expected a Latte"), "{error}");
}
