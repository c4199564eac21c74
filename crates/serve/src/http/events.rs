//! `/v1/videos/{id}/events`: status, progress and previews as server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `status` | the job, at first and whenever its status changes |
//! | `progress` | `id`, `progress`, `stage`, `step`, `steps` |
//! | `preview` | `id`, `step`, `frames`, `width`, `height` and `image`: a PNG as a data URL, frames one below the other |
//!
//! The stream ends after the event of a final status. A slow client gets only the latest values.

use super::{App, error::ApiError, path_value::PathValue, videos::video};
use crate::{
    engine::Preview,
    job::JobStatus,
    queue::{JobView, Live},
};
use axum::{
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::stream;
use serde_json::{Value, json};
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// Time between keep-alive comments, which detect clients that closed their connection. A client that
/// vanished is noticed when the buffers of its connection are full or the network gives it up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Shortest time between two rounds of events.
const PACE: Duration = Duration::from_millis(100);

/// One client that follows a job.
struct Follower {
    app: Arc<App>,
    id: String,
    changes: watch::Receiver<Live>,
    _permit: OwnedSemaphorePermit,
    /// Events that are not sent yet.
    pending: VecDeque<Event>,
    /// Values that were sent last.
    status: Option<JobStatus>,
    progress: Option<Value>,
    preview: Option<Arc<Preview>>,
    ended: bool,
}

pub(super) async fn events(
    State(app): State<Arc<App>>,
    PathValue(id): PathValue,
) -> Result<Response, ApiError> {
    let mut changes = app.queue.follow(&id)?;
    // The current state is the first event.
    changes.mark_changed();
    let permit = Arc::clone(&app.followers).try_acquire_owned().map_err(|_| {
        let message = "too many clients follow jobs by events: ask for the job itself";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_followers", message)
    })?;
    let follower = Follower {
        app,
        id,
        changes,
        _permit: permit,
        pending: VecDeque::new(),
        status: None,
        progress: None,
        preview: None,
        ended: false,
    };
    let events = stream::unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Proxies pass events on as they come.
    Ok(([("x-accel-buffering", "no")], events).into_response())
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            if self.status.is_some() {
                tokio::time::sleep(PACE).await;
            }
            // The channel closes when the job is deleted, and changes when the server stops.
            let changed = self.changes.changed().await;
            match self.app.queue.get(&self.id) {
                Ok(view) if changed.is_ok() && !self.app.queue.is_stopping() => {
                    self.queue_events(&view);
                }
                _ => return None,
            }
        }
    }

    /// Queues an event for each of status, progress and preview that has changed since it was last sent.
    fn queue_events(&mut self, view: &JobView) {
        let state = &view.job.state;
        let event = |name: &str, data: &Value| Event::default().event(name).data(data.to_string());
        if self.status != Some(state.status) {
            self.status = Some(state.status);
            self.pending.push_back(event("status", &video(view)));
        }
        self.ended = state.status.is_final();
        if state.status != JobStatus::InProgress {
            return;
        }
        let live = &view.live;
        let progress = json!({
            "id": self.id,
            "progress": live.progress,
            "stage": live.stage,
            "step": live.step,
            "steps": view.job.spec.request.steps,
        });
        if self.progress.as_ref() != Some(&progress) {
            self.pending.push_back(event("progress", &progress));
            self.progress = Some(progress);
        }
        if let Some(preview) = &live.preview
            && self.preview.as_ref().is_none_or(|sent| !Arc::ptr_eq(sent, preview))
        {
            self.preview = Some(Arc::clone(preview));
            let image = format!("data:image/png;base64,{}", STANDARD.encode(&preview.png));
            let Preview { step, frames, width, height, .. } = **preview;
            let data = json!({
                "id": self.id, "step": step, "frames": frames, "width": width, "height": height,
                "image": image,
            });
            self.pending.push_back(event("preview", &data));
        }
    }
}
