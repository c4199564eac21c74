//! Tests of golden ids, truncation, and damaged files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use opensora_files::error_line;
use prost::Message;
use serde_json::{Value, json};

use super::{
    T5Tokenizer, TokenIds, TokenizerError, charsmap,
    spiece::{ModelProto, SentencePiece, kind},
};

const LENGTH: usize = 120;

fn goldens(case: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(case)
}

fn golden_tokenizer() -> T5Tokenizer {
    T5Tokenizer::from_path(goldens("t5-tokenizer")).unwrap()
}

fn golden_spiece() -> Vec<u8> {
    fs::read(goldens("t5-tokenizer/spiece.model")).unwrap()
}

fn golden_proto() -> ModelProto {
    ModelProto::decode(golden_spiece().as_slice()).unwrap()
}

fn golden_json() -> Value {
    serde_json::from_slice(&fs::read(goldens("t5-tokenizer/tokenizer.json")).unwrap()).unwrap()
}

/// Returns a folder with the given files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn load(files: &[(&str, &[u8])]) -> Result<T5Tokenizer, TokenizerError> {
    T5Tokenizer::from_path(folder(files).path())
}

fn load_spiece(bytes: &[u8]) -> Result<T5Tokenizer, TokenizerError> {
    load(&[("spiece.model", bytes)])
}

fn load_changed(change: impl FnOnce(&mut ModelProto)) -> Result<T5Tokenizer, TokenizerError> {
    let mut proto = golden_proto();
    change(&mut proto);
    load_spiece(&proto.encode_to_vec())
}

fn load_json(change: impl FnOnce(&mut Value)) -> Result<T5Tokenizer, TokenizerError> {
    let mut value = golden_json();
    change(&mut value);
    load(&[("tokenizer.json", value.to_string().as_bytes())])
}

/// Returns the error's message, which must be one line.
fn message(result: Result<T5Tokenizer, TokenizerError>) -> String {
    let message = error_line(&result.expect_err("the file should be rejected"));
    assert!(!message.contains('\n') && message.len() < 600, "not one line: {message}");
    message
}

