//! A small tokenizer fitted to captions, written in the published layout.
//!
//! For captions with a few hundred distinct words, each of which should be one token. The pieces are the words of
//! the cleaned captions, the most frequent first, and single characters: an unseen word is split into the longest
//! known words and characters. The result is a Unigram model and loads like the published one.
//!
//! The `tokenizers` library's `UnigramTrainer` is not used: it only considers pieces that two words share, so that
//! most words would be split, and its result depends on the number of threads and on the order of a randomly
//! seeded hash set.
//!
//! Scores are logarithms of frequencies in three bands, so that a known word is never split: all scores are at most
//! 0, and every split of a word uses at least one piece from a lower band.
//!
//! | piece | score, with `n` words counted in all |
//! |---|---|
//! | word at a word boundary, counted `c` times | `ln(c / n)`, at least `-ln(n)` |
//! | word inside another word (after a hyphen) | `ln(c / n) - ln(n) - 1` |
//! | character | `-2 ln(n) - 3` |

use super::pipeline::{Piece, SPACES, WORD_BOUNDARY};
use crate::caption::text_preprocessing;
use opensora_files::write_atomically;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

/// The token that replaces a masked token, which the model is to predict.
pub const MASK_TOKEN: &str = "<extra_id_0>";

/// Padding, end and unknown token: ids 0 to 2, as published.
const FRAMING: [&str; 3] = ["<pad>", "</s>", "<unk>"];
/// Sentinels after the pieces; the last one is [`MASK_TOKEN`].
const EXTRA_IDS: usize = 4;
/// Most characters of a word that becomes a piece; longer words are split into characters.
const MAX_WORD_CHARS: usize = 24;

