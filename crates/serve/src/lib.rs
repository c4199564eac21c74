//! An HTTP server for text to video: a queue of jobs on disk, the API of `/v1/videos`, and a page for
//! browsers.
//!
//! A client posts a prompt, gets a job, and fetches the video when the job is completed. Jobs wait in a
//! [`Queue`], whose one worker thread passes them in order of arrival to an [`Engine`]. With the feature
//! `model` (on by default), `ModelEngine` implements it with an `opensora::TextToVideo` in memory.
//!
#![cfg_attr(feature = "model", doc = "```no_run")]
#![cfg_attr(not(feature = "model"), doc = "```ignore")]
//! use opensora::{
//!     ModelFiles, PipelineOptions, Residency, TextToVideo, model_files::PartPaths, nn::device,
//! };
//! use opensora_serve::{ModelEngine, Queue, QueueOptions, Server, ServerOptions};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let files = ModelFiles::resolve("opensora-v1-hq-16x256x256", &PartPaths::default())?;
//! let options = PipelineOptions { residency: Residency::All, ..PipelineOptions::default() };
//! let pipeline = TextToVideo::new(files, options, device::default_device()?)?;
//! let engine = Arc::new(ModelEngine::new("opensora-v1-hq-16x256x256", pipeline)?);
//! // Before the queue, whose worker begins at once: the address may be in use.
//! let server = Server::bind(ServerOptions::default())?;
//! let queue = Queue::open("videos".as_ref(), engine, QueueOptions::default())?;
//! println!("http://{}", server.address());
//! server.run(queue)?; // until `server.stopper().stop()` is called
//! # Ok(())
//! # }
//! ```
//!
//! # Requests
//!
//! | route | does |
//! |---|---|
//! | `POST /v1/videos` | creates a job: `prompt` and, optionally, `seconds` or `num_frames`, `size`, `seed`, `steps`, ... |
//! | `GET /v1/videos` | lists jobs, newest first, in pages |
//! | `GET /v1/videos/{id}` | returns a job: `queued`, `in_progress`, `completed`, `failed` or `cancelled` |
//! | `GET /v1/videos/{id}/content` | returns the video, with `variant` its thumbnail or its record |
//! | `GET /v1/videos/{id}/events` | streams status, progress and previews as server-sent events |
//! | `POST /v1/videos/{id}/cancel` | cancels a job |
//! | `DELETE /v1/videos/{id}` | cancels a job that is queued or in progress, deletes any other |
//! | `GET /v1/models` | lists the model with its defaults and the limits of requests |
//! | `GET /health`, `GET /metrics` | state of the server, for probes and for Prometheus |
//! | `GET /openapi.json`, `GET /` | the [description of this API](OPENAPI), the page |
//!
//! Routes and fields follow the `/v1/videos` APIs of OpenAI and SGLang, so that their clients work. The
//! reference is [`OPENAPI`].
//!
//! # Jobs on disk
//!
//! Each job is a folder: `request.json` (written once), `state.json` (replaced at every change of status),
//! and, when it is completed, `video.mp4`, its record `video.mp4.json` and `thumbnail.png`. A job is
//! acknowledged after its folder is on the disk. After a restart, even after SIGKILL, queued jobs keep their
//! places in the queue, finished jobs are kept, and the job that was running is queued again at its place.
//!
//! # Threads and memory
//!
//! The worker thread computes; two other threads do all network input and output. The memory that clients
//! can occupy is bounded: [`Limits`] bounds requests, queue, number of jobs and their bytes on disk,
//! [`ServerOptions`] the number of connections and the time that a slow client may take. Progress and
//! previews go through a channel that holds the latest value only.
//!
//! # Security
//!
//! The server listens on a loopback address unless it has a token, which clients send as
//! `Authorization: Bearer TOKEN`. Requests whose `Host` is a foreign name (DNS rebinding) and requests from
//! pages of other origins are rejected, with and without a token. No path on disk is made from a request.
//!
//! | module | contents |
//! |---|---|
//! | [`engine`] | the trait of engines, and the observer of a job |
//! | [`request`] | parameters of a client's request, and of a job |
//! | [`limits`] | limits of requests, queue and disk |
//! | [`job`] | jobs and their status |
//! | [`store`] | the folders of jobs |
//! | [`queue`] | jobs in memory and on disk, and the worker |
//! | [`metrics`] | counters |
//! | [`http`] | the routes |
//! | [`server`] | listener and connections |
#![cfg_attr(feature = "model", doc = "| [`model_engine`] | a `TextToVideo` as an engine |")]
#![cfg_attr(feature = "model", doc = "| [`preview`] | latents as small images, by a linear map |")]

// Fakes of tests name this crate as other crates do.
#[cfg(test)]
extern crate self as opensora_serve;

pub mod engine;
pub mod http;
pub mod job;
pub mod limits;
pub mod metrics;
#[cfg(feature = "model")]
pub mod model_engine;
#[cfg(feature = "model")]
pub mod preview;
pub mod queue;
pub mod request;
pub mod server;
mod stall;
pub mod store;
#[cfg(test)]
#[path = "../tests/fake/mod.rs"]
mod testing;
mod worker;

pub use engine::{Engine, EngineError, Generated, ModelInfo, Observer};
pub use http::{OPENAPI, Security, router};
pub use job::{Job, JobStatus};
pub use limits::{Limits, WhenFull};
#[cfg(feature = "model")]
pub use model_engine::ModelEngine;
pub use queue::{JobObserver, Queue, QueueError, QueueOptions};
pub use request::{JobRequest, RequestError, VideoRequest};
pub use server::{ServeError, Server, ServerOptions, Stopper};

/// The example of the readme, which is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
