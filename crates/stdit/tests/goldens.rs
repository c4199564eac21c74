//! The models give the outputs of the reference: golden cases, whose format is described in
//! `tests/fixtures/goldens/README.md` of the repository.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{DType, Device, FloatDType, Tensor};
use opensora_checkpoint::{Checkpoint, KeyMap, PublishedModel, import};
use opensora_nn::{mask::TokenMask, read::read, sincos};
use opensora_stdit::{
    AttentionCache, AttentionReuse, ClassConfig, ClassModel, DenoiserConfig, Dit, ImageSize, Latte,
    PixArt, PixArtMs, PromptModel, SizedPixArt, StDit, StreamedStDit, keys,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::PathBuf};

/// A case of the reference.
struct Golden {
    folder: PathBuf,
    case: Value,
    inputs: Checkpoint,
    expected: Checkpoint,
    device: Device,
    /// Outputs that were compared.
    compared: BTreeSet<String>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name].iter().collect();
        let open = |file: &str| Checkpoint::open(folder.join(file)).unwrap();
        let text = fs::read_to_string(folder.join("case.json")).unwrap();
        Self {
            case: serde_json::from_str(&text).unwrap(),
            inputs: open("inputs.safetensors"),
            expected: open("expected.safetensors"),
            device: Device::flex(),
            compared: BTreeSet::new(),
            folder,
        }
    }

    fn config<T: DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.case["config"].clone()).unwrap()
    }

    /// Opens the file or folder that `case.json` names in `field`.
    fn checkpoint(&self, field: &str) -> Checkpoint {
        Checkpoint::open(self.folder.join(self.case[field].as_str().unwrap())).unwrap()
    }

    fn floats(&self, input: &str) -> Vec<f32> {
        self.inputs.tensors()[input].read(input).unwrap().iter::<f32>().collect()
    }

    fn labels(&self, input: &str) -> Vec<usize> {
        self.floats(input).into_iter().map(|label| label as usize).collect()
    }

    fn latents(&self, input: &str) -> Tensor<5> {
        Tensor::from_data(self.inputs.tensors()[input].read(input).unwrap(), &self.device)
    }

    /// Returns prompt states, `[B, 1, L, C] -> [B, L, C]`.
    fn prompt(&self) -> Tensor<3> {
        let states = self.inputs.tensors()["y"].read("y").unwrap();
        Tensor::<4>::from_data(states, &self.device).squeeze_dim(1)
    }

    fn mask(&self, input: &str) -> TokenMask {
        let length = self.inputs.tensors()[input].shape()[1];
        let values = self.floats(input);
        let rows = values.chunks(length).map(|row| row.iter().map(|&keep| keep != 0.0).collect());
        TokenMask::new(rows.collect()).unwrap()
    }

    /// Compares an output with the reference's, within the tolerance of the case.
    fn check<const D: usize>(&mut self, output: &str, found: Tensor<D>) {
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
        self.compared.insert(output.into());
    }

    /// Checks that every output of the case was compared, `others` apart, which need other crates.
    fn finish(self, others: &[&str]) {
        let named = self.case["outputs"].as_object().unwrap().keys().map(String::as_str);
        let left: Vec<&str> =
            named.filter(|name| !self.compared.contains(*name) && !others.contains(name)).collect();
        assert!(left.is_empty(), "not compared: {left:?}");
    }
}

/// Returns the spatial position table of a model for latents of `size`.
fn spatial_table(config: &DenoiserConfig, size: [usize; 3], base: Option<usize>) -> Tensor<3> {
    let [_, rows, columns] = config.grid(size).unwrap();
    let (scale, width) = (config.scales.space_scale, config.hidden_size);
    sincos::spatial([rows, columns], width, scale, base, DType::F32, &Device::flex()).unsqueeze()
}

