//! Reads `tokenizer.json`, the `tokenizers` library's description of the same pipeline.
//!
//! Only the stages of published T5 exports are accepted, and each is checked before the library gets it: the format
//! can describe pipelines of every other model family, and the library does not check its input. `truncation`,
//! `padding` and `decoder` are ignored: the length is an argument of [`encode`](super::T5Tokenizer::encode).

use std::{collections::HashMap, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use opensora_files::one_line;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper,
    normalizers::{Replace, Strip, replace::ReplacePattern},
    pre_tokenizers::{metaspace::Metaspace, whitespace::WhitespaceSplit},
};

use super::{
    error::{JsonError, TokenizerError},
    pipeline::{self, Assembled, Piece, Pipeline},
    spiece,
};

/// Most commas and opening brackets, each of which can be a value of 32 bytes in memory (mT5: 750,000).
const MAX_JSON_VALUES: usize = 1_500_000;

/// Most bytes that all stages of the normaliser together may make of one byte of text. Their growths are multiplied,
/// since each stage can replace what the one before inserted. The published stages have 33: 11 of the table, and 3 of
/// the word boundary that replaces spaces.
const MAX_GROWTH: usize = 256;

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedTokenJson>,
    normalizer: Option<NormalizerJson>,
    pre_tokenizer: Option<PreTokenizerJson>,
    post_processor: Option<PostProcessorJson>,
    model: Value,
}

