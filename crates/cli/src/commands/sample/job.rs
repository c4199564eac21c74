//! The part of sampling that prompts and labels share: clips to files and records.

use super::{
    Args,
    outputs::Outputs,
    record::{Of, Record, Recorded, Saved, Settings},
};
use crate::{model, output, progress::Progress, ranks::World, stop};
use opensora::{PipelineError, SampleRequest, pipeline::SampledClip, stdit::DenoiserWork};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A checked call: what is sampled and where it is written.
pub(super) struct Job<'a> {
    args: &'a Args,
    /// `None` on ranks that do not write.
    outputs: Option<Outputs>,
    /// The one clip that is written, of a recorded batch.
    only: Option<usize>,
    /// True in a program of one rank.
    stops_between_clips: bool,
    /// The part of every record that is the same for all clips.
    settings: Settings,
    /// Record in the file of `--latents`.
    saved: Option<Saved>,
}

impl<'a> Job<'a> {
    /// Opens and tries the outputs of `clips` clips, or of the one of a record, on the rank that writes them.
    pub(super) fn new(
        args: &'a Args,
        request: &SampleRequest,
        settings: Settings,
        clips: usize,
        only: Option<usize>,
        world: &World,
    ) -> anyhow::Result<Self> {
        let outputs = || Outputs::new(args, request, only.map_or(clips, |_| 1));
        let outputs = world.is_main().then(outputs).transpose()?;
        let stops_between_clips = world.group().size() == 1;
        Ok(Self { args, outputs, only, settings, stops_between_clips, saved: None })
    }

    /// Adds the record in the file of latents that is decoded.
    pub(super) fn with_saved(self, saved: Option<Saved>) -> Self {
        Self { saved, ..self }
    }

    /// Adds the sources of the weights in `paths`, and warns if they are not those of `recorded`. Does nothing on ranks
    /// that write no records. It reads parts of the weights: call it after all checks.
    pub(super) fn with_weights(mut self, paths: &[&Path], recorded: Option<&Recorded>) -> Self {
        if self.outputs.is_some() {
            let sources = model::sources(paths);
            if let Some(recorded) = recorded.filter(|_| !self.args.report.quiet) {
                for warning in recorded.warnings(&sources) {
                    output::message(format_args!("warning: {warning}"));
                }
            }
            self.settings = self.settings.with_weights(sources);
        }
        self
    }

    /// Runs `sample`, whose sink writes each clip as soon as it is decoded. Then prints the complete files,
    /// even if the run was stopped or failed.
    pub(super) fn write(
        &self,
        sample: impl FnOnce(&mut Progress, &mut Sink<'_>) -> anyhow::Result<()>,
        mut progress: Progress,
        of: impl Fn(&SampledClip) -> Of,
    ) -> anyhow::Result<()> {
        let mut sink = Sink { job: self, of: &of, written: Vec::new() };
        let result = sample(&mut progress, &mut sink);
        progress.finish();
        let printed = sink.written.into_iter().try_for_each(|(path, record)| match path {
            None => Ok(()),
            Some(path) if self.args.report.json => {
                output::json(&json!({"output": output::path(path), "metadata": record}))
            }
            Some(path) => output::line(path.display()),
        });
        result.map_err(stop::or_error)?;
        Ok(printed?)
    }

    /// Returns the record of a file of latents.
    pub(super) fn record_of_latents(
        &self,
        work: Option<DenoiserWork>,
        of: Of,
    ) -> anyhow::Result<Value> {
        let settings = self.settings.clone().with_first_index().with_work(work)?;
        Record { settings, of }.to_json()
    }
}

/// Receives the clips of a job.
pub(super) struct Sink<'a> {
    job: &'a Job<'a>,
    of: &'a dyn Fn(&SampledClip) -> Of,
    written: Vec<(Option<PathBuf>, Value)>,
}

impl Sink<'_> {
    /// Writes all clips, until a signal is received. Several ranks agree on a stop in the next step of the sampler
    /// instead, and so not while the last batch or latents of a file are decoded.
    pub(super) fn take(
        &mut self,
        clips: impl Iterator<Item = Result<SampledClip, PipelineError>>,
    ) -> anyhow::Result<()> {
        for sampled in clips {
            let sampled = sampled?;
            let place = match self.job.only {
                Some(only) => (only == sampled.index).then_some(0),
                None => Some(sampled.index),
            };
            if let (Some(place), Some(outputs)) = (place, &self.job.outputs) {
                let work = self.job.args.latents.is_none().then_some(sampled.work);
                let settings = self.job.settings.clone().with_place(&sampled).with_work(work)?;
                let mut record = Record { settings, of: (self.of)(&sampled) }.to_json()?;
                if let Some(saved) = &self.job.saved {
                    saved.add_to(&mut record, sampled.index);
                }
                let path = outputs.write(place, &sampled.clip, &record)?;
                self.written.push((path, record));
            }
            if self.job.stops_between_clips {
                stop::check()?;
            }
        }
        Ok(())
    }
}