#[test]
fn stdit_equals_the_reference() {
    let mut case = Golden::open("stdit-safetensors");
    let config: DenoiserConfig = case.config();
    let weights = case.checkpoint("weights");
    let (model, _) = StDit::load(&config, &weights, FloatDType::F32, &case.device).unwrap();
    let (streamed, _) =
        StreamedStDit::open(&config, weights, FloatDType::F32, &case.device).unwrap();
    assert_eq!((model.config(), streamed.config()), (&config, &config));
    let null = [model.null_prompt(), streamed.null_prompt()].map(|prompt| read(prompt).unwrap());
    assert_eq!(null[0], null[1]);
    let (latents, prompt) = (case.latents("x"), case.prompt());
    let (mask, holes) = (case.mask("mask"), case.mask("mask_holes"));
    let (int, fractional) = (case.floats("timestep_int"), case.floats("timestep_frac"));
    for (output, timesteps, mask) in [
        ("out_mask_tint", &int, Some(&mask)),
        ("out_nomask_tint", &int, None),
        ("out_mask_tfrac", &fractional, Some(&mask)),
        ("out_holes_tfrac", &fractional, Some(&holes)),
        ("out_mask_row0_repeated_tint", &int, Some(&mask.select(0, 1))),
    ] {
        let inputs = || (latents.clone(), prompt.clone());
        let (x, y) = inputs();
        let resident = model.forward(x, timesteps, y, mask);
        let (x, y) = inputs();
        let read_again = streamed.forward(x, timesteps, y, mask).unwrap();
        assert_eq!(
            read(read_again).unwrap(),
            read(resident.clone()).unwrap(),
            "{output}, streamed"
        );
        case.check(output, resident);
    }
    for (name, table) in model.position_tables([1, 8, 8]).unwrap() {
        let output = if name.contains("temporal") { "pos_embed_temporal" } else { "pos_embed" };
        case.check(output, table);
    }
    case.finish(&[]);
}

#[test]
fn prompt_models_of_one_run_reuse_attention_alike() {
    let case = Golden::open("stdit-safetensors");
    let config: DenoiserConfig = case.config();
    let weights = case.checkpoint("weights");
    let (model, _) = StDit::load(&config, &weights, FloatDType::F32, &case.device).unwrap();
    let (streamed, _) =
        StreamedStDit::open(&config, weights, FloatDType::F32, &case.device).unwrap();
    let models: [&dyn PromptModel; 2] = [&model, &streamed];
    let run = |model: &dyn PromptModel| {
        let reuse = AttentionReuse::new([2, 3, 2], [100.0, 990.0]).unwrap();
        let mut cache = AttentionCache::new(reuse);
        let null = read(model.null_prompt()).unwrap();
        let outputs = [900.0, 800.0, 700.0].map(|timestep| {
            let (latents, prompt) = (case.latents("x"), case.prompt());
            let timesteps = [timestep; 2];
            read(model.forward_cached(latents, &timesteps, prompt, None, &mut cache).unwrap())
                .unwrap()
        });
        (null, outputs, cache.work())
    };
    let [resident, streamed] = models.map(run);
    assert!(resident.2.attentions_reused > 0);
    assert_eq!(resident, streamed);
}

#[test]
fn stdit_and_pixart_from_one_checkpoint_equal_the_reference() {
    let mut case = Golden::open("pixart-init");
    let config: DenoiserConfig = case.config();
    let weights = case.checkpoint("weights");
    let (mask, timesteps, prompt) = (case.mask("mask"), case.floats("timestep"), case.prompt());
    let (stdit, _) = StDit::from_pixart(&config, &weights, FloatDType::F32, &case.device).unwrap();
    let only_temporal = KeyMap::new("the temporal attention of an STDiT")
        .rename(|path| keys::stdit().published_key(path))
        .allow_missing("*");
    let temporal = case.checkpoint("attn_temp_init");
    let (stdit, _) = import(stdit, &temporal, &only_temporal, FloatDType::F32).unwrap();
    for frames in [1, 4] {
        let latents = case.latents(&format!("x_T{frames}"));
        for (ending, mask) in [("", Some(&mask)), ("_nomask", None)] {
            let output = stdit.forward(latents.clone(), &timesteps, prompt.clone(), mask);
            case.check(&format!("stdit_T{frames}{ending}"), output);
        }
        let table = spatial_table(&config, [frames, 8, 8], None);
        case.check(&format!("stdit_T{frames}.pos_embed"), table);
    }
    for (output, temporal_positions) in [("pixart", false), ("pixart_with_temporal_pos", true)] {
        let (pixart, _) = PixArt::load(&config, &weights, FloatDType::F32, &case.device).unwrap();
        assert_eq!(pixart.config(), &config);
        let pixart = pixart.with_temporal_positions(temporal_positions);
        let latents = case.latents("x_T1");
        // Both ways to call it.
        let mut cache = AttentionCache::new(AttentionReuse::OFF);
        let cached = pixart
            .forward_cached(latents.clone(), &timesteps, prompt.clone(), Some(&mask), &mut cache)
            .unwrap();
        case.check(output, cached);
        case.check(output, pixart.forward(latents, &timesteps, prompt.clone(), Some(&mask)));
    }
    case.check("pixart.pos_embed", spatial_table(&config, [1, 8, 8], Some(4)));
    case.finish(&[]);
}

