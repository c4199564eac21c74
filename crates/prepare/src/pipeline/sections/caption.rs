//! The section `[caption]` of a pipeline's settings file.

use crate::{
    PrepareError, RunOptions,
    caption::{
        CaptionSpec, Endpoint, EndpointOptions, ImageSpec, Job, Key, Layout, Prompt, Timeouts,
    },
    retry::RetryPolicy,
};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// `[caption]`: the server and model that caption clips.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionSection {
    /// Address of a server with OpenAI's chat API.
    pub endpoint: String,
    /// Name of the model on the server.
    pub model: String,
    /// Environment variable that holds the server's key.
    pub key_env: Option<String>,
    /// File with a prompt instead of the built-in one.
    pub prompt: Option<PathBuf>,
    /// Layout of the frames in a request: `multi`, `grid` or `first`.
    #[serde(default)]
    pub frames: Layout,
    /// Clips captioned at once.
    #[serde(default = "four")]
    pub parallel: usize,
    /// Seconds to wait for a whole answer.
    pub answer_timeout: Option<u64>,
    /// Attempts per clip.
    pub attempts: Option<u32>,
}

fn four() -> usize {
    4
}

impl CaptionSection {
    pub(in crate::pipeline) fn job(
        &self,
        folder: &Path,
        options: RunOptions,
    ) -> Result<Job, PrepareError> {
        let prompt = self.prompt.as_ref().map(|file| Prompt::read(&folder.join(file)));
        let (timeouts, retry) = (Timeouts::default(), RetryPolicy::default());
        let answer = self.answer_timeout.map_or(timeouts.answer, Duration::from_secs);
        let endpoint = EndpointOptions {
            key: self.key_env.as_deref().map(Key::from_environment).transpose()?,
            timeouts: Timeouts { answer, ..timeouts },
            retry: RetryPolicy { attempts: self.attempts.unwrap_or(retry.attempts), ..retry },
            connections: self.parallel,
        };
        let spec = CaptionSpec {
            prompt: prompt.transpose()?.unwrap_or_default(),
            images: ImageSpec { layout: self.frames, ..ImageSpec::default() },
            ..CaptionSpec::new(&self.model)
        };
        let options = RunOptions { workers: self.parallel, ..options };
        Ok(Job { options, ..Job::new(spec, Endpoint::new(&self.endpoint, endpoint)?) })
    }
}
