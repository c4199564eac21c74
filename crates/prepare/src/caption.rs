//! Captions by a vision model that a server holds.
//!
//! Each clip that has no caption is shown to the model as a few of its frames, with a prompt; what
//! it answers becomes the row's caption. The server is anything that answers as OpenAI's does: vLLM,
//! llama.cpp, Ollama, LLaVA's servers, OpenAI itself.
//!
//! Clips that have changed since they were captioned (size or time of the file) are captioned again. Every
//! row ends captioned or listed as failed with the reason. What would meet every row alike (an
//! address where nothing answers, a key or a model that the server does not know, pictures that it
//! does not take) ends the step instead, and is no row's failure; before the first row, grey pictures
//! are sent to find that out.
//!
//! | module | thought |
//! |---|---|
//! | `pictures` | what a model is shown of a clip |
//! | `prompt` | what it is asked |
//! | `endpoint` | a server, asked with patience |
//! | `answer` | what it answered, judged |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `tools/caption/`. Deviations: there, one script asks OpenAI
//! and another runs a model itself, which saw only the first of its three frames; a failure ends
//! the run, and neither attempts, answers cut short nor refusals are looked at.

pub mod answer;
mod endpoint;
mod pictures;
mod prompt;

pub use answer::MAX_CHARACTERS;
pub use endpoint::{Endpoint, Key, Timeouts};
pub use pictures::{Layout, PictureSpec};
pub use prompt::Prompt;

use crate::{
    PrepareError,
    assemble::{Keys, Summary, Tables, journal_path},
    step::{self, Fault, Outcome, Run, Shard, Watch},
};
use answer::{Caption, Limit};
use endpoint::{Blame, Refused};
use opensora_manifest::{
    Table,
    table::{PATH, TEXT},
    value,
};
use pictures::Pictures;
use serde_json::{Map, Value, json};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// The column that says at what limit a caption was cut: `max_tokens`, or `characters`
/// ([`MAX_CHARACTERS`]). A table without such captions does not get it.
pub const CUT: &str = "caption_cut";

/// What captions depend on, besides the clips.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionSpec {
    /// The model's name, as the server knows it.
    pub model: String,
    /// What it is asked.
    pub prompt: Prompt,
    /// What it is shown.
    pub pictures: PictureSpec,
    /// How freely it words its answer; 0 is the likeliest wording.
    pub temperature: f64,
    /// Tokens of an answer, at most. A caption of an answer that has more ends with its last whole
    /// sentence, and is marked in the column [`CUT`].
    pub max_tokens: u32,
    /// More fields of the request; null takes a field away. Newer models of OpenAI want
    /// `{"max_tokens": null, "max_completion_tokens": 300}`.
    pub extra: Map<String, Value>,
}

impl CaptionSpec {
    /// A model, asked in our own words.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            prompt: Prompt::default(),
            pictures: PictureSpec::default(),
            temperature: 0.2,
            max_tokens: 300,
            extra: Map::new(),
        }
    }

    fn check(&self) -> Result<(), PrepareError> {
        self.pictures.check()?;
        let fail = |field, found: String, expected| PrepareError::Spec { field, found, expected };
        if self.model.trim().is_empty() {
            return Err(fail("model", "nothing".into(), "its name, as the server knows it"));
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(fail("temperature", self.temperature.to_string(), "a number from 0"));
        }
        if self.max_tokens == 0 {
            return Err(fail("max tokens", "0".into(), "at least 1"));
        }
        Ok(())
    }

    /// Tokens of an answer, at most, as the request says.
    fn max_tokens(&self) -> usize {
        let mut stated = ["max_completion_tokens", "max_tokens"].iter();
        let stated = stated.find_map(|field| self.extra.get(*field)?.as_u64());
        stated.unwrap_or(self.max_tokens.into()).try_into().unwrap_or(usize::MAX)
    }

    /// What is sent to the server.
    fn request(&self, pictures: &Pictures) -> Value {
        let text = json!({"type": "text", "text": self.prompt.fill(pictures.view)});
        let image = |url| json!({"type": "image_url", "image_url": {"url": url}});
        let content: Vec<Value> =
            std::iter::once(text).chain(pictures.data_urls().map(image)).collect();
        let mut request = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        });
        for (field, value) in &self.extra {
            request[field] = value.clone();
        }
        if let Some(fields) = request.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        request
    }

    /// What a journal's records depend on. The address of the server and its key are no part of it:
    /// the same model may answer elsewhere.
    pub(crate) fn settings(&self, options: &Options) -> Value {
        json!({
            "step": "caption",
            "model": self.model,
            "prompt": self.prompt.text(),
            "pictures": self.pictures,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "extra": self.extra,
            "recaption": options.recaption,
        })
    }
}

