//! Captions by a vision model on a server.
//!
//! The step sends a few frames of each clip that has no caption to a vision model, with a prompt, and
//! writes the answer to the column `text`. The server is any with OpenAI's chat API: vLLM, llama.cpp,
//! Ollama, LLaVA's servers, OpenAI.
//!
//! Clips whose file has changed since they were captioned (size or time) are captioned again. Every row
//! ends captioned or listed as failed with the reason. Errors that would affect every row (an address
//! where nothing answers, a key or model that the server rejects, images that it does not accept) abort
//! the step and are not recorded against rows. To find them, the step sends a request with grey images: before
//! the first row, after a row for which no connection was made, and after 8 other failures of rows without a
//! caption in between. So if the server begins to reject every request with a status that single rows can also
//! get, such as 403, at most 7 rows are recorded as failed; [`RunOptions::retry_failed`] retries them.
//!
//! | module | contents |
//! |---|---|
//! | `images` | the frames of a clip that are sent |
//! | `prompt` | the prompt and its placeholders |
//! | `endpoint` | requests to the server, with retries |
//! | `answer` | the caption in an answer |
//!
//! Source: hpcaitech/Open-Sora v1.0.0, `tools/caption/`. Deviations: the reference has one script for
//! OpenAI and another that runs a model itself and sends only the first of its three frames; a failure
//! ends the run, nothing is retried, and truncated answers and refusals are not detected.

pub mod answer;
mod endpoint;
mod images;
mod prompt;

pub use answer::MAX_CHARACTERS;
pub use endpoint::{AskError, Endpoint, EndpointError, EndpointOptions, Key, Timeouts};
pub use images::{ImageSpec, Layout};
pub use prompt::Prompt;

use crate::{
    Advanced, Observer, PrepareError, RowError, RunOptions, Shard, Summary,
    assemble::{Keys, Tables, journal_path},
    step::{self, Fault, Outcome, Run},
};
use answer::{Caption, Limit};
use endpoint::{Blame, Refused};
use images::Images;
use opensora_manifest::{
    Table,
    table::{PATH, TEXT},
    value,
};
use serde_json::{Map, Value, json};
use std::{
    error::Error,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// The column with the limit at which a caption was cut: `max_tokens`, or `characters`
/// ([`MAX_CHARACTERS`]). Tables without cut captions do not have it.
pub const CUT: &str = "caption_cut";

/// Model, prompt and images of captions.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionSpec {
    /// Name of the model on the server.
    pub model: String,
    /// The prompt.
    pub prompt: Prompt,
    /// The frames that are sent.
    pub images: ImageSpec,
    /// Sampling temperature; 0 gives the likeliest wording.
    pub temperature: f64,
    /// Maximum number of tokens of an answer. A caption of a longer answer ends with its last whole
    /// sentence and is marked in the column [`CUT`].
    pub max_tokens: u32,
    /// Extra request fields; a null value removes the field. Newer models of OpenAI need
    /// `{"max_tokens": null, "max_completion_tokens": 300}`.
    pub extra: Map<String, Value>,
}

impl CaptionSpec {
    /// Returns the settings of a model with the built-in prompt.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            prompt: Prompt::default(),
            images: ImageSpec::default(),
            temperature: 0.2,
            max_tokens: 300,
            extra: Map::new(),
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Returns an error if a setting is out of its range.
    pub fn validate(&self) -> Result<(), PrepareError> {
        self.images.validate()?;
        let fail = |field, found: String, expected| PrepareError::Spec { field, found, expected };
        if self.model.trim().is_empty() {
            return Err(fail("model", "nothing".into(), "the name of the model on the server"));
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(fail("temperature", self.temperature.to_string(), "a number from 0"));
        }
        if self.max_tokens == 0 {
            return Err(fail("max tokens", "0".into(), "at least 1"));
        }
        Ok(())
    }

    /// Returns the maximum number of tokens of an answer, as the request states it.
    fn max_tokens(&self) -> usize {
        let mut stated = ["max_completion_tokens", "max_tokens"].iter();
        let stated = stated.find_map(|field| self.extra.get(*field)?.as_u64());
        stated.unwrap_or(self.max_tokens.into()).try_into().unwrap_or(usize::MAX)
    }

    /// Returns the body of the request.
    fn request(&self, images: &Images) -> Value {
        let text = json!({"type": "text", "text": self.prompt.fill(images.view)});
        let image = |url| json!({"type": "image_url", "image_url": {"url": url}});
        let content: Vec<Value> =
            std::iter::once(text).chain(images.data_urls().map(image)).collect();
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
}

/// Settings, server and run options of the step `caption`.
#[derive(Debug)]
pub struct Job {
    /// Model, prompt and images.
    pub spec: CaptionSpec,
    /// The server.
    pub endpoint: Endpoint,
    /// Replaces captions that rows have already.
    pub recaption: bool,
    /// Workers, shard of the rows, and retries of rows that got no caption.
    pub options: RunOptions,
}

impl Job {
    /// Returns a job that captions rows without caption, four at once.
    pub fn new(spec: CaptionSpec, endpoint: Endpoint) -> Self {
        let options = RunOptions { workers: 4, ..RunOptions::default() };
        Self { spec, endpoint, recaption: false, options }
    }