#[track_caller]
fn assert_rejected(result: Result<T5Tokenizer, TokenizerError>, words: &[&str]) {
    let message = message(result);
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

/// Texts that reach every stage.
const PROBES: [&str; 8] = [
    "",
    "A red fox, ﬁre \u{feff}and ½  x²\t\u{1f}b ",
    "e\u{301}a\u{301}\u{302}\u{303} ㍿ ｶﾞ 한국 \u{0}\u{7f}\u{ad}",
    "</s> <pad><extra_id_0>  <extra_id_99>",
    "𝓗𝓮 👩\u{200d}🚀 🇯🇵 \u{fdfa}",
    "\u{10ffff}\u{e000}\u{d7ff}\u{80}",
    "▁▁ ▁",
    "ǅ ŉ ĳ ſ Ⅷ Ａ！",
];

#[test]
fn golden_ids_from_both_files() {
    let cases: Vec<Value> =
        serde_json::from_slice(&fs::read(goldens("t5-tokenizer/expected.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 67);
    let spiece = T5Tokenizer::from_spiece(goldens("t5-tokenizer/spiece.model")).unwrap();
    let json = T5Tokenizer::from_tokenizer_json(goldens("t5-tokenizer/tokenizer.json")).unwrap();
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["input_ids"].clone()).unwrap();
        let mask: Vec<u8> = serde_json::from_value(case["attention_mask"].clone()).unwrap();
        let expected = TokenIds { ids, mask: mask.iter().map(|&m| m == 1).collect() };
        assert_eq!(spiece.encode(text, LENGTH).unwrap(), expected, "spiece.model: {text:?}");
        assert_eq!(json.encode(text, LENGTH).unwrap(), expected, "tokenizer.json: {text:?}");
    }
}

#[test]
fn published_ids() {
    for path in ["t5-tokenizer", "t5-tokenizer/tokenizer.json", "pipeline/t5"] {
        let tokenizer = T5Tokenizer::from_path(goldens(path)).unwrap();
        assert_eq!(tokenizer.vocab_size(), 1100, "{path}");
        assert_eq!((tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()), (0, 1, 2));
        assert_eq!(tokenizer.token_to_id("<extra_id_0>"), Some(1099), "{path}");
        assert_eq!(tokenizer.token_to_id("<extra_id_99>"), Some(1000), "{path}");
    }
}

#[test]
fn truncation_keeps_room_for_the_end_token() {
    let tokenizer = golden_tokenizer();
    let piece = tokenizer.token_to_id("<extra_id_7>").unwrap();
    for pieces in [0, 1, 118, 119, 120, 121, 500] {
        let TokenIds { ids, mask } =
            tokenizer.encode(&"<extra_id_7>".repeat(pieces), LENGTH).unwrap();
        let kept = pieces.min(LENGTH - 1);
        let mut expected = vec![piece; kept];
        expected.push(1);
        expected.resize(LENGTH, 0);
        assert_eq!(ids, expected, "{pieces} pieces");
        let set = mask.iter().filter(|&&m| m).count();
        assert_eq!((mask.len(), set), (LENGTH, kept + 1), "{pieces} pieces");
        assert!(mask[..=kept].iter().all(|&m| m), "{pieces} pieces: the mask is a prefix");
    }
    let one = tokenizer.encode("a fox", 1).unwrap();
    assert_eq!(one, TokenIds { ids: vec![1], mask: vec![true] });
    let none = tokenizer.encode("a fox", 0);
    assert!(matches!(none, Err(TokenizerError::MaxLength { found: 0 })), "{none:?}");
}

#[test]
fn shorter_length_is_a_prefix_of_longer() {
    let tokenizer = golden_tokenizer();
    let text = "a drone glides above the neon street at night";
    let long = tokenizer.encode(text, LENGTH).unwrap();
    let pieces = long.mask.iter().filter(|&&m| m).count() - 1;
    for length in 1..=pieces {
        let short = tokenizer.encode(text, length).unwrap();
        assert_eq!(short.ids[..length - 1], long.ids[..length - 1], "length {length}");
        assert_eq!(short.ids.last(), Some(&1), "length {length}");
    }
}

#[test]
fn batch_is_its_rows() {
    let tokenizer = golden_tokenizer();
    let batch = tokenizer.encode_batch(&PROBES, 40).unwrap();
    assert_eq!(batch.len(), PROBES.len());
    // In reverse and twice: earlier captions must not change the result.
    for (text, row) in PROBES.iter().zip(&batch).rev() {
        assert_eq!(&tokenizer.encode(text, 40).unwrap(), row, "{text:?}");
    }
    assert_eq!(tokenizer.encode_batch(&[] as &[String], 40).unwrap(), []);
}

#[test]
fn long_captions() {
    let tokenizer = golden_tokenizer();
    for text in ["a", " ", "a ", "</s>", "▁", "\u{301}", "🦊", "<extra_id_0> "] {
        let encoded = tokenizer.encode(&text.repeat(10_000), LENGTH).unwrap();
        assert_eq!(encoded.ids.len(), LENGTH, "{text:?}");
        assert!(encoded.ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{text:?}");
    }
}

#[test]
fn extra_ids_follow_the_configuration() {
    let spiece = golden_spiece();
    let with = |config: Value| {
        load(&[("spiece.model", &spiece), ("tokenizer_config.json", config.to_string().as_bytes())])
    };
    assert_eq!(load_spiece(&spiece).unwrap().vocab_size(), 1100, "default");
    let five = with(json!({"extra_ids": 5})).unwrap();
    assert_eq!(five.vocab_size(), 1005);
    assert_eq!(five.token_to_id("<extra_id_0>"), Some(1004));
    assert_eq!(five.token_to_id("<extra_id_5>"), None);
    assert_eq!(with(json!({"extra_ids": 0})).unwrap().vocab_size(), 1000);

    // An additional special token gets the next id and is recognised in captions.
    let further = with(json!({"additional_special_tokens": ["<sep>"]})).unwrap();
    assert_eq!(further.token_to_id("<sep>"), Some(1100));
    assert_eq!(further.encode("<sep>", 3).unwrap().ids, [1100, 1, 0]);

    let listed: Vec<String> = (0..5).map(|i| format!("<extra_id_{i}>")).collect();
    let both = json!({"extra_ids": 6, "additional_special_tokens": listed});
    assert_rejected(with(both), &["tokenizer_config.json", "extra_ids is 6", "lists 5"]);
    for bad in [json!(-1), json!(1.5), json!("100"), json!(1_000_000_000_u64)] {
        assert_rejected(with(json!({"extra_ids": bad})), &["tokenizer_config.json", "extra_ids"]);
    }
}

#[test]
fn special_tokens_keep_their_flags() {
    let spiece = golden_spiece();
    let map = json!({"additional_special_tokens": [
        {"content": "<sep>", "lstrip": true, "rstrip": true, "normalized": false, "single_word": false}
    ]});
    let tokenizer =
        load(&[("spiece.model", &spiece), ("special_tokens_map.json", map.to_string().as_bytes())])
            .unwrap();
    assert_eq!(tokenizer.encode("  <sep>  ", 4).unwrap().ids, [1100, 1, 0, 0]);

    // The map is ignored if the configuration has tokens by id, as in the reference.
    let config = json!({"added_tokens_decoder": {
        "1099": {"content": "<extra_id_0>", "lstrip": true, "rstrip": true, "special": true}
    }});
    let tokenizer = load(&[
        ("spiece.model", &spiece),
        ("special_tokens_map.json", map.to_string().as_bytes()),
        ("tokenizer_config.json", config.to_string().as_bytes()),
    ])
    .unwrap();
    assert_eq!(tokenizer.token_to_id("<sep>"), None);
    assert_eq!(tokenizer.encode("  <extra_id_0>  ", 4).unwrap().ids, [1099, 1, 0, 0]);
}

#[test]
fn ids_come_from_the_model() {
    // Rotated by three: the framing tokens are the last pieces.
    let tokenizer = load_changed(|proto| {
        proto.pieces.rotate_left(3);
        proto.trainer_spec.as_mut().unwrap().unk_id = Some(999);
    })
    .unwrap();
    assert_eq!((tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()), (997, 998, 999));
    assert_eq!(tokenizer.encode("<unk>", 3).unwrap().ids, [999, 998, 997]);

    // Without the usual texts, the ids are those that the model declares.
    let tokenizer = load_changed(|proto| {
        proto.pieces[0].piece = Some(b"[PAD]".to_vec());
        proto.pieces[1].piece = Some(b"[END]".to_vec());
    })
    .unwrap();
    assert_eq!((tokenizer.pad_id(), tokenizer.eos_id()), (0, 1));
    assert_eq!(tokenizer.token_to_id("</s>"), None);
}

#[test]
fn model_without_charsmap() {
    let tokenizer = load_changed(|proto| {
        proto.normalizer_spec.as_mut().unwrap().precompiled_charsmap = None;
    })
    .unwrap();
    let golden = golden_tokenizer();
    let plain = "a fox  walks ";
    assert_eq!(tokenizer.encode(plain, 20).unwrap(), golden.encode(plain, 20).unwrap());
    assert_ne!(tokenizer.encode("ﬁre", 20).unwrap(), golden.encode("ﬁre", 20).unwrap());
}

#[test]
fn missing_files() {
    let empty = tempfile::tempdir().unwrap();
    assert_rejected(T5Tokenizer::from_path(empty.path()), &["spiece.model", "tokenizer.json"]);
    for name in ["spiece.model", "tokenizer.json"] {
        let result = T5Tokenizer::from_path(empty.path().join(name));
        assert!(matches!(result, Err(TokenizerError::Read { .. })), "{result:?}");
        assert_rejected(result, &[name]);
    }
    assert_rejected(load_spiece(&vec![0; (16 << 20) + 1]), &["16777217", "at most 16777216"]);
}

#[test]
fn not_sentencepiece() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 791656\n";
    assert_rejected(load_spiece(pointer), &["spiece.model", "Git LFS pointer"]);
    for bytes in [&b""[..], b"<html>not found</html>", b"{}", b"\x00\x01\x02", b"PK\x03\x04"] {
        assert_rejected(load_spiece(bytes), &["not a complete SentencePiece model"]);
    }
    for (kind, name) in [(2, "BPE"), (3, "WORD"), (4, "CHAR"), (9, "9")] {
        let result = load_changed(|p| p.trainer_spec.as_mut().unwrap().model_type = Some(kind));
        assert_rejected(result, &[name, "expected Unigram"]);
    }
}

#[test]
fn unusable_vocabularies() {
    assert!(matches!(
        load_changed(|p| p.pieces.clear()),
        Err(TokenizerError::EmptyVocabulary { .. })
    ));
    assert_rejected(
        load_changed(|p| p.pieces[7].piece = Some(b"ab\xff".to_vec())),
        &["piece 7", r"ab\xff", "expected UTF-8"],
    );
    for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_rejected(
            load_changed(|p| p.pieces[7].score = Some(score)),
            &["piece 7", "expected a finite number"],
        );
    }
    assert_rejected(load_changed(|p| p.pieces[7].piece = None), &["piece 7", "empty piece"]);
    assert_rejected(
        load_changed(|p| p.pieces[7].piece = p.pieces[5].piece.clone()),
        &["piece 7", "twice"],
    );
    assert_rejected(
        load_changed(|p| p.pieces[7].piece = Some(vec![b'a'; 100_000])),
        &["piece 7", "100000 bytes"],
    );
    assert_rejected(load_changed(|p| p.pieces[7].kind = Some(77)), &["piece 7", "type 77"]);
    let piece = |i: usize| SentencePiece {
        piece: Some(format!("{i:0500}").into_bytes()),
        score: None,
        kind: None,
    };
    assert_rejected(
        load_changed(|p| p.pieces.extend((0..9000).map(piece))),
        &["vocabulary in bytes", "at most"],
    );
}

#[test]
fn missing_special_tokens() {
    assert_rejected(
        load_changed(|p| p.pieces[2].kind = Some(kind::NORMAL)),
        &["no piece of type UNKNOWN"],
    );
    assert_rejected(
        load_changed(|p| p.pieces[9].kind = Some(kind::UNKNOWN)),
        &["piece 9", "second piece of type UNKNOWN"],
    );
    for declared in [0, -1, 5000] {
        assert_rejected(
            load_changed(|p| p.trainer_spec.as_mut().unwrap().unk_id = Some(declared)),
            &[&format!("unk_id is {declared}"), "UNKNOWN is 2"],
        );
    }
    for (index, token) in [(0, "<pad>"), (1, "</s>")] {
        let result = load_changed(|p| {
            p.pieces[index].piece = Some(b"[other]".to_vec());
            let trainer = p.trainer_spec.as_mut().unwrap();
            (trainer.pad_id, trainer.eos_id) = (Some(-1), Some(5000));
        });
        assert_rejected(result, &[token, "1000 pieces"]);
    }
}

#[test]
fn corrupt_charsmaps() {
    let change = |change: &dyn Fn(&mut Vec<u8>)| {
        load_changed(|p| {
            let normalizer = p.normalizer_spec.as_mut().unwrap();
            change(normalizer.precompiled_charsmap.as_mut().unwrap());
        })
    };
    let trie_bytes = |map: &[u8]| u32::from_le_bytes(map[..4].try_into().unwrap()) as usize;
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));
    let cases: [Damage<'_>; 8] = [
        ("at least 4", &|map| map.truncate(3)),
        ("positive multiple of 4", &|map| map[..4].fill(0)),
        ("found", &|map| map[..4].copy_from_slice(&0xffff_fffc_u32.to_le_bytes())),
        ("found", &|map| map.truncate(1000)),
        ("leads to unit", &|map| map[4..8].fill(0xff)),
        ("not the start of a character", &|map| map.truncate(trie_bytes(map) + 4)),
        ("not UTF-8", &|map| *map.last_mut().unwrap() = 0xff),
        ("longer than 256", &|map| {
            let start = trie_bytes(map) + 4;
            map[start..].fill(b'a');
        }),
    ];
    for (words, damage) in cases {
        assert_rejected(change(damage), &["precompiled_charsmap is corrupt", words]);
    }
}