/// How captions are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Clips worked on at once; 0 counts as 1.
    pub workers: usize,
    /// Which rows.
    pub shard: Shard,
    /// Whether rows that failed in an earlier run are tried again.
    pub retry_failed: bool,
    /// Whether rows that have a caption get another one.
    pub recaption: bool,
}

impl Options {
    /// Whether a row is to be captioned.
    fn is_open(&self, input: &Table, row: usize) -> bool {
        self.recaption || input.get(row, TEXT).is_none_or(value::is_missing)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 4, shard: Shard::WHOLE, retry_failed: false, recaption: false }
    }
}

/// What the step writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captioned {
    /// Rows with a caption, and those without.
    pub tables: Tables,
    /// Rows that had their caption before.
    pub kept: usize,
}

impl Captioned {
    /// The step in numbers.
    pub fn summary(&self) -> Summary {
        // Each row is in one of the two tables.
        self.tables.summary(self.tables.output.len() + self.tables.failed.len())
    }
}

/// Captions the rows of `input` that have none. `out` is where the result shall be written
/// ([`Tables::write`]); the journal lies beside it.
///
/// # Errors
/// Where a setting cannot be, the journal cannot be used, the endpoint is of no use, or the watcher
/// stops the step.
pub fn caption(
    input: &Table,
    out: &Path,
    spec: &CaptionSpec,
    endpoint: &Endpoint,
    options: &Options,
    watch: &mut dyn Watch,
) -> Result<Captioned, PrepareError> {
    spec.check()?;
    // Shards are parts of the whole table, however many of its rows have captions.
    let mine = || (0..input.len()).filter(|&row| options.shard.holds(row));
    let open: Vec<usize> = mine().filter(|&row| options.is_open(input, row)).collect();
    let keys = Keys::of(input, PATH, out);
    let open_keys: Vec<String> = open.iter().map(|&row| keys.all()[row].clone()).collect();
    let run = Run {
        journal: journal_path(out),
        settings: spec.settings(options),
        workers: options.workers,
        shard: Shard::WHOLE,
        retry_failed: options.retry_failed,
    };
    let work = Work::new(spec, endpoint);
    let path = |index: usize| Path::new(input.get(open[index], PATH).unwrap_or_default());
    let made = step::run_on_files(
        &run,
        &open_keys,
        path,
        |index| {
            keys.check(open[index]).map_err(Fault::Row)?;
            work.caption(path(index))
        },
        &mut Stopping { watch, stop: &work.stop },
    )?;

    let mut outcomes: Vec<Option<Outcome<Option<Caption>>>> = vec![None; input.len()];
    for row in mine() {
        outcomes[row] = input.get(row, TEXT).map(|_| Outcome::Done(None));
    }
    let kept = mine().count() - open.len();
    let is_cut = |outcome: &Option<Outcome<Caption>>| {
        matches!(outcome, Some(Outcome::Done(Caption { cut: Some(_), .. })))
    };
    let has_column = input.column(CUT).is_some() || made.iter().any(is_cut);
    for (row, outcome) in open.into_iter().zip(made) {
        outcomes[row] = outcome.map(|outcome| match outcome {
            Outcome::Done(caption) => Outcome::Done(Some(caption)),
            Outcome::Failed(reason) => Outcome::Failed(reason),
        });
    }
    let added = if has_column { &[TEXT, CUT][..] } else { &[TEXT] };
    let fields = |_, caption: Option<Caption>| {
        // A row that had its caption stays as it was.
        let Some(Caption { text, cut }) = caption else { return Ok(vec![vec![]]) };
        let cut = has_column.then(|| (CUT, cut.map_or("", Limit::name).into()));
        Ok(vec![[(TEXT, text)].into_iter().chain(cut).collect()])
    };
    Ok(Captioned { tables: Tables::assemble(input, added, outcomes, fields), kept })
}

