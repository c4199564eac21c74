//! Fresh encoders have T5's initial weights, and exported encoders load again.

use burn::tensor::{Device, FloatDType, Tensor};
use opensora_checkpoint::{ExportOptions, KeyMap, export, published_tensors};
use opensora_t5::{T5Config, TextEncoder, fit_tokenizer, keys::Layout};

fn config() -> T5Config {
    T5Config {
        vocab_size: 120,
        d_model: 48,
        d_kv: 8,
        d_ff: 96,
        num_layers: 2,
        num_heads: 4,
        ..T5Config::default()
    }
}

fn key_map() -> KeyMap {
    Layout::PUBLISHED.key_map()
}

/// Returns the standard deviation of a weight by transformers, `modeling_t5.py`,
/// `T5PreTrainedModel._init_weights` with factor 1; `None` for norms, which are ones.
fn deviation(key: &str, config: &T5Config) -> Option<f64> {
    let root = |n: usize| (n as f64).powf(-0.5);
    let T5Config { d_model, d_kv, d_ff, num_heads, .. } = *config;
    let name = key.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
    match name {
        "shared" => Some(1.0),
        "q" => Some(root(d_model * d_kv)),
        "k" | "v" | "wi_0" | "wi_1" | "relative_attention_bias" => Some(root(d_model)),
        "o" => Some(root(num_heads * d_kv)),
        "wo" => Some(root(d_ff)),
        "layer_norm" | "final_layer_norm" => None,
        other => panic!("{other} of {key}"),
    }
}

#[test]
fn initial_weights_are_those_of_t5() {
    let config = config();
    let encoder = config.init(&Device::flex()).unwrap();
    let tensors = published_tensors(&encoder, &key_map()).unwrap();
    assert_eq!(tensors.len(), 3 + 9 * config.num_layers);
    for (key, data) in tensors {
        let values: Vec<f64> = data.iter::<f64>().collect();
        let Some(want) = deviation(&key, &config) else {
            assert!(values.iter().all(|&value| value == 1.0), "{key}");
            continue;
        };
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let found = (values.iter().map(|v| v * v).sum::<f64>() / count).sqrt();
        // Six standard deviations of the mean and of the deviation of `count` normal numbers.
        assert!(mean.abs() < 6.0 * want / count.sqrt(), "{key}: mean {mean}");
        let tolerance = 6.0 * want / (2.0 * count).sqrt();
        assert!((found - want).abs() < tolerance, "{key}: {found}, expected {want}");
    }
}

#[test]
fn an_exported_folder_loads_like_a_published_one() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let config = config();
    let captions = ["a red circle moving left", "a blue square moving up"];
    fit_tokenizer(captions, config.vocab_size).unwrap().save(folder.path()).unwrap();
    config.write(&folder.path().join("config.json")).unwrap();
    let encoder = config.init(&device).unwrap();
    let weights = folder.path().join("model.safetensors");
    export(&encoder, &key_map(), ExportOptions::default(), &weights).unwrap();

    let (text, _) = TextEncoder::load(folder.path(), 10, FloatDType::F32, &device).unwrap();
    assert_eq!(text.config(), &config);
    let tokens = text.tokenize("A Red square moving up").unwrap();
    assert_eq!(tokens.mask.iter().filter(|&&used| used).count(), 6);
    let got = text.encode(&["A Red square moving up"]).unwrap();
    let want: Tensor<3> = encoder.forward(&[tokens.ids], Some(&got.mask));
    assert_eq!(got.states.to_data(), want.into_data());

    // The streamed encoder is bit-exact in every dtype.
    for dtype in [FloatDType::F32, FloatDType::BF16] {
        let prompts = ["A Red square moving up", "a blue square"];
        let (text, resident) = TextEncoder::load(folder.path(), 10, dtype, &device).unwrap();
        let (stream, streamed) = TextEncoder::stream(folder.path(), 10, dtype, &device).unwrap();
        assert_eq!(resident, streamed);
        let (want, got) = (text.encode(&prompts).unwrap(), stream.encode(&prompts).unwrap());
        assert_eq!(got.states.into_data(), want.states.into_data());
        assert_eq!(got.mask, want.mask);
    }
}
