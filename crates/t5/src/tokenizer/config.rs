//! Reads `tokenizer_config.json` and `special_tokens_map.json` beside a tokenizer: the extra ids, and the special
//! tokens that are recognised in captions.
//!
//! Source: huggingface/transformers v4.38.2, `tokenization_utils_base.py`
//! (`PreTrainedTokenizerBase._from_pretrained`) and `models/t5/tokenization_t5_fast.py`
//! (`T5TokenizerFast`). Both files are optional; the defaults are the published ones.
//!
//! Deviations: the older `added_tokens.json` is not read; a special token that is `null` counts as absent; with
//! `legacy: false` (which no published T5 v1.1 has) the start of a caption is prefixed as in release 0.22 of the
//! library. Release 0.15, which the reference uses, sometimes prefixes the text after a leading special token
//! too.

use std::{collections::HashSet, path::Path};

use opensora_files::one_line;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, pre_tokenizers::metaspace::PrependScheme};

use super::{
    error::{JsonError, TokenizerError},
    files,
};

/// Default of `extra_ids` in `T5TokenizerFast`.
const EXTRA_IDS: usize = 100;
/// Most accepted extra ids; each is a token of the vocabulary.
const MAX_EXTRA_IDS: u64 = 10_000;
/// Largest accepted configuration file in bytes.
const MAX_BYTES: u64 = 4 << 20;
/// Order in which the reference registers named tokens.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const ADDITIONAL: &str = "additional_special_tokens";

/// The settings of the files beside a tokenizer.
#[derive(Debug)]
pub(super) struct Config {
    /// Number of sentinels `<extra_id_0>`.. after the pieces.
    pub(super) extra_ids: usize,
    /// Text of the padding token.
    pub(super) pad_token: String,
    /// Tokens that are recognised in captions, in the order of registration.
    pub(super) added: Vec<AddedToken>,
    /// When a word boundary is prepended to the text.
    pub(super) prepend: PrependScheme,
}

impl Config {
    /// Reads the files of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let (config_path, map_path) =
            (folder.join("tokenizer_config.json"), folder.join("special_tokens_map.json"));
        let config = Object { values: read_object(&config_path)?, path: &config_path };
        let map = Object { values: read_object(&map_path)?, path: &map_path };

        // Tokens by id, with flags. If they are given, the map is ignored.
        let decoder = config.added_tokens_decoder()?;
        let mut sources = vec![&config];
        if decoder.is_none() {
            sources.push(&map);
        }
        let mut named: Vec<(&str, AddedToken)> = Vec::new();
        for key in NAMED {
            let default = match key {
                "eos_token" => Some("</s>"),
                "unk_token" => Some("<unk>"),
                "pad_token" => Some("<pad>"),
                _ => None,
            };
            let mut token = default.map(|text| AddedToken::from(text, true));
            for source in &sources {
                if let Some(found) = source.get(key) {
                    token = Some(source.token(key, found)?);
                }
            }
            named.extend(token.map(|token| (key, token)));
        }
        let mut additional: Vec<AddedToken> = Vec::new();
        let mut seen = HashSet::new();
        for source in &sources {
            let Some(found) = source.get(ADDITIONAL) else { continue };
            let list =
                found.as_array().ok_or_else(|| source.expected(ADDITIONAL, found, "a list"))?;
            for token in list {
                let token = source.token(ADDITIONAL, token)?;
                if seen.insert(token.content.clone()) {
                    additional.push(token);
                }
            }
        }

        let extra_ids = config.extra_ids()?;
        let listed = additional.iter().filter(|t| t.content.contains("<extra_id_")).count();
        if listed == 0 {
            additional
                .extend((0..extra_ids).map(|i| AddedToken::from(format!("<extra_id_{i}>"), true)));
        } else if extra_ids > 0 && extra_ids != listed {
            return Err(config.error(format!(
                "extra_ids is {extra_ids}, but {ADDITIONAL} lists {listed}, expected the same number"
            )));
        }

        let pad_token = named
            .iter()
            .find(|(key, _)| *key == "pad_token")
            .map_or_else(|| "<pad>".to_owned(), |(_, token)| token.content.clone());
        let mut added = decoder.unwrap_or_default();
        let mut seen: HashSet<String> = added.iter().map(|token| token.content.clone()).collect();
        for token in named.into_iter().map(|(_, token)| token).chain(additional) {
            if seen.insert(token.content.clone()) {
                added.push(token);
            }
        }
        // `legacy: false` was added by transformers PR 24565, `add_prefix_space: false` by PR 28010.
        let prepend = if config.flag("add_prefix_space")? == Some(false) {
            PrependScheme::Never
        } else if config.flag("legacy")? == Some(false) {
            PrependScheme::First
        } else {
            PrependScheme::Always
        };
        Ok(Self { extra_ids, pad_token, added, prepend })
    }
}

/// A JSON object with the path of its file; empty if there is no file.
struct Object<'a> {
    values: Map<String, Value>,
    path: &'a Path,
}

impl Object<'_> {
    fn error(&self, reason: String) -> TokenizerError {
        TokenizerError::Json { path: self.path.to_owned(), reason }
    }

    fn expected(&self, key: &str, found: &Value, expected: &str) -> TokenizerError {
        let found = one_line(found);
        self.error(format!("{key}: found {found}, expected {expected}"))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        self.get(key)
            .map(|found| {
                found.as_bool().ok_or_else(|| self.expected(key, found, "true, false or null"))
            })
            .transpose()
    }

    fn extra_ids(&self) -> Result<usize, TokenizerError> {
        let Some(found) = self.get("extra_ids") else { return Ok(EXTRA_IDS) };
        found
            .as_u64()
            .filter(|&n| n <= MAX_EXTRA_IDS)
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| {
                self.expected("extra_ids", found, &format!("a number from 0 to {MAX_EXTRA_IDS}"))
            })
    }

    /// Reads a token: a text, or an object with `content` and flags.
    fn token(&self, key: &str, found: &Value) -> Result<AddedToken, TokenizerError> {
        if let Some(text) = found.as_str() {
            return Ok(AddedToken::from(text, true));
        }
        self.flagged_token(key, found, true)
    }

    fn flagged_token(
        &self,
        key: &str,
        found: &Value,
        special: bool,
    ) -> Result<AddedToken, TokenizerError> {
        let content = found
            .get("content")
            .and_then(Value::as_str)
            .ok_or_else(|| self.expected(key, found, "a text or an object with content"))?;
        let flag = |name| found.get(name).and_then(Value::as_bool);
        let special = special || flag("special") == Some(true);
        Ok(AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)))
    }

    fn added_tokens_decoder(&self) -> Result<Option<Vec<AddedToken>>, TokenizerError> {
        const KEY: &str = "added_tokens_decoder";
        let Some(found) = self.get(KEY) else { return Ok(None) };
        let entries = found.as_object().ok_or_else(|| self.expected(KEY, found, "an object"))?;
        let mut tokens = Vec::with_capacity(entries.len());
        for (id, token) in entries {
            let id: u32 = id.parse().map_err(|_| {
                self.error(format!("{KEY}: found key {:?}, expected a token id", one_line(id)))
            })?;
            tokens.push((id, self.flagged_token(KEY, token, false)?));
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(Some(tokens.into_iter().map(|(_, token)| token).collect()))
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>, TokenizerError> {
    let Some(bytes) = files::read_optional(path, MAX_BYTES)? else { return Ok(Map::new()) };
    serde_json::from_slice(&bytes).map_err(|error| TokenizerError::Parse {
        path: path.to_owned(),
        problem: "not a JSON object",
        source: JsonError(error),
    })
}