#[derive(Deserialize)]
struct AddedTokenJson {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct UnigramJson {
    unk_id: Option<usize>,
    vocab: Vec<Piece>,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum NormalizerJson {
    Sequence { normalizers: Vec<NormalizerJson> },
    Precompiled { precompiled_charsmap: String },
    Strip { strip_left: bool, strip_right: bool },
    Replace { pattern: ReplacePattern, content: String },
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizerJson {
    Sequence { pretokenizers: Vec<PreTokenizerJson> },
    WhitespaceSplit,
    Metaspace(Value),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessorJson {
    TemplateProcessing {
        single: Vec<TemplateJson>,
        special_tokens: HashMap<String, TemplateTokenJson>,
    },
}

#[derive(Deserialize)]
enum TemplateJson {
    Sequence { id: String },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
struct TemplateTokenJson {
    ids: Vec<u32>,
}

/// Reads the bytes of a `tokenizer.json`; `pad_token` is the text of the padding token.
pub(super) fn parse(
    path: &Path,
    bytes: &[u8],
    pad_token: &str,
) -> Result<Assembled, TokenizerError> {
    let parse_error = |problem| {
        move |error| TokenizerError::Parse {
            path: path.to_owned(),
            problem,
            source: JsonError(error),
        }
    };
    let special = |token: &str, reason: String| TokenizerError::SpecialToken {
        path: path.to_owned(),
        token: token.to_owned(),
        reason,
    };
    let marks = bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    TokenizerError::check_size(path, "the number of JSON values", marks, MAX_JSON_VALUES)?;
    let file: TokenizerJson =
        serde_json::from_slice(bytes).map_err(parse_error("not a T5 tokenizer.json"))?;

    match file.model.get("type").and_then(Value::as_str) {
        Some("Unigram") => {}
        found => {
            let found = one_line(found.unwrap_or("of no declared type"));
            return Err(TokenizerError::ModelKind { path: path.to_owned(), found });
        }
    }
    let model: UnigramJson = serde_json::from_value(file.model).map_err(parse_error("model"))?;
    spiece::check_pieces(path, &model.vocab)?;
    let (pieces, count) = (model.vocab.len(), file.added_tokens.len());
    let unk_id = model.unk_id.filter(|&id| id < pieces).ok_or_else(|| {
        let found = model.unk_id.map_or("none".to_owned(), |id| id.to_string());
        special("model.unk_id", format!("found {found}, expected an id below {pieces}"))
    })?;

    let mut normalizers = Vec::new();
    if let Some(stage) = file.normalizer {
        check_growth(path, add_normalizers(path, stage, &mut normalizers)?)?;
    }
    let mut pre_tokenizers = Vec::new();
    if let Some(stage) = file.pre_tokenizer {
        add_pre_tokenizers(path, stage, &mut pre_tokenizers)?;
    }
    let (ids, added): (Vec<u32>, Vec<AddedToken>) =
        file.added_tokens.into_iter().map(|entry| (entry.id, entry.token)).unzip();
    let contents: Vec<String> = added.iter().map(|token| token.content.clone()).collect();
    let library = Pipeline {
        pieces: model.vocab,
        unk_id,
        byte_fallback: model.byte_fallback,
        normalizers,
        pre_tokenizers,
        added,
    }
    .build(path)?;

    // The library assigns the ids of added tokens itself and only warns if the file has other ids.
    for (id, content) in ids.into_iter().zip(contents) {
        if library.token_to_id(&content) != Some(id) {
            let found = library.token_to_id(&content);
            let expected = found.map_or("none".to_owned(), |id| id.to_string());
            return Err(special(
                &format!("added token {:?}", one_line(&content)),
                format!("its id is {id}, expected {expected} from the vocabulary"),
            ));
        }
    }
    let eos_id = eos_id(file.post_processor)
        .filter(|&id| (id as usize) < pieces.saturating_add(count))
        .ok_or_else(|| {
            special("post_processor", "expected TemplateProcessing with `$A </s>`".to_owned())
        })?;
    let pad_id = library.token_to_id(pad_token).ok_or_else(|| {
        special(pad_token, format!("found neither among {pieces} pieces nor {count} added tokens"))
    })?;
    let unk_id = pipeline::id(unk_id);
    Ok(Assembled { library, pad_id, eos_id, unk_id })
}

/// Returns the id after `$A` in a template of exactly `$A` and a special token.
fn eos_id(post_processor: Option<PostProcessorJson>) -> Option<u32> {
    let PostProcessorJson::TemplateProcessing { single, special_tokens } = post_processor?;
    let [TemplateJson::Sequence { id: text }, TemplateJson::SpecialToken { id: end }] =
        single.as_slice()
    else {
        return None;
    };
    match (text.as_str(), special_tokens.get(end)?.ids.as_slice()) {
        ("A", [id]) => Some(*id),
        _ => None,
    }
}

fn check_growth(path: &Path, growth: usize) -> Result<(), TokenizerError> {
    if growth <= MAX_GROWTH {
        return Ok(());
    }
    let reason = format!(
        "normalizer: its stages can make {growth} bytes of one byte, expected at most {MAX_GROWTH}"
    );
    Err(TokenizerError::Json { path: path.to_owned(), reason })
}

/// Adds the stages of a normaliser and returns the most bytes that they make of one byte of text, at least 1.
fn add_normalizers(
    path: &Path,
    stage: NormalizerJson,
    into: &mut Vec<NormalizerWrapper>,
) -> Result<usize, TokenizerError> {
    let bad = |reason: String| TokenizerError::Json {
        path: path.to_owned(),
        reason: one_line(format_args!("normalizer: {reason}")),
    };
    Ok(match stage {
        NormalizerJson::Sequence { normalizers } => {
            let mut growth = 1usize;
            for stage in normalizers {
                growth = growth.saturating_mul(add_normalizers(path, stage, into)?);
            }
            growth
        }
        NormalizerJson::Precompiled { precompiled_charsmap } => {
            let table = STANDARD.decode(precompiled_charsmap).map_err(|error| {
                let part = "normalizer: precompiled_charsmap is not base64";
                pipeline::library_error(path, part, error)
            })?;
            // The library writes an empty table for a model without one.
            if table.is_empty() {
                return Ok(1);
            }
            let (stage, growth) = pipeline::precompiled(path, &table)?;
            into.push(stage);
            growth
        }
        NormalizerJson::Strip { strip_left, strip_right } => {
            into.push(Strip::new(strip_left, strip_right).into());
            1
        }
        NormalizerJson::Replace { pattern, content } => {
            match &pattern {
                ReplacePattern::Regex(regex) if regex == pipeline::SPACES => {}
                ReplacePattern::String(text) if !text.is_empty() => {}
                found => {
                    let expected = pipeline::SPACES;
                    return Err(bad(format!(
                        "Replace of {found:?}, expected the regex {expected:?} or a text"
                    )));
                }
            }
            let growth = content.len().max(1);
            let replace = Replace::new(pattern, content)
                .map_err(|error| pipeline::library_error(path, "normalizer: Replace", error))?;
            into.push(replace.into());
            growth
        }
    })
}

fn add_pre_tokenizers(
    path: &Path,
    stage: PreTokenizerJson,
    into: &mut Vec<PreTokenizerWrapper>,
) -> Result<(), TokenizerError> {
    match stage {
        PreTokenizerJson::Sequence { pretokenizers } => {
            for stage in pretokenizers {
                add_pre_tokenizers(path, stage, into)?;
            }
        }
        PreTokenizerJson::WhitespaceSplit => into.push(WhitespaceSplit.into()),
        PreTokenizerJson::Metaspace(mut fields) => {
            // The library reads nearly all variants of its releases. It needs the tag, and rejects the variant of
            // release 0.15 without prefix: `false` beside a scheme.
            if let Value::Object(fields) = &mut fields {
                fields.insert("type".into(), "Metaspace".into());
                if fields.get("add_prefix_space") == Some(&Value::Bool(false)) {
                    fields.insert("prepend_scheme".into(), "never".into());
                }
            }
            let metaspace: Metaspace =
                serde_json::from_value(fields).map_err(|error| TokenizerError::Parse {
                    path: path.to_owned(),
                    problem: "pre_tokenizer: Metaspace",
                    source: JsonError(error),
                })?;
            into.push(metaspace.into());
        }
    }
    Ok(())
}