#[test]
fn pixart_ms_equals_the_reference() {
    let mut case = Golden::open("pixart-ms-pth");
    let config: DenoiserConfig = case.config();
    let weights = case.checkpoint("weights");
    let load = || PixArtMs::load(&config, &weights, FloatDType::F32, &case.device).unwrap().0;
    let (model, temporal) =
        (load().with_temporal_positions(false), load().with_temporal_positions(true));
    assert_eq!(model.config(), &config);
    let sizes = |ending: &str| -> Vec<ImageSize> {
        let (sides, ratios) =
            (case.floats(&format!("hw{ending}")), case.floats(&format!("ar{ending}")));
        let sizes = sides.chunks(2).zip(ratios);
        sizes
            .map(|(side, aspect_ratio)| ImageSize { height: side[0], width: side[1], aspect_ratio })
            .collect()
    };
    let (own, other) = (sizes(""), sizes("_other_grid"));
    let (prompt, mask, holes) = (case.prompt(), case.mask("mask"), case.mask("mask_holes"));
    let (int, fractional) = (case.floats("timestep_int"), case.floats("timestep_frac"));
    for (output, model, input, timesteps, mask, sizes) in [
        ("out_mask_tint", &model, "x", &int, Some(&mask), &own[..]),
        ("out_nomask_tint", &model, "x", &int, None, &own),
        ("out_mask_tfrac", &model, "x", &fractional, Some(&mask), &own),
        ("out_holes_tfrac", &model, "x", &fractional, Some(&holes), &own),
        ("out_one_row_tint", &model, "x", &int, Some(&mask.select(0, 1)), &own[..1]),
        ("out_with_temporal_pos_tint", &temporal, "x", &int, Some(&mask), &own),
        ("out_other_grid_mask_tint", &model, "x_other_grid", &int, Some(&mask), &other),
        ("out_other_grid_nomask_tfrac", &model, "x_other_grid", &fractional, None, &other),
    ] {
        let latents = case.latents(input);
        case.check(output, model.forward(latents, timesteps, prompt.clone(), mask, sizes));
    }
    case.check("pos_embed", spatial_table(&config, [1, 8, 8], Some(4)));
    // Two sizes for four samples are repeated.
    let twice = [own[0], own[1], own[0], own[1]];
    let [two, four] = [&own[..2], &twice].map(|sizes| {
        read(model.forward(case.latents("x"), &int, prompt.clone(), None, sizes)).unwrap()
    });
    assert_eq!(two, four);
    // Images of one size.
    let mut cache = AttentionCache::new(AttentionReuse::OFF);
    let sized = SizedPixArt { model, size: own[0] };
    assert_eq!(read(sized.null_prompt()).unwrap(), read(sized.model.null_prompt()).unwrap());
    let mask = mask.select(0, 1);
    let found = sized.forward_cached(case.latents("x"), &int, prompt, Some(&mask), &mut cache);
    case.check("out_one_row_tint", found.unwrap());
    // Guidance is of another crate.
    case.finish(&["out_cfg", "out_other_grid_cfg", "pos_embed_other_grid"]);
}

/// Compares the outputs of a case of DiT or Latte.
fn check_labelled<M>(name: &str)
where
    M: PublishedModel<Config = ClassConfig> + ClassModel,
{
    let mut case = Golden::open(name);
    let config: ClassConfig = case.config();
    let weights = case.checkpoint("weights");
    let model = M::load(&config, &weights, FloatDType::F32, &case.device).ok().unwrap().0;
    assert_eq!(model.config(), &config);
    let (labels, null) = (case.labels("y"), config.null_class().unwrap());
    let (int, fractional) = (case.floats("timestep_int"), case.floats("timestep_frac"));
    for (output, timesteps, labels) in [
        ("out_tint", &int, labels.clone()),
        ("out_tfrac", &fractional, labels.clone()),
        ("out_null_tint", &int, vec![null; labels.len()]),
    ] {
        case.check(output, model.forward(case.latents("x"), timesteps, &labels));
    }
    let (f32, device) = (DType::F32, case.device.clone());
    let [frames, rows, columns] = config.grid([4, 8, 8]).unwrap();
    let width = config.hidden_size;
    let space = sincos::spatial([rows, columns], width, 1.0, None, f32, &device);
    case.check("pos_embed_spatial", space.unsqueeze::<3>());
    let time = sincos::temporal(frames, width, 1.0, f32, &device);
    case.check("pos_embed_temporal", time.unsqueeze::<3>());
    // Guidance is of another crate.
    case.finish(&["out_cfg"]);
}

#[test]
fn dit_equals_the_reference() {
    check_labelled::<Dit>("dit-video");
}

#[test]
fn latte_equals_the_reference() {
    check_labelled::<Latte>("latte-pth");
}
