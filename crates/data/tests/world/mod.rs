//! Clips and models for tests of the latent cache.

#![allow(dead_code, reason = "each test file uses its own part")]

use burn::tensor::Device;
use opensora_checkpoint::{ExportOptions, export};
use opensora_data::{
    ClipDataset, ClipSpec, Manifest, Observer, Row, RowsDone,
    cache::CacheKey,
    encode::{ClipEncoder, EncoderConfig},
};
use opensora_t5::{T5Config, fit_tokenizer, keys};
use opensora_vae::{VaeConfig, keys::Naming};
use opensora_video::{Frames, VideoSpec, Writer};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

pub(crate) const TOKENS: usize = 12;
pub(crate) const SEED: u64 = 3;
/// Width of a prompt state.
pub(crate) const WIDTH: usize = 16;

/// Writes `count` clips of 32x32, no two frames of which are equal, and `clips.csv`.
fn write_clips(folder: &Path, count: usize, num_frames: usize) {
    const SIDE: usize = 32;
    fs::create_dir_all(folder.join("clips")).unwrap();
    let rows = (0..count).map(|index| {
        // A gradient whose colours depend on the clip and the frame.
        let pixel = |frame: usize, y: usize, x: usize| {
            [x * 8 + frame * 5, y * 8 + index * 40, (x + y) * 4 + frame * 11 + index * 70]
                .map(|value| (value % 256) as u8)
        };
        let bytes = (0..num_frames)
            .flat_map(|frame| (0..SIDE * SIDE).map(move |at| (frame, at / SIDE, at % SIDE)))
            .flat_map(|(frame, y, x)| pixel(frame, y, x))
            .collect();
        let clip = Frames::from_rgb(bytes, [num_frames, SIDE, SIDE]).unwrap();
        let path = folder.join(format!("clips/{index:06}.mp4"));
        let spec = VideoSpec { frames: num_frames, width: SIDE, height: SIDE, fps: 8.0 };
        Writer::open(&path, &spec).unwrap().write(&clip, &serde_json::Value::Null).unwrap();
        let caption = format!("a gradient in {index} steps");
        Row { path, caption, num_frames: Some(num_frames) }
    });
    Manifest { rows: rows.collect() }.write(&folder.join("clips.csv")).unwrap();
}

/// Clips, and a VAE and a text encoder with fresh weights.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(clips: usize, num_frames: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::flex();
        write_clips(&folder.path().join("data"), clips, num_frames);

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
        let model = vae_config.init(&device).unwrap();
        let weights = vae.join("diffusion_pytorch_model.safetensors");
        export(&model, &Naming::Diffusers.key_map(&vae_config), ExportOptions::default(), &weights)
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
        let encoder = t5_config.init(&device).unwrap();
        let map = keys::Layout::PUBLISHED.key_map();
        export(&encoder, &map, ExportOptions::default(), &t5.join("model.safetensors")).unwrap();
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
        let config = EncoderConfig { vae_micro_batch: micro_batch, ..self.encoder_config() };
        ClipEncoder::load(&config, &Device::flex()).unwrap()
    }

    pub(crate) fn encoder_config(&self) -> EncoderConfig {
        EncoderConfig {
            vae: self.path("vae"),
            t5: self.path("t5"),
            max_length: TOKENS,
            vae_micro_batch: None,
        }
    }

    pub(crate) fn key(&self, clip: &ClipSpec) -> CacheKey {
        CacheKey::new(clip, SEED, &self.encoder_config()).unwrap()
    }
}

/// Records the numbers of rows that are done, and breaks at one number.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) done: Vec<usize>,
    pub(crate) stop_at: Option<usize>,
}

impl Observer for Log {
    fn rows_done(&mut self, event: &RowsDone) -> ControlFlow<()> {
        self.done.push(event.done);
        match self.stop_at {
            Some(row) if row == event.done => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}