#[test]
fn every_kind_of_truncation_is_rejected() {
    let bytes = golden_spiece();
    let mut lengths: Vec<usize> = (0..bytes.len()).step_by(509).collect();
    // At every byte around the end of the pieces and of the file, where the specs start and end.
    let specs = golden_proto().pieces.iter().fold(0, |n, piece| n + piece.encoded_len() + 2);
    lengths.extend(specs.saturating_sub(40)..specs + 400);
    lengths.extend(bytes.len() - 40..bytes.len());
    for length in lengths {
        let result = load_spiece(&bytes[..length]);
        assert!(result.is_err(), "{length} of {} bytes are accepted", bytes.len());
        message(result);
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let bytes = golden_spiece();
    let (mut accepted, mut rejected) = (0, 0);
    for (round, at) in (0..bytes.len()).step_by(331).enumerate() {
        let mut flipped = bytes.clone();
        flipped[at] ^= [0x01, 0x80, 0xff, 0x10][round % 4];
        match load_spiece(&flipped) {
            Ok(tokenizer) => {
                accepted += 1;
                for text in PROBES {
                    assert_eq!(tokenizer.encode(text, 40).unwrap().ids.len(), 40);
                }
            }
            Err(error) => {
                rejected += 1;
                assert!(!error_line(&error).contains('\n'), "{error}");
            }
        }
    }
    assert!(accepted > 0 && rejected > 0, "{accepted} accepted, {rejected} rejected");
}

#[test]
fn hostile_configuration_beside_the_model() {
    let spiece = golden_spiece();
    let long = format!("[\"{}\"]", "a".repeat(1000));
    let cases: [(&str, &[&str]); 8] = [
        ("", &["EOF"]),
        ("[]", &["expected a map"]),
        ("{\"pad_token\": 5}", &["pad_token", "found 5"]),
        ("{\"eos_token\": {\"lstrip\": true}}", &["eos_token", "content"]),
        ("{\"additional_special_tokens\": \"x\"}", &["additional_special_tokens", "a list"]),
        ("{\"additional_special_tokens\": [\"\"]}", &["added token", "empty"]),
        (&format!("{{\"additional_special_tokens\": {long}}}"), &["added token", "1000 bytes"]),
        // Empty after normalisation, it would match inside characters.
        (
            "{\"additional_special_tokens\": [{\"content\": \"\\t\", \"normalized\": true}]}",
            &["added token", "empty after normalisation"],
        ),
    ];
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        for (text, words) in cases {
            let result = load(&[("spiece.model", &spiece), (name, text.as_bytes())]);
            assert_rejected(result, words);
        }
    }
    let config = [
        ("{\"legacy\": \"no\"}", "legacy"),
        ("{\"added_tokens_decoder\": []}", "added_tokens_decoder"),
        ("{\"added_tokens_decoder\": {\"x\": {\"content\": \"y\"}}}", "added_tokens_decoder"),
    ];
    for (text, word) in config {
        let files =
            [("spiece.model", spiece.as_slice()), ("tokenizer_config.json", text.as_bytes())];
        assert_rejected(load(&files), &["tokenizer_config.json", word]);
    }
}

