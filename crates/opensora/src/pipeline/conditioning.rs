//! What the denoiser is told of each clip.

use super::{Observer, PipelineError, TextToVideo, finite};
use crate::{
    nn::mask::TokenMask,
    request::SampleRequest,
    t5::{PromptStates, TextEncoder},
};
use burn::tensor::{Int, Tensor};
use std::{ops::Range, sync::Arc};

/// Encoded prompts, one for each clip, and the negative prompt of all.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// States `[B, L, C]` and mask of `B` prompts.
    pub prompts: PromptStates,
    /// States `[1, L, C]` and mask of the negative prompt; `None` for the model's own null prompt.
    pub negative: Option<PromptStates>,
}

impl From<PromptStates> for Conditioning {
    fn from(prompts: PromptStates) -> Self {
        Self { prompts, negative: None }
    }
}

impl Conditioning {
    /// Returns the number of clips, `B`.
    pub fn clips(&self) -> usize {
        self.prompts.states.dims()[0]
    }

    /// Returns the conditioning of the clips in `range`.
    ///
    /// # Panics
    /// Panics if `range` is empty or beyond the batch.
    pub fn select(&self, range: Range<usize>) -> Self {
        Self { prompts: self.prompts.select(range), negative: self.negative.clone() }
    }
}

impl TextToVideo {
    /// Encodes `prompts` and the request's negative prompt with the text encoder. Equal prompts are
    /// encoded once; several clips of one prompt differ in their noise.
    ///
    /// # Errors
    /// Returns an error if the text encoder cannot be loaded, a prompt cannot be encoded, or states are not
    /// finite.
    pub fn encode(
        &self,
        prompts: &[impl AsRef<str>],
        request: &SampleRequest,
        observer: &mut dyn Observer,
    ) -> Result<Conditioning, PipelineError> {
        let encoder = self.text_encoder(observer)?;
        // Without guidance the null prompt is never asked for.
        let negative =
            request.negative_prompt.as_deref().filter(|_| request.guidance().needs_null());
        let mut texts: Vec<&str> = Vec::new();
        let rows: Vec<usize> = prompts
            .iter()
            .map(AsRef::as_ref)
            .chain(negative)
            .map(|text| {
                texts.iter().position(|known| *known == text).unwrap_or_else(|| {
                    texts.push(text);
                    texts.len() - 1
                })
            })
            .collect();
        for text in &texts {
            let words = encoder.unknown_words(text)?;
            if !words.is_empty() {
                observer.unknown_words(text, &words);
            }
        }
        let (rows, negative) = rows.split_at(prompts.len());
        if prompts.is_empty() {
            texts.clear();
        }
        let encoded = encoder.encode(&texts)?;
        if !finite::all_finite(&encoded.states)? {
            let cause = finite::cause(&self.files.t5, Ok, self.t5_dtype, None);
            return Err(PipelineError::NonFinite { what: "the prompt's states", cause });
        }
        Ok(Conditioning {
            prompts: gather(&encoded, rows),
            negative: negative.first().map(|&row| encoded.select(row..row + 1)),
        })
    }

    /// The text encoder: in memory if it stays there, else in its file.
    fn text_encoder(&self, observer: &mut dyn Observer) -> Result<Arc<TextEncoder>, PipelineError> {
        let keep = self.keeps_all();
        self.resident_text.get(keep, || {
            observer.loading("text encoder");
            let (tokens, dtype) =
                (self.files.denoiser_config.model_max_length, self.t5_dtype.float());
            let (encoder, report) = if keep {
                TextEncoder::load(&self.files.t5, tokens, dtype, &self.device)?
            } else {
                TextEncoder::stream(&self.files.t5, tokens, dtype, &self.device)?
            };
            observer.loaded(&report);
            Ok(Arc::new(encoder))
        })
    }
}

/// The rows of encoded texts, in this order.
fn gather(encoded: &PromptStates, rows: &[usize]) -> PromptStates {
    if rows.iter().copied().eq(0..rows.len()) {
        return encoded.select(0..rows.len());
    }
    let device = encoded.states.device();
    let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &device);
    let masks = rows.iter().map(|&row| encoded.mask.rows()[row].clone()).collect();
    PromptStates {
        states: encoded.states.clone().select(0, indices),
        mask: TokenMask::new(masks).unwrap_or_else(|| encoded.mask.clone()),
    }
}
