//! Downloads of Hugging Face repositories into the cache of Python's `huggingface_hub`.
//!
//! [`Hub::fetch`] resolves a revision to a commit and downloads the missing files. Cache layout, locks and
//! environment variables are those of `huggingface_hub`: both programs share one cache.
//!
//! ```no_run
//! # fn main() -> Result<(), opensora_hub::HubError> {
//! use opensora_hub::{Files, Hub, Lookup, Wanted};
//!
//! let hub = Hub::from_env()?;
//! let repository = "stabilityai/sd-vae-ft-ema".parse()?;
//! let wanted = Wanted { repository: &repository, revision: "main", files: &Files::Model };
//! let snapshot = hub.fetch(&wanted, Lookup::CacheFirst, &mut ())?;
//! println!("{} at {}", snapshot.folder.display(), snapshot.commit);
//! # Ok(())
//! # }
//! ```
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HOME` | folder of cache and token; default `~/.cache/huggingface` |
//! | `HF_HUB_CACHE` | the cache; default `$HF_HOME/hub` |
//! | `HF_TOKEN`, else the file `HF_TOKEN_PATH` (default `$HF_HOME/token`) | access token |
//! | `HF_ENDPOINT` | the hub; default `https://huggingface.co` |
//! | `HF_HUB_OFFLINE` | `1`: read the cache only |
//!
//! A file is downloaded to `blobs/<etag>.incomplete`, which a later call resumes by a range request, and
//! renamed after its length and checksum were verified: SHA-256 for large files, the SHA-1 of a git blob for
//! small ones. Nothing incomplete appears under `snapshots/`. The token is sent to the host of the hub only,
//! never to a host that the hub redirects to.
//!
//! The crate `hf-hub` 0.5, also on ureq 3, does not verify checksums, appends any answer to a range request,
//! ignores `HF_HUB_OFFLINE`, `Retry-After` and free disk space, and uses other names for unfinished files and
//! locks than `huggingface_hub`. Its version 1.0 depends on tokio and reqwest.
//!
//! Source of the conventions: huggingface/huggingface_hub, `file_download.py`, `constants.py` and
//! `utils/_http.py`; the guide "Understand caching" of its documentation.

mod background;
mod cache;
mod client;
mod digest;
mod error;
mod fetch;
mod lock;
mod observer;
mod redirect;
mod remote;
mod repository;
mod select;
mod settings;
mod transfer;
mod verify;
mod web;

pub use cache::{Cache, CachedFile, CachedRepository, Provenance, provenance};
pub use error::HubError;
pub use fetch::{Hub, Lookup, Snapshot, Wanted};
pub use observer::{
    Completed, Locked, Observer, Planned, Progress, Retrying, Started, Unreachable, Verified,
};
pub use remote::Listing;
pub use repository::{Repository, RepositoryFile};
pub use select::Files;
pub use settings::{Settings, Token};
pub use verify::{Checked, Verdict};

/// The README's example, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