    /// Returns true if a row needs a caption.
    fn is_open(&self, input: &Table, row: usize) -> bool {
        self.recaption || input.get(row, TEXT).is_none_or(value::is_missing)
    }

    /// Returns what the records of a journal depend on. Address and key of the server are not among it:
    /// the same model may run on another server.
    pub(crate) fn journal_settings(&self) -> Value {
        json!({
            "step": "caption",
            "model": self.spec.model,
            "prompt": self.spec.prompt.text(),
            "pictures": self.spec.images,
            "temperature": self.spec.temperature,
            "max_tokens": self.spec.max_tokens,
            "extra": self.spec.extra,
            "recaption": self.recaption,
        })
    }
}

/// Tables of the step `caption`, and the number of captions that it kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The tables that were written: rows with a caption, and rows without.
    pub tables: Tables,
    /// Number of rows that kept the caption they had; 0 with [`Job::recaption`].
    pub kept: usize,
}

impl Report {
    /// Returns the row counts.
    pub fn summary(&self) -> Summary {
        // Each row is in one of the two tables.
        self.tables.summary(self.tables.output.len() + self.tables.failed.len())
    }
}

/// Captions the rows of `input` that have no caption, and writes the table `out` and the list of
/// failures beside it.
///
/// # Errors
/// Returns an error if a setting is invalid, the journal was written with other settings, the server
/// rejects every request or does not answer, a table cannot be written, or the observer stops the step.
pub fn run(
    job: &Job,
    input: &Table,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Report, PrepareError> {
    let Job { spec, endpoint, options, .. } = job;
    spec.validate()?;
    // Shards divide the whole table, including rows that have captions.
    let mine = || (0..input.len()).filter(|&row| options.shard.holds(row));
    let open: Vec<usize> = mine().filter(|&row| job.is_open(input, row)).collect();
    let keys = Keys::of(input, PATH, out);
    let open_keys: Vec<String> = open.iter().map(|&row| keys.all()[row].clone()).collect();
    let run = Run {
        journal: journal_path(out),
        settings: job.journal_settings(),
        options: RunOptions { shard: Shard::WHOLE, ..*options },
    };
    let work = Work::new(spec, endpoint);
    let path = |index: usize| Path::new(input.get(open[index], PATH).unwrap_or_default());
    let caption = |index: usize| {
        keys.check(open[index])?;
        work.caption(path(index))
    };
    let mut observer = Stopping { observer, stop: &work.stop };
    let made = step::run_on_files(&run, &open_keys, path, caption, &mut observer)?;

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
        // A row that had a caption is unchanged.
        let Some(Caption { text, cut }) = caption else { return Ok(vec![vec![]]) };
        let cut = has_column.then(|| (CUT, cut.map_or("", Limit::name).into()));
        Ok(vec![[(TEXT, text)].into_iter().chain(cut).collect()])
    };
    let tables = Tables::assemble(input, added, outcomes, fields);
    tables.write(out)?;
    Ok(Report { tables, kept })
}

/// Returns the request for the first readable row without a caption, with its images shortened; `None`
/// if there is no such row. Nothing is sent.
///
/// # Errors
/// Returns an error if a setting is invalid.
pub fn preview(job: &Job, input: &Table) -> Result<Option<Value>, PrepareError> {
    const SHOWN: usize = 48;
    let Job { spec, options, .. } = job;
    spec.validate()?;
    let images = (0..input.len())
        .filter(|&row| options.shard.holds(row) && job.is_open(input, row))
        .filter_map(|row| input.get(row, PATH))
        .find_map(|path| Images::read(Path::new(path), &spec.images).ok());
    let Some(images) = images else { return Ok(None) };
    let mut request = spec.request(&images);
    let parts = request.pointer_mut("/messages/0/content").and_then(Value::as_array_mut);
    for url in parts.into_iter().flatten().filter_map(|part| part.pointer_mut("/image_url/url")) {
        let text = url.as_str().unwrap_or_default();
        let start: String = text.chars().take(SHOWN).collect();
        *url = format!("{start}... ({} characters)", text.len()).into();
    }
    Ok(Some(request))
}

/// Number of failures blamed on rows, without a caption in between, after which the server is checked.
const STREAK: usize = 8;

/// An error that affects every row.
type HaltError = Arc<dyn Error + Send + Sync>;

