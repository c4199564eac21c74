//! The section `[caption]`.

use crate::{
    PrepareError,
    caption::{CaptionSpec, Endpoint, Key, Layout, PictureSpec, Prompt, Timeouts},
    pipeline::stages::Caption,
    retry::Patience,
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `[caption]`: what clips are described by.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionSection {
    /// Address of a server that answers as OpenAI's does.
    pub endpoint: String,
    /// The model's name there.
    pub model: String,
    /// Variable of the environment that holds the server's key.
    pub key_env: Option<String>,
    /// File with another prompt.
    pub prompt: Option<PathBuf>,
    /// How frames are handed over: `multi`, `grid` or `first`.
    #[serde(default)]
    pub frames: Layout,
    /// Clips worked on at once.
    #[serde(default = "four")]
    pub parallel: usize,
    /// Seconds to wait for a whole answer.
    pub answer_timeout: Option<u64>,
    /// Attempts at a clip.
    pub attempts: Option<u32>,
}

fn four() -> usize {
    4
}

impl CaptionSection {
    pub(in crate::pipeline) fn stage(
        &self,
        folder: &Path,
        retry_failed: bool,
    ) -> Result<Caption, PrepareError> {
        let prompt = self.prompt.as_ref().map(|file| Prompt::read(&folder.join(file)));
        let usual = Timeouts::default();
        let answer = self.answer_timeout.map_or(usual.answer, std::time::Duration::from_secs);
        let patience = Patience::default();
        let patience =
            Patience { attempts: self.attempts.unwrap_or(patience.attempts), ..patience };
        let key = self.key_env.as_deref().map(Key::from_environment).transpose()?;
        let timeouts = Timeouts { answer, ..usual };
        Ok(Caption {
            spec: CaptionSpec {
                prompt: prompt.transpose()?.unwrap_or_default(),
                pictures: PictureSpec { layout: self.frames, ..PictureSpec::default() },
                ..CaptionSpec::new(&self.model)
            },
            endpoint: Endpoint::new(&self.endpoint, key, timeouts, patience, self.parallel)?,
            workers: self.parallel,
            retry_failed,
        })
    }
}