#[test]
fn hostile_tokenizer_json() {
    type Change = fn(&mut Value);
    let cases: [(&[&str], Change); 19] = [
        (&["WordPiece", "expected Unigram"], |v| v["model"]["type"] = json!("WordPiece")),
        (&["model", "map, expected a sequence"], |v| v["model"]["vocab"] = json!({"a": 1})),
        (&["vocabulary is empty"], |v| v["model"]["vocab"] = json!([])),
        (&["model.unk_id", "none"], |v| v["model"]["unk_id"] = Value::Null),
        (&["model.unk_id", "1100"], |v| v["model"]["unk_id"] = json!(1100)),
        (&["model"], |v| v["model"]["unk_id"] = json!(-1)),
        (&["piece 4", "empty"], |v| v["model"]["vocab"][4][0] = json!("")),
        (&["model"], |v| v["model"]["vocab"][4][1] = Value::Null),
        (&["a\\nb"], |v| v["normalizer"] = json!({"type": "a\nb".repeat(10_000)})),
        (&["BertNormalizer"], |v| v["normalizer"] = json!({"type": "BertNormalizer"})),
        (&["base64"], |v| v["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!("%")),
        (&["precompiled_charsmap is corrupt"], |v| {
            v["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!("AAAA");
        }),
        (&["Replace"], |v| {
            v["normalizer"]["normalizers"][2]["pattern"] = json!({"Regex": "(a+)+$"});
        }),
        // Each stage replaces what the one before inserted: 11 bytes of one byte by the table, 1000 of each of these.
        (&["normalizer", "11000 bytes"], |v| {
            v["normalizer"]["normalizers"][2]["content"] = json!("x".repeat(1000));
        }),
        (&["normalizer", "65536 bytes"], |v| {
            let stage =
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(256)});
            v["normalizer"] = json!({"type": "Sequence", "normalizers": [stage, stage]});
        }),
        (&["Metaspace"], |v| v["pre_tokenizer"]["replacement"] = json!("ab")),
        (&["post_processor"], |v| v["post_processor"] = Value::Null),
        (&["post_processor"], |v| {
            v["post_processor"]["special_tokens"]["</s>"]["ids"] = json!([4_000_000]);
        }),
        (&["added token", "its id is 77", "expected 0"], |v| {
            v["added_tokens"][0]["id"] = json!(77)
        }),
    ];
    for (words, change) in cases {
        assert_rejected(load_json(change), &[&["tokenizer.json"], words].concat());
    }
    for text in ["", "{", "[]", "{\"model\": 1}", &"[".repeat(100_000), &"{\"a\":".repeat(10_000)] {
        assert_rejected(load(&[("tokenizer.json", text.as_bytes())]), &["tokenizer.json"]);
    }
}

/// Returns the table that replaces one letter. The root is state 0; the letter leads to state 256 + `letter`, a leaf
/// whose value 0 is the offset of the replacement.
fn charsmap_of(letter: u8, replacement: &str) -> Vec<u8> {
    let mut units = [0u32; 512];
    units[usize::from(letter)] = (256 << 10) | (1 << 8) | u32::from(letter);
    let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    [&(trie.len() as u32).to_le_bytes()[..], &trie[..], replacement.as_bytes(), &b"\0"[..]].concat()
}

#[test]
fn the_growth_of_a_table_is_that_of_its_largest_replacement() {
    let published = golden_proto().normalizer_spec.unwrap().precompiled_charsmap.unwrap();
    // U+FDFA is 3 bytes, its replacement 33.
    assert_eq!(charsmap::check(&published), Ok(11));
    assert_eq!(charsmap::check(&charsmap_of(b'a', "")), Ok(1));
    assert_eq!(charsmap::check(&charsmap_of(b'a', &"b".repeat(256))), Ok(256));
}

#[test]
fn tables_that_replace_each_others_letters_are_limited_together() {
    let stage = |letter: u8, replacement: &str| {
        let table = STANDARD.encode(charsmap_of(letter, &replacement.repeat(256)));
        json!({"type": "Precompiled", "precompiled_charsmap": table})
    };
    let load = |stages: &[Value]| {
        load_json(|v| v["normalizer"] = json!({"type": "Sequence", "normalizers": stages}))
    };
    let (first, second, third) = (stage(b'a', "b"), stage(b'b', "c"), stage(b'c', "d"));
    assert!(load(std::slice::from_ref(&first)).is_ok());
    assert_rejected(load(&[first, second, third]), &["normalizer", "16777216 bytes of one byte"]);
}

#[test]
fn added_tokens_are_limited_after_normalisation() {
    // Every "a" becomes 256 bytes, and a token 128,003.
    let with = |count: u32| {
        load_json(|v| {
            let content = "a".repeat(256);
            v["normalizer"] =
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
            let added = v["added_tokens"].as_array_mut().unwrap();
            added.extend((0..count).map(|i| {
                let content = format!("{i:03}{}", "a".repeat(500));
                json!({
                    "id": 1100 + i, "content": content, "normalized": true, "special": false,
                    "single_word": false, "lstrip": false, "rstrip": false
                })
            }));
        })
    };
    assert!(with(2).is_ok());
    assert_rejected(with(40), &["normalised added tokens in bytes", "at most 4194304"]);
}

#[test]
fn damaged_tokenizer_json_never_panics() {
    let bytes = fs::read(goldens("t5-tokenizer/tokenizer.json")).unwrap();
    let probe = |bytes: &[u8]| {
        if let Ok(tokenizer) = load(&[("tokenizer.json", bytes)]) {
            for text in PROBES {
                assert_eq!(tokenizer.encode(text, 40).unwrap().ids.len(), 40);
            }
        }
    };
    for (round, at) in (0..bytes.len()).step_by(1499).enumerate() {
        assert!(load(&[("tokenizer.json", &bytes[..at])]).is_err(), "cut at {at}");
        let mut changed = bytes.clone();
        changed[at] = b"0A\"]"[round % 4];
        probe(&changed);
    }
}

#[test]
fn older_pipelines_in_tokenizer_json() {
    // As exported before transformers 4.40: only the table, white space split, the older form of Metaspace.
    let older = load_json(|v| {
        v["normalizer"] = v["normalizer"]["normalizers"][0].clone();
        v["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "add_prefix_space": true}
        ]});
    })
    .unwrap();
    let golden = golden_tokenizer();
    let text = "a drone  glides above the ﬁre ";
    assert_eq!(older.encode(text, LENGTH).unwrap(), golden.encode(text, LENGTH).unwrap());

    // The form in which release 0.15 writes `add_prefix_space=False`.
    let bare = load_json(|v| v["pre_tokenizer"]["add_prefix_space"] = json!(false)).unwrap();
    let spiece = golden_spiece();
    let config = br#"{"add_prefix_space": false}"#;
    let same = load(&[("spiece.model", &spiece), ("tokenizer_config.json", config)]).unwrap();
    assert_eq!(bare.encode("fox", 9).unwrap(), same.encode("fox", 9).unwrap());
    assert_ne!(bare.encode("fox", 9).unwrap(), golden.encode("fox", 9).unwrap());
}

#[test]
fn can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let tokenizer = golden_tokenizer();
    shared(&tokenizer);
    let expected = tokenizer.encode(PROBES[1], 40).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| tokenizer.encode(PROBES[1], 40).unwrap())).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}
