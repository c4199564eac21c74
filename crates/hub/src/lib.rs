//! Files of Hugging Face repositories, fetched into the cache that Python's `huggingface_hub` shares.
//!
//! [`Hub::fetch`] resolves a revision to a commit, finds out which files are missing, and downloads
//! these. The layout, the locks and the environment variables are those of `huggingface_hub`, so that
//! each reads what the other has fetched.
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
//! A file goes to `blobs/<etag>.incomplete` first, which a later call resumes by a range request, and
//! gets its name after its length and checksum were compared: SHA-256 for large files, the SHA-1 of a
//! git blob for small ones. Nothing incomplete appears under `snapshots/`. The token is sent to the
//! hub's own host only, never to the one that it redirects to.
//!
//! Why not the crate `hf-hub`: 0.5 blocks on ureq 3 as this workspace does, but compares no checksum,
//! appends whatever a server answers to a range request, knows neither `HF_HUB_OFFLINE` nor
//! `Retry-After` nor free space, and has names of unfinished files and places of locks that
//! `huggingface_hub` does not share. With it come ureq's features for gzip, JSON and SOCKS. 1.0 is built on
//! tokio and reqwest, a second HTTP client for the workspace. This crate adds `fs4` and no other package.
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
