//! Reads `spiece.model`: the parts of the SentencePiece protobuf that T5 needs.
//!
//! Source of the field numbers: google/sentencepiece v0.2.0, `src/sentencepiece_model.proto`
//! (proto2). Only the fields that the T5 conversion reads are declared; the others are skipped.
//! Pieces are read as bytes, so that the error for invalid UTF-8 names the piece's index.

use std::{collections::HashSet, path::Path};

use opensora_files::one_line;
use prost::Message;

use super::{error::TokenizerError, pipeline::Piece};

/// Longest accepted piece in bytes (published models: 16 characters). The library's trie is as deep
/// as the longest piece and is dropped recursively.
const MAX_PIECE_BYTES: usize = 512;
/// Most accepted pieces (T5: 32 000, mT5: 250 112).
const MAX_PIECES: usize = 1 << 20;
/// Most accepted bytes of all pieces together, and of all added tokens: a trie takes some hundred bytes per byte.
pub(super) const MAX_VOCABULARY_BYTES: usize = 4 << 20;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<SentencePiece>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SentencePiece {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(super) piece: Option<Vec<u8>>,
    #[prost(float, optional, tag = "2")]
    pub(super) score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    pub(super) model_type: Option<i32>,
    #[prost(int32, optional, tag = "40")]
    pub(super) unk_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    pub(super) eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pub(super) pad_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
}

/// `SentencePiece.Type`
pub(super) mod kind {
    pub(in crate::tokenizer) const NORMAL: i32 = 1;
    pub(in crate::tokenizer) const UNKNOWN: i32 = 2;
    pub(in crate::tokenizer) const BYTE: i32 = 6;
}

/// The checked parts of a SentencePiece model that the T5 conversion needs.
#[derive(Debug)]
pub(super) struct Spiece {
    /// Text and score of every piece, in the order of their ids.
    pub(super) pieces: Vec<Piece>,
    /// Id of the only piece of type UNKNOWN.
    pub(super) unk_id: usize,
    /// `trainer_spec.eos_id`, if there is such a piece.
    pub(super) eos_id: Option<usize>,
    /// `trainer_spec.pad_id`, if there is such a piece.
    pub(super) pad_id: Option<usize>,
    /// Normalisation table, not yet checked; empty if the model has none.
    pub(super) charsmap: Vec<u8>,
}

/// Reads the bytes of a `spiece.model`.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Spiece, TokenizerError> {
    let not_spm =
        |reason: String| TokenizerError::NotSentencePiece { path: path.to_owned(), reason };
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(not_spm("found a Git LFS pointer, expected the file it points to".into()));
    }
    let proto = ModelProto::decode(bytes)
        .map_err(|source| TokenizerError::Protobuf { path: path.to_owned(), source })?;

    // The specs follow the pieces: a file truncated between two pieces is valid protobuf without specs.
    let missing = |section| not_spm(format!("it ends without {section} (truncated?)"));
    if proto == ModelProto::default() {
        return Err(not_spm("found neither pieces nor specs".into()));
    }
    let trainer = proto.trainer_spec.ok_or_else(|| missing("trainer_spec"))?;
    let normalizer = proto.normalizer_spec.ok_or_else(|| missing("normalizer_spec"))?;
    let found = match trainer.model_type.unwrap_or(1) {
        1 => None,
        2 => Some("BPE".to_owned()),
        3 => Some("WORD".to_owned()),
        4 => Some("CHAR".to_owned()),
        other => Some(format!("of unknown type {other}")),
    };
    if let Some(found) = found {
        return Err(TokenizerError::ModelKind { path: path.to_owned(), found });
    }

    let mut unknown = None;
    let mut pieces = Vec::with_capacity(proto.pieces.len());
    for (index, SentencePiece { piece, score, kind }) in proto.pieces.into_iter().enumerate() {
        let bad = |reason| TokenizerError::Piece { path: path.to_owned(), index, reason };
        let text = String::from_utf8(piece.unwrap_or_default()).map_err(|e| {
            bad(format!("found bytes {}, expected UTF-8", one_line(e.as_bytes().escape_ascii())))
        })?;
        match kind.unwrap_or(kind::NORMAL) {
            kind::UNKNOWN if unknown.is_some() => {
                return Err(bad("found a second piece of type UNKNOWN, expected one".into()));
            }
            kind::UNKNOWN => unknown = Some(index),
            kind::NORMAL..=kind::BYTE => {}
            other => return Err(bad(format!("found type {other}, expected 1 to 6"))),
        }
        pieces.push((text, f64::from(score.unwrap_or_default())));
    }
    check_pieces(path, &pieces)?;
    let mut seen = HashSet::with_capacity(pieces.len());
    if let Some(index) = pieces.iter().position(|(text, _)| !seen.insert(text.as_str())) {
        let reason = format!("{:?} is in the vocabulary twice", pieces[index].0);
        return Err(TokenizerError::Piece { path: path.to_owned(), index, reason });
    }

    let unk_error = |reason| TokenizerError::SpecialToken {
        path: path.to_owned(),
        token: "unknown token".into(),
        reason,
    };
    let unk_id = unknown.ok_or_else(|| unk_error("found no piece of type UNKNOWN".into()))?;
    // The conversion uses `trainer_spec.unk_id`, SentencePiece uses the type, so both must agree.
    if let Some(declared) = trainer.unk_id
        && usize::try_from(declared) != Ok(unk_id)
    {
        return Err(unk_error(format!(
            "trainer_spec.unk_id is {declared}, but the piece of type UNKNOWN is {unk_id}"
        )));
    }
    let declared = |id: Option<i32>| {
        id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < pieces.len())
    };
    Ok(Spiece {
        unk_id,
        eos_id: declared(trainer.eos_id),
        pad_id: declared(trainer.pad_id),
        charsmap: normalizer.precompiled_charsmap.unwrap_or_default(),
        pieces,
    })
}

/// Rejects a vocabulary that is invalid in a Unigram model: empty, too large, with empty pieces or scores that are
/// not numbers.
pub(super) fn check_pieces(path: &Path, pieces: &[Piece]) -> Result<(), TokenizerError> {
    if pieces.is_empty() {
        return Err(TokenizerError::EmptyVocabulary { path: path.to_owned() });
    }
    TokenizerError::check_size(path, "the number of pieces", pieces.len(), MAX_PIECES)?;
    let total = pieces.iter().map(|(text, _)| text.len()).sum();
    TokenizerError::check_size(path, "the vocabulary in bytes", total, MAX_VOCABULARY_BYTES)?;
    for (index, (text, score)) in pieces.iter().enumerate() {
        let bad = |reason| TokenizerError::Piece { path: path.to_owned(), index, reason };
        if text.is_empty() {
            return Err(bad("found an empty piece".into()));
        }
        if text.len() > MAX_PIECE_BYTES {
            let found = text.len();
            return Err(bad(format!("found {found} bytes, expected at most {MAX_PIECE_BYTES}")));
        }
        if !score.is_finite() {
            return Err(bad(format!("{text:?} has score {score}, expected a finite number")));
        }
    }
    Ok(())
}
