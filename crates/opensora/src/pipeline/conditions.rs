//! Conditions of clips: encoded prompts and class labels.

use super::{
    Observer, Part, PipelineError, TextToVideo, finite,
    observer::{Loaded, UnknownWords},
};
use crate::{
    denoiser::{BatchCondition, ConditionedDenoiser, LabelledDenoiser, PromptedDenoiser},
    nn::mask::TokenMask,
    request::SampleRequest,
    stdit::{ClassModel, PromptModel},
    t5::{PromptStates, TextEncoder},
};
use burn::tensor::{Int, Tensor};
use std::{borrow::Cow, fmt::Debug, ops::Range, sync::Arc};

/// Conditions of a list of clips: [`Conditioning`] for prompts, `[usize]` for class labels.
///
/// The trait is sealed.
pub trait Conditions: ToOwned + sealed::Binds {
    /// Returns the number of clips.
    fn clips(&self) -> usize;

    /// Returns the conditions of the clips in `range`.
    ///
    /// # Panics
    /// Panics if `range` is empty or beyond the list.
    fn select(&self, range: Range<usize>) -> Cow<'_, Self>;
}

pub(super) mod sealed {
    use super::{BatchCondition, ConditionedDenoiser, Debug, PipelineError, SampleRequest};

    /// Binds a model and its conditions to a denoiser.
    pub trait Binds {
        /// The models that take these conditions.
        type Model: ?Sized + Debug + Send + Sync;
        /// The condition of a batch, as the model takes it.
        type Batch: BatchCondition<Model = Self::Model>;

        /// Returns the denoiser of a batch.
        ///
        /// # Errors
        /// Returns an error if the conditions do not fit the model.
        fn denoiser<'m>(
            &self,
            model: &'m Self::Model,
            request: &SampleRequest,
        ) -> Result<ConditionedDenoiser<'m, Self::Batch>, PipelineError>;
    }
}

/// Encoded prompts, one for each clip, and one negative prompt for all clips.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// States `[B, L, C]` and mask of `B` prompts.
    pub prompts: PromptStates,
    /// States `[1, L, C]` and mask of the negative prompt; `None`: the model's own null prompt.
    pub negative: Option<PromptStates>,
}

impl From<PromptStates> for Conditioning {
    fn from(prompts: PromptStates) -> Self {
        Self { prompts, negative: None }
    }
}

impl Conditions for Conditioning {
    fn clips(&self) -> usize {
        self.prompts.states.dims()[0]
    }

    fn select(&self, range: Range<usize>) -> Cow<'_, Self> {
        Cow::Owned(Self { prompts: self.prompts.select(range), negative: self.negative.clone() })
    }
}

impl sealed::Binds for Conditioning {
    type Model = dyn PromptModel;
    type Batch = PromptStates;

    fn denoiser<'m>(
        &self,
        model: &'m (dyn PromptModel + 'static),
        request: &SampleRequest,
    ) -> Result<PromptedDenoiser<'m>, PipelineError> {
        let denoiser =
            PromptedDenoiser::new(model, &self.prompts)?.with_reuse(request.attention_reuse);
        Ok(match &self.negative {
            Some(negative) => denoiser.with_negative(negative)?,
            None => denoiser,
        })
    }
}

impl Conditions for [usize] {
    fn clips(&self) -> usize {
        self.len()
    }

    fn select(&self, range: Range<usize>) -> Cow<'_, Self> {
        Cow::Borrowed(&self[range])
    }
}

impl sealed::Binds for [usize] {
    type Model = dyn ClassModel;
    type Batch = Vec<usize>;

    fn denoiser<'m>(
        &self,
        model: &'m (dyn ClassModel + 'static),
        _request: &SampleRequest,
    ) -> Result<LabelledDenoiser<'m>, PipelineError> {
        Ok(LabelledDenoiser::new(model, self)?)
    }
}

impl TextToVideo {
    /// Encodes `prompts` and the request's negative prompt with the text encoder. Equal prompts are
    /// encoded once; several clips of one prompt differ in their noise. The negative prompt is encoded only
    /// if guidance uses it.
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
        // The null prompt is used only with guidance.
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
        for prompt in &texts {
            let words = encoder.unknown_words(prompt)?;
            if !words.is_empty() {
                observer.unknown_words(&UnknownWords { prompt, words: &words });
            }
        }
        let (rows, negative) = rows.split_at(prompts.len());
        if prompts.is_empty() {
            texts.clear();
        }
        let encoded = encoder.encode(&texts)?;
        if !finite::all_finite(&encoded.states)? {
            let cause = finite::cause(&self.files.t5, Ok, self.core.options.text_dtype, None);
            return Err(PipelineError::NonFinite { what: "the prompt's states", cause });
        }
        Ok(Conditioning {
            prompts: gather(&encoded, rows),
            negative: negative.first().map(|&row| encoded.select(row..row + 1)),
        })
    }

    /// Returns the text encoder: in memory if it stays there, else streamed from its file.
    fn text_encoder(&self, observer: &mut dyn Observer) -> Result<Arc<TextEncoder>, PipelineError> {
        let options = &self.core.options;
        let keep = options.residency.keeps_all();
        self.resident_text.get(keep, || {
            observer.loading(Part::TextEncoder);
            let (tokens, dtype) = (self.files.denoiser_config.model_max_length, options.text_dtype);
            let (encoder, report) = if keep {
                TextEncoder::load(&self.files.t5, tokens, dtype, &self.core.device)?
            } else {
                TextEncoder::stream(&self.files.t5, tokens, dtype, &self.core.device)?
            };
            observer.loaded(&Loaded { part: Part::TextEncoder, report: &report });
            Ok(Arc::new(encoder))
        })
    }
}

/// Returns the given rows of encoded texts.
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
