//! The VAE gives the outputs of the reference in every layout of its keys: golden cases, whose format is described
//! in `tests/fixtures/goldens/README.md` of the repository.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor};
use opensora_checkpoint::{Checkpoint, PublishedModel};
use opensora_nn::read::read;
use opensora_vae::{AutoencoderKl, SCALING_FACTOR, VaeConfig};
use serde_json::Value;
use std::path::PathBuf;

/// A case of the reference.
struct Golden {
    case: Value,
    inputs: Checkpoint,
    expected: Checkpoint,
    vae: AutoencoderKl,
}

impl Golden {
    fn open(name: &str) -> Self {
        let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name].iter().collect();
        let open = |file: &str| Checkpoint::open(folder.join(file)).unwrap();
        let text = std::fs::read_to_string(folder.join("case.json")).unwrap();
        let case: Value = serde_json::from_str(&text).unwrap();
        let weights = open(case["weights"].as_str().unwrap());
        let config = VaeConfig::beside(weights.path()).unwrap();
        assert_eq!(config, serde_json::from_value(case["config"].clone()).unwrap());
        let device = Device::flex();
        let (vae, _) = AutoencoderKl::load(&config, &weights, FloatDType::F32, &device).unwrap();
        assert_eq!((vae.config(), vae.device()), (&config, device));
        let (inputs, expected) = (open("inputs.safetensors"), open("expected.safetensors"));
        Self { case, inputs, expected, vae }
    }

    fn input(&self, name: &str) -> Tensor<5> {
        Tensor::from_data(self.inputs.tensors()[name].read(name).unwrap(), &Device::flex())
    }

    /// Compares an output with the reference's, within the tolerance of the case.
    fn check(&self, output: &str, found: Tensor<5>) {
        let entry = &self.expected.tensors()[output];
        assert_eq!(found.dims()[..], *entry.shape(), "{output}");
        let tolerance = &self.case["tolerances"][output];
        let [atol, rtol] = ["atol", "rtol"].map(|name| tolerance[name].as_f64().unwrap() as f32);
        let expected = entry.read(output).unwrap();
        let found = read(found).unwrap();
        for (index, (found, want)) in found.iter::<f32>().zip(expected.iter::<f32>()).enumerate() {
            let close = (found - want).abs() <= atol + rtol * want.abs();
            assert!(close, "{output}[{index}]: {found} instead of {want}");
        }
    }
}

#[test]
fn every_layout_equals_the_reference() {
    for name in ["vae-safetensors", "vae-ldm-ckpt", "vae-old-naming-bin"] {
        let golden = Golden::open(name);
        let posterior = golden.vae.encode(golden.input("x"), None);
        golden.check("moments", posterior.moments());
        golden.check("mean", posterior.mean());
        golden.check("logvar", posterior.logvar());
        golden.check("latents", posterior.latents(golden.input("noise")));
        golden.check("mean", posterior.mean_latents() / SCALING_FACTOR);
        golden.check("decoded", golden.vae.decode(golden.input("z"), None));
    }
}

#[test]
fn micro_batches_and_tiles_change_nothing() {
    let golden = Golden::open("vae-safetensors");
    for micro_batch in [Some(0), Some(1), Some(4), Some(100)] {
        golden.check("moments", golden.vae.encode(golden.input("x"), micro_batch).moments());
        golden.check("decoded", golden.vae.decode(golden.input("z"), micro_batch));
        for rows in [0, 8, 20, 31, 32] {
            let tiled = golden.vae.decode_in_tiles(golden.input("z"), micro_batch, rows);
            golden.check("decoded", tiled);
        }
    }
}