/// Error for a tokenizer that cannot be fitted or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// Captions that contain no words after cleaning.
    #[error("no caption holds a word: a tokenizer cannot be fitted to nothing")]
    NoWords,
    /// A vocabulary that is too small for a single word.
    #[error(
        "a vocabulary of {found} tokens is too small, expected at least {needed} (special tokens, \
         characters, one word)"
    )]
    VocabularySize {
        /// The given size.
        found: usize,
        /// The smallest possible size.
        needed: usize,
    },
    /// A folder with a `spiece.model`, which would be read instead of the new tokenizer.
    #[error("{}: already exists and would be read instead of the new tokenizer.json", path.display())]
    Shadowed {
        /// The model.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("{}: cannot write", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A tokenizer that [`save`](Self::save) writes and
/// [`T5Tokenizer::from_path`](super::T5Tokenizer::from_path) reads.
#[derive(Debug, Clone, PartialEq)]
pub struct FittedTokenizer {
    /// Text and score in the order of the ids.
    pieces: Vec<Piece>,
}

/// Fits a tokenizer of at most `vocab_size` tokens to captions after cleaning them. The order of the captions does
/// not matter.
///
/// # Errors
/// Returns an error if no caption contains a word, or the vocabulary is too small for a word.
pub fn fit_tokenizer(
    captions: impl IntoIterator<Item = impl AsRef<str>>,
    vocab_size: usize,
) -> Result<FittedTokenizer, FitError> {
    let mut counts = BTreeMap::<String, u64>::new();
    for caption in captions {
        count(&text_preprocessing(caption.as_ref()), &mut counts);
    }
    if counts.is_empty() {
        return Err(FitError::NoWords);
    }
    // Characters of any caption: printable ASCII, in lower case after cleaning.
    let base: BTreeSet<String> = (' '..='~')
        .filter(|c| !c.is_ascii_uppercase() && *c != ' ')
        .chain([WORD_BOUNDARY])
        .map(String::from)
        .collect();
    let needed = FRAMING.len() + base.len() + 1 + EXTRA_IDS;
    let room = vocab_size
        .checked_sub(needed - 1)
        .filter(|&room| room > 0)
        .ok_or(FitError::VocabularySize { found: vocab_size, needed })?;

    let total = counts.values().sum::<u64>() as f64;
    let mut ranked: Vec<(String, u64)> =
        counts.into_iter().filter(|(text, _)| !base.contains(text)).collect();
    // The sort is stable: words with equal counts stay in alphabetical order.
    ranked.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    ranked.truncate(room);

    let mut pieces: Vec<Piece> = FRAMING.map(|token| (token.to_string(), 0.0)).into();
    pieces.extend(ranked.into_iter().map(|(text, count)| {
        let score = score(&text, count as f64, total);
        (text, score)
    }));
    pieces.extend(base.into_iter().map(|text| {
        let score = score(&text, 1.0, total);
        (text, score)
    }));
    pieces.extend((0..EXTRA_IDS).rev().map(|i| (format!("<extra_id_{i}>"), 0.0)));
    Ok(FittedTokenizer { pieces })
}

/// Counts the words of a cleaned caption, and those of its characters that are not ASCII.
fn count(caption: &str, counts: &mut BTreeMap<String, u64>) {
    let mut add = |piece: String| *counts.entry(piece).or_default() += 1;
    for word in caption.split([' ', WORD_BOUNDARY]).filter(|word| !word.is_empty()) {
        // As the Metaspace stage splits the text; punctuation is split off.
        let mut run = String::from(WORD_BOUNDARY);
        for c in word.chars().chain(['.']) {
            if c.is_alphanumeric() {
                run.push(c);
            } else if (2..=MAX_WORD_CHARS).contains(&run.chars().count()) {
                add(std::mem::take(&mut run));
            } else {
                run.clear();
            }
        }
        for c in word.chars().filter(|c| !c.is_ascii()) {
            add(c.to_string());
        }
    }
}

/// Returns the score of a piece by the table of the [module](self).
fn score(piece: &str, count: f64, total: f64) -> f64 {
    let score = if piece.chars().nth(1).is_none() {
        -2.0 * total.ln() - 3.0
    } else if piece.starts_with(WORD_BOUNDARY) {
        (count / total).ln()
    } else {
        (count / total).ln() - total.ln() - 1.0
    };
    // Rounded, since the last digits of a logarithm differ between platforms; the bands are 1 apart.
    (score * 1e4).round() / 1e4
}

impl FittedTokenizer {
    /// Returns the number of tokens; every id is smaller.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Returns the tokens in the order of their ids.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().map(|(text, _)| text.as_str())
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` to `folder`,
    /// which is created if needed.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written, or the folder contains a `spiece.model`.
    pub fn save(&self, folder: &Path) -> Result<(), FitError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| FitError::Write { path, source }
        };
        let spiece = folder.join("spiece.model");
        if spiece.exists() {
            return Err(FitError::Shadowed { path: spiece });
        }
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        for (name, value) in [
            ("special_tokens_map.json", special_tokens()),
            ("tokenizer_config.json", tokenizer_config()),
            ("tokenizer.json", self.tokenizer_json()),
        ] {
            let path = folder.join(name);
            write_atomically(&path, |file| std::fs::write(file, format!("{value:#}\n")))
                .map_err(failed(&path))?;
        }
        Ok(())
    }

    /// Returns the `tokenizer.json` that transformers exports for a T5 without a normalisation table.
    fn tokenizer_json(&self) -> Value {
        let is_special = |id: usize| id < FRAMING.len() || id >= self.pieces.len() - EXTRA_IDS;
        let added: Vec<Value> = self
            .pieces
            .iter()
            .enumerate()
            .filter(|&(id, _)| is_special(id))
            .map(|(id, (content, _))| {
                json!({
                    "id": id, "content": content, "special": true, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false
                })
            })
            .collect();
        let metaspace = json!({
            "type": "Metaspace", "replacement": WORD_BOUNDARY, "prepend_scheme": "always",
            "split": true
        });
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Strip", "strip_left": false, "strip_right": true},
                {"type": "Replace", "pattern": {"Regex": SPACES}, "content": WORD_BOUNDARY}
            ]},
            "pre_tokenizer": metaspace,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [text("A"), end],
                "pair": [text("A"), end, text("B"), end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
            },
            "decoder": metaspace,
            "model": {
                "type": "Unigram", "unk_id": 2, "byte_fallback": false, "vocab": self.pieces
            }
        })
    }
}

fn special_tokens() -> Value {
    let extra: Vec<String> = (0..EXTRA_IDS).map(|i| format!("<extra_id_{i}>")).collect();
    json!({
        "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
        "additional_special_tokens": extra
    })
}

fn tokenizer_config() -> Value {
    let mut config = special_tokens();
    config["extra_ids"] = json!(EXTRA_IDS);
    config["tokenizer_class"] = json!("T5Tokenizer");
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::T5Tokenizer;

    /// Returns 216 captions like those of the demo.
    fn captions() -> Vec<String> {
        let mut captions = Vec::new();
        for color in ["red", "green", "blue", "yellow", "white", "purple"] {
            for shape in ["circle", "square", "triangle"] {
                for motion in ["to the right", "to the left", "up", "down"] {
                    for background in ["black", "gray", "dark-blue"] {
                        captions.push(format!(
                            "A {color} {shape} moving {motion}, on a {background} background."
                        ));
                    }
                }
            }
        }
        captions
    }

    fn saved(captions: &[String], vocab_size: usize) -> (FittedTokenizer, T5Tokenizer) {
        let folder = tempfile::tempdir().unwrap();
        let fitted = fit_tokenizer(captions, vocab_size).unwrap();
        fitted.save(folder.path()).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]);
        let loaded = T5Tokenizer::from_path(folder.path()).unwrap();
        (fitted, loaded)
    }

    /// Returns the texts of a caption's ids, without end and padding.
    fn texts(fitted: &FittedTokenizer, loaded: &T5Tokenizer, caption: &str) -> Vec<String> {
        let tokens = loaded.encode(&text_preprocessing(caption), 60).unwrap();
        let used = tokens.mask.iter().filter(|&&used| used).count();
        assert_eq!(tokens.ids[used - 1], loaded.eos_id());
        let all: Vec<&str> = fitted.tokens().collect();
        tokens.ids[..used - 1].iter().map(|&id| all[id as usize].to_string()).collect()
    }

    #[test]
    fn saved_tokenizers_load_with_the_published_ids() {
        let (fitted, loaded) = saved(&captions(), 200);
        assert_eq!((loaded.pad_id(), loaded.eos_id(), loaded.unk_id()), (0, 1, 2));
        assert_eq!(loaded.vocab_size(), fitted.vocab_size());
        assert!(loaded.vocab_size() <= 200);
        for (id, token) in fitted.tokens().enumerate() {
            assert_eq!(loaded.token_to_id(token), Some(id as u32), "{token}");
        }
        let last = fitted.vocab_size() as u32 - 1;
        assert_eq!(loaded.token_to_id(MASK_TOKEN), Some(last));
        assert_eq!(loaded.encode("a <extra_id_0> circle", 9).unwrap().ids[1], last);
    }

    #[test]
    fn words_of_the_captions_are_one_token_each() {
        let captions = captions();
        let (fitted, loaded) = saved(&captions, 200);
        for caption in &captions {
            let texts = texts(&fitted, &loaded, caption);
            // The joined pieces are the caption.
            let joined = texts.concat().replace(WORD_BOUNDARY, " ");
            assert_eq!(joined.trim_start(), text_preprocessing(caption));
            let words = caption.split_whitespace().count();
            // Comma, full stop, and the hyphen with the word after it.
            let marks = if caption.contains('-') { 4 } else { 2 };
            assert_eq!(texts.len(), words + marks, "{texts:?}");
        }
    }

    #[test]
    fn unseen_words_are_split_into_known_words_and_characters() {
        let (fitted, loaded) = saved(&captions(), 200);
        let texts = |caption| texts(&fitted, &loaded, caption);
        assert_eq!(texts("redwood"), ["▁red", "w", "o", "o", "d"]);
        assert_eq!(texts("fox"), ["▁", "f", "o", "x"]);
        assert_eq!(texts("blue-9!"), ["▁blue", "-", "9", "!"]);
        assert_eq!(texts("a ü"), ["▁a", "▁", "<unk>"]);
        assert!(texts("").is_empty());
    }

    #[test]
    fn a_small_vocabulary_keeps_the_most_frequent_words() {
        let captions = ["ab ab ab cd cd ef", "müller müller müller ab"].map(String::from);
        let needed = match fit_tokenizer(&captions, 0).unwrap_err() {
            FitError::VocabularySize { found: 0, needed } => needed,
            other => panic!("{other}"),
        };
        let error = fit_tokenizer(&captions, needed - 1).unwrap_err();
        assert!(error.to_string().contains(&needed.to_string()), "{error}");
        let fitted = fit_tokenizer(&captions, needed + 2).unwrap();
        assert_eq!(fitted.vocab_size(), needed + 2);
        let tokens: Vec<&str> = fitted.tokens().collect();
        assert_eq!(tokens[3..6], ["▁ab", "ü", "▁müller"]);
        assert!(!tokens.contains(&"▁cd"));
    }

    #[test]
    fn the_order_of_the_captions_does_not_matter() {
        let mut captions = captions();
        let fitted = fit_tokenizer(&captions, 110).unwrap();
        captions.reverse();
        assert_eq!(fit_tokenizer(&captions, 110).unwrap(), fitted);
    }

    #[test]
    fn rare_words_are_not_split_into_frequent_words() {
        // Frequent words, and rare words that are concatenations of frequent words.
        let mut captions = vec!["s and y x-sand x-box".to_string(); 1000];
        captions.push("sandy x-sandbox".into());
        let (fitted, loaded) = saved(&captions, 200);
        assert_eq!(texts(&fitted, &loaded, "sandy"), ["▁sandy"]);
        assert_eq!(texts(&fitted, &loaded, "x-sandbox"), ["▁x", "-", "sandbox"]);
    }

    #[test]
    fn unknown_words_are_returned() {
        let (_, loaded) = saved(&["a red-green fox jumps".into(), "a sea at night".into()], 300);
        let unknown = |caption: &str| loaded.unknown_words(&text_preprocessing(caption)).unwrap();
        assert_eq!(unknown("A red fox, at night."), [""; 0]);
        assert_eq!(unknown("red-green"), [""; 0]);
        assert_eq!(unknown("a blue fox in the (blue) sea"), ["blue", "in", "the"]);
        assert_eq!(unknown("a fox \u{1f98a} \u{43b}\u{438}\u{441}"), ["\u{43b}\u{438}\u{441}"]);
        assert_eq!(unknown(""), [""; 0]);
    }

    #[test]
    fn invalid_input_is_rejected() {
        assert!(matches!(fit_tokenizer(["", " .", "!"], 200), Err(FitError::NoWords)));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("spiece.model"), "x").unwrap();
        let fitted = fit_tokenizer(["a fox"], 200).unwrap();
        let error = fitted.save(folder.path()).unwrap_err().to_string();
        assert!(error.contains("spiece.model") && !error.contains('\n'), "{error}");
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(fitted.save(&file), Err(FitError::Write { .. })));
    }
}
