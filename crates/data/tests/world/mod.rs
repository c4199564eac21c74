//! What tests of the latent cache start from.

#![allow(dead_code, reason = "each test file uses its own part")]

use burn::tensor::{Device, FloatDType};
use opensora_checkpoint::{KeyMap, export};
use opensora_data::{
    ClipDataset, ClipSpec, Manifest,
    cache::CacheKey,
    demo::{DemoSpec, write_dataset},
    encode::ClipEncoder,
};
use opensora_t5::{T5Config, T5Encoder, encoder::published_key, fit_tokenizer};
use opensora_vae::{AutoencoderKl, VaeConfig, keys::Naming};
use std::{fs, path::PathBuf};

pub(crate) const TOKENS: usize = 12;
pub(crate) const SEED: u64 = 3;
/// Width of a prompt state.
pub(crate) const WIDTH: usize = 16;

/// Clips, and a VAE and a text encoder with fresh weights.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(clips: usize, num_frames: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::flex();
        let spec = DemoSpec { clips, image_size: [32, 32], num_frames, ..DemoSpec::default() };
        write_dataset(&folder.path().join("data"), &spec, |_, _| ()).unwrap();

        let vae_config = VaeConfig {
            block_out_channels: vec![8, 8],
            layers_per_block: 1,
            norm_num_groups: 4,
            ..VaeConfig::default()
        };
        let vae = folder.path().join("vae");
        fs::create_dir(&vae).unwrap();
        let config = serde_json::to_string(&vae_config).unwrap();
        fs::write(vae.join("config.json"), config).unwrap();
        let model = AutoencoderKl::new(&vae_config, &device).unwrap();
        let weights = vae.join("diffusion_pytorch_model.safetensors");
        export(&model, &Naming::Diffusers.key_map(&vae_config), FloatDType::F32, None, &weights)
            .unwrap();

        let t5_config = T5Config {
            vocab_size: 120,
            d_model: WIDTH,
            d_kv: 4,
            d_ff: 32,
            num_layers: 1,
            num_heads: 2,
            ..T5Config::default()
        };
        let t5 = folder.path().join("t5");
        fit_tokenizer(["a red circle grows"], 120).unwrap().save(&t5).unwrap();
        t5_config.write(&t5.join("config.json")).unwrap();
        let encoder = T5Encoder::new(&t5_config, &device).unwrap();
        let map = KeyMap::new("T5").rename(|path| published_key(path, "shared.weight"));
        export(&encoder, &map, FloatDType::F32, None, &t5.join("model.safetensors")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn dataset(&self, clip: &ClipSpec) -> ClipDataset {
        let manifest = Manifest::read(&self.path("data/clips.csv")).unwrap();
        ClipDataset::new(manifest, clip.clone(), SEED).unwrap()
    }

    pub(crate) fn encoder(&self, micro_batch: Option<usize>) -> ClipEncoder {
        let device = Device::flex();
        ClipEncoder::load(&self.path("vae"), &self.path("t5"), TOKENS, micro_batch, &device)
            .unwrap()
    }

    pub(crate) fn key(&self, clip: &ClipSpec) -> CacheKey {
        CacheKey::new(clip, SEED, TOKENS, &self.path("vae"), &self.path("t5")).unwrap()
    }
}