/// What would be sent for the first row without a caption that can be read, with its pictures
/// shortened; `None` where there is no such row.
///
/// # Errors
/// Where a setting cannot be.
pub fn preview(
    input: &Table,
    spec: &CaptionSpec,
    options: &Options,
) -> Result<Option<Value>, PrepareError> {
    const SHOWN: usize = 48;
    spec.check()?;
    let pictures = (0..input.len())
        .filter(|&row| options.shard.holds(row) && options.is_open(input, row))
        .filter_map(|row| input.get(row, PATH))
        .find_map(|path| Pictures::read(Path::new(path), &spec.pictures).ok());
    let Some(pictures) = pictures else { return Ok(None) };
    let mut request = spec.request(&pictures);
    let parts = request.pointer_mut("/messages/0/content").and_then(Value::as_array_mut);
    for url in parts.into_iter().flatten().filter_map(|part| part.pointer_mut("/image_url/url")) {
        let text = url.as_str().unwrap_or_default();
        let start: String = text.chars().take(SHOWN).collect();
        *url = format!("{start}... ({} characters)", text.len()).into();
    }
    Ok(Some(request))
}

/// What the workers share.
struct Work<'a> {
    spec: &'a CaptionSpec,
    endpoint: &'a Endpoint,
    /// Ends waits.
    stop: AtomicBool,
    /// Whether the endpoint is of use, once that is known.
    checked: OnceLock<Result<(), Fault>>,
    /// Captions that came.
    answered: AtomicUsize,
    /// Why the step ends.
    halted: OnceLock<String>,
}

impl<'a> Work<'a> {
    fn new(spec: &'a CaptionSpec, endpoint: &'a Endpoint) -> Self {
        Self {
            spec,
            endpoint,
            stop: AtomicBool::new(false),
            checked: OnceLock::new(),
            answered: AtomicUsize::new(0),
            halted: OnceLock::new(),
        }
    }

    /// A clip's caption.
    fn caption(&self, path: &Path) -> Result<Caption, Fault> {
        let pictures = Pictures::read(path, &self.spec.pictures).map_err(Fault::Row)?;
        // Whoever is first asks; the others wait for it.
        self.checked.get_or_init(|| self.check(&pictures)).clone()?;
        let request = self.spec.request(&pictures).to_string();
        let answered = self.answered.load(Ordering::Relaxed);
        let max_tokens = self.spec.max_tokens();
        let judge = |body: &[u8]| answer::judge(body, max_tokens);
        match self.endpoint.ask(request.as_bytes(), &self.stop, judge) {
            Ok(caption) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                Ok(caption)
            }
            Err(Refused { reason, blame }) => Err(match blame {
                Blame::Row => Fault::Row(reason),
                // Others got through: it is hard times, but not for everyone.
                Blame::Load | Blame::Absence
                    if self.answered.load(Ordering::Relaxed) > answered =>
                {
                    Fault::Row(reason)
                }
                Blame::Load | Blame::Absence | Blame::Endpoint => self.halt(reason),
                Blame::Stop => self.stopped(),
            }),
        }
    }

    /// Asks with grey pictures.
    fn check(&self, pictures: &Pictures) -> Result<(), Fault> {
        let grey = pictures.grey(self.spec.pictures.quality).map_err(|reason| self.halt(reason))?;
        let request = self.spec.request(&grey).to_string();
        let result = self.endpoint.check(request.as_bytes(), &self.stop);
        result.map_err(|Refused { reason, blame }| match blame {
            Blame::Stop => self.stopped(),
            _ => self.halt(reason),
        })
    }

    /// Ends the step for this reason, unless there is one already.
    fn halt(&self, reason: String) -> Fault {
        let line = || format!("{}: {reason}", self.endpoint.address());
        let reason = self.halted.get_or_init(line).clone();
        self.stop.store(true, Ordering::Relaxed);
        Fault::Step(reason)
    }

    /// For a row whose wait was cut short.
    fn stopped(&self) -> Fault {
        Fault::Step(self.halted.get().cloned().unwrap_or_else(|| "stopped".into()))
    }
}

/// Ends the waits of a step that its watcher stops.
struct Stopping<'a> {
    watch: &'a mut dyn Watch,
    stop: &'a AtomicBool,
}

impl Watch for Stopping<'_> {
    fn advanced(&mut self, done: usize, failed: usize, total: usize) -> ControlFlow<()> {
        let flow = self.watch.advanced(done, failed, total);
        if flow.is_break() {
            self.stop.store(true, Ordering::Relaxed);
        }
        flow
    }
}
