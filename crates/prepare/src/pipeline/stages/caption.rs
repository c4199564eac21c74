//! The stage that captions clips.

use crate::{
    PrepareError,
    assemble::Summary,
    caption::{self, CaptionSpec, Endpoint, Options},
    pipeline::Stage,
    step::Watch,
};
use opensora_manifest::Table;
use serde_json::Value;
use std::path::Path;

/// Clips described: [`caption::caption`].
#[derive(Debug)]
pub struct Caption {
    /// What captions depend on.
    pub spec: CaptionSpec,
    /// Who answers.
    pub endpoint: Endpoint,
    /// Clips worked on at once.
    pub workers: usize,
    /// Whether clips that got no caption are tried again.
    pub retry_failed: bool,
}

impl Stage for Caption {
    fn name(&self) -> &str {
        "caption"
    }

    fn settings(&self) -> Value {
        self.spec.settings(&self.options())
    }

    fn run(
        &self,
        input: &Path,
        output: &Path,
        watch: &mut dyn Watch,
    ) -> Result<Summary, PrepareError> {
        let input = Table::read(input)?;
        let (options, endpoint) = (self.options(), &self.endpoint);
        let done = caption::caption(&input, output, &self.spec, endpoint, &options, watch)?;
        done.tables.write(output)?;
        Ok(done.summary())
    }
}

impl Caption {
    fn options(&self) -> Options {
        let (workers, retry_failed) = (self.workers, self.retry_failed);
        Options { workers, retry_failed, ..Options::default() }
    }
}
