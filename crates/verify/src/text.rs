//! Cases of text: `caption-clean`, `t5-tokenizer`, `t5-encoder`.

use super::{Case, Check, Failure, Output, Outputs};
use burn::tensor::{Device, FloatDType};
use opensora::checkpoint::{Checkpoint, PublishedModel};
use opensora::t5::{
    T5Config, T5Encoder, T5Tokenizer, TokenIds, caption::text_preprocessing,
    position::relative_bucket,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Caption {
    input: String,
    output: String,
}

/// Cleans captions; results must be equal.
pub(super) fn caption_clean(case: &Case, _: &Device) -> Result<Outputs, Failure> {
    let captions: Vec<Caption> = case.json_file(&case.get::<String>("/cases_file")?)?;
    let wrong: Vec<&Caption> = captions
        .iter()
        .filter(|caption| text_preprocessing(&caption.input) != caption.output)
        .collect();
    let first = wrong.first().map(|caption| format!("{:?}", caption.input));
    let check = Check::exact(wrong.len(), captions.len(), first);
    Ok(vec![("output".into(), Output::Check(check))])
}

#[derive(Deserialize)]
struct Tokenized {
    text: String,
    input_ids: Vec<u32>,
    attention_mask: Vec<u32>,
    /// Contains `alternative_*`: ids by another implementation of the reference's tokenizer, where the
    /// implementations disagree. Both are accepted.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl Tokenized {
    fn accepts(&self, tokens: &TokenIds) -> bool {
        let mask: Vec<u32> = tokens.mask.iter().map(|&keep| keep.into()).collect();
        if tokens.ids == self.input_ids {
            return mask == self.attention_mask;
        }
        let ids = Value::from(tokens.ids.clone());
        self.others.iter().any(|(name, other)| name.starts_with("alternative_") && *other == ids)
    }
}

/// Tokenizes texts without cleaning; ids and masks must be equal.
pub(super) fn tokenizer(case: &Case, _: &Device) -> Result<Outputs, Failure> {
    case.check_settings(
        "/config",
        &["max_length", "padding", "truncation", "add_special_tokens", "extra_ids", "spiece_vocab"],
    )?;
    case.begin("loading the tokenizer");
    let tokenizer = T5Tokenizer::from_path(case.path("/weights")?)?;
    let max_length: usize = case.get("/config/max_length")?;
    let texts: Vec<Tokenized> = case.json_file(&case.get::<String>("/cases_file")?)?;
    case.begin("tokenizing");
    let mut different = 0;
    let mut first = None;
    for text in &texts {
        let tokens = tokenizer.encode(&text.text, max_length)?;
        if !text.accepts(&tokens) {
            different += 1;
            first.get_or_insert_with(|| format!("{:?}", text.text));
        }
    }
    let check = Check::exact(different, texts.len(), first);
    Ok(vec![("input_ids".into(), Output::Check(check))])
}

/// Encodes token ids with and without a mask.
pub(super) fn encoder(case: &Case, device: &Device) -> Result<Outputs, Failure> {
    let mut config: T5Config = case.get("/config")?;
    // Published configurations lack this field; cases have it beside the configuration.
    if let Ok(distance) = case.get("/relative_attention_max_distance") {
        config.relative_attention_max_distance = distance;
    }
    case.begin("loading the text encoder");
    let checkpoint = Checkpoint::open(case.path("/weights")?)?;
    let (encoder, _) = T5Encoder::load(&config, &checkpoint, FloatDType::F32, device)?;

    case.begin("encoding token ids");
    let ids: Result<Vec<Vec<u32>>, _> = case
        .rows("input_ids")?
        .into_iter()
        .map(|row| row.into_iter().map(u32::try_from).collect())
        .collect();
    let ids = ids?;
    let mask = case.mask("attention_mask")?;
    let length = mask.len() as i64;
    let buckets = (1 - length..length).map(|distance| {
        relative_bucket(
            distance,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        ) as f64
    });
    Ok(vec![
        case.output("last_hidden_state", encoder.forward(&ids, Some(&mask)))?,
        case.output("last_hidden_state_nomask", encoder.forward(&ids, None))?,
        ("relative_buckets".into(), Output::from_values(buckets.collect())),
    ])
}