/// State that the workers of a captioning share.
struct Work<'a> {
    spec: &'a CaptionSpec,
    endpoint: &'a Endpoint,
    /// Set to end the waits of all workers.
    stop: AtomicBool,
    /// The accepted request with grey images, or the error of the first one.
    checked: OnceLock<Result<String, HaltError>>,
    /// Number of captions received.
    answered: AtomicUsize,
    /// Number of failures blamed on rows since the last caption or check.
    failures: Mutex<usize>,
    /// The first error that affects every row.
    halted: OnceLock<HaltError>,
}

impl<'a> Work<'a> {
    fn new(spec: &'a CaptionSpec, endpoint: &'a Endpoint) -> Self {
        Self {
            spec,
            endpoint,
            stop: AtomicBool::new(false),
            checked: OnceLock::new(),
            answered: AtomicUsize::new(0),
            failures: Mutex::new(0),
            halted: OnceLock::new(),
        }
    }

    /// Returns the caption of a clip.
    fn caption(&self, path: &Path) -> Result<Caption, Fault> {
        let images = Images::read(path, &self.spec.images)?;
        // The first worker sends the request; the others wait for its result.
        let check = || {
            let request = self.grey(&images)?;
            self.check(&request).map(|()| request)
        };
        let grey =
            self.checked.get_or_init(check).as_ref().map_err(|error| Fault::Step(error.clone()))?;
        let request = self.spec.request(&images).to_string();
        let answered = self.answered.load(Ordering::Relaxed);
        let max_tokens = self.spec.max_tokens();
        let judge = |body: &[u8]| answer::judge(body, max_tokens);
        match self.endpoint.ask(request.as_bytes(), &self.stop, judge) {
            Ok(caption) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                *self.failures() = 0;
                Ok(caption)
            }
            Err(Refused { error, blame }) => Err(match blame {
                Blame::Row => match self.count_failure(grey) {
                    Ok(()) => Fault::Row(error.into()),
                    Err(halted) => Fault::Step(halted),
                },
                // The server answered other workers meanwhile.
                Blame::Load if self.answered.load(Ordering::Relaxed) > answered => {
                    Fault::Row(error.into())
                }
                // Answers to others may be from before the server ended: only a new one shows that it runs.
                Blame::Absence if self.check(grey).is_ok() => Fault::Row(error.into()),
                Blame::Load | Blame::Absence | Blame::Endpoint => Fault::Step(self.halt(error)),
                Blame::Stop => Fault::Step(self.stopped()),
            }),
        }
    }

    /// Locks the number of failures since the last caption or check.
    fn failures(&self) -> MutexGuard<'_, usize> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure blamed on a row. Checks the server after [`STREAK`] such failures: it may have begun to reject
    /// every request, with a status that can also be of a single row.
    fn count_failure(&self, grey: &str) -> Result<(), HaltError> {
        // Locked during the check: rows that fail meanwhile wait for its result.
        let mut failures = self.failures();
        *failures += 1;
        if *failures >= STREAK {
            if let Some(halted) = self.halted.get() {
                return Err(halted.clone());
            }
            self.check(grey)?;
            *failures = 0;
        }
        Ok(())
    }

    /// Returns the request with grey images of the size and number of these. Later checks send the one that was accepted:
    /// images of another size could be rejected for their size.
    fn grey(&self, images: &Images) -> Result<String, HaltError> {
        let grey = images.grey(self.spec.images.quality).map_err(|error| self.halt(error))?;
        Ok(self.spec.request(&grey).to_string())
    }

    /// Sends a request with grey images.
    fn check(&self, grey: &str) -> Result<(), HaltError> {
        let result = self.endpoint.check(grey.as_bytes(), &self.stop);
        result.map_err(|Refused { error, blame }| match blame {
            Blame::Stop => self.stopped(),
            _ => self.halt(error),
        })
    }

    /// Ends the step with an error, unless there is one already. Returns the first one.
    fn halt(&self, error: impl Error + Send + Sync + 'static) -> HaltError {
        let error = || -> HaltError { Arc::new(self.endpoint.error(error)) };
        let error = self.halted.get_or_init(error).clone();
        // After the error: workers that wake from a wait report it.
        self.stop.store(true, Ordering::Release);
        error
    }

    /// Returns the error of a row whose wait was ended.
    fn stopped(&self) -> HaltError {
        self.halted.get().cloned().unwrap_or_else(|| Arc::new(RowError::from("stopped")))
    }
}

/// Ends the waits of the workers when the observer stops the step.
struct Stopping<'a> {
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
}

impl Observer for Stopping<'_> {
    fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
        let flow = self.observer.advanced(event);
        if flow.is_break() {
            self.stop.store(true, Ordering::Relaxed);
        }
        flow
    }
}
