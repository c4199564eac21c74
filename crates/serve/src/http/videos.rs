//! `/v1/videos`: creates, lists, returns, cancels and deletes jobs.

use super::{App, Json, blocking, error::ApiError, path_value::PathValue};
use crate::{
    job::{Job, JobStatus},
    limits::MAX_BODY_BYTES,
    queue::JobView,
    request::VideoRequest,
};
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequest, Multipart, Query, Request, State, rejection::QueryRejection},
    http::{StatusCode, header},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};

/// Longest time that a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// Default number of jobs per page.
const PAGE: usize = 20;

/// Maximum number of jobs per page.
const MAX_PAGE: usize = 100;

/// Returns a job as clients see it; the fields are described in `openapi.json`.
pub(super) fn video(view: &JobView) -> Value {
    let JobView { job: Job { spec, state, .. }, live, queue_position } = view;
    let request = &spec.request;
    let in_progress = state.status == JobStatus::InProgress;
    let progress = match state.status {
        JobStatus::Completed => 100,
        _ if in_progress => live.progress,
        _ => 0,
    };
    json!({
        "id": spec.id,
        "object": "video",
        "model": request.model,
        "status": state.status,
        "progress": progress,
        "stage": live.stage.filter(|_| in_progress),
        "step": in_progress.then_some(live.step),
        "queue_position": queue_position,
        "created_at": spec.created_at,
        "started_at": state.started_at,
        "completed_at": state.completed_at,
        "expires_at": null,
        "inference_time_s": state.seconds_taken,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "size": format!("{}x{}", request.width, request.height),
        // As text, as in the public API.
        "seconds": request.seconds().to_string(),
        "num_frames": request.num_frames,
        "fps": request.fps,
        "sampler": request.sampler,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "seed": request.seed,
        "remixed_from_video_id": null,
        "error": state.error,
    })
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json, ApiError> {
    let fields = fields(request).await?;
    let request = VideoRequest::from_fields(fields)?;
    let view = blocking(move || {
        let queue = &app.queue;
        let request = request.resolve(queue.engine().model(), queue.limits(), random_seed()?)?;
        Ok(queue.create(request)?)
    })
    .await?;
    Ok(Json(video(&view)))
}

/// Returns a random seed for a request without one, short enough to be copied by hand.
fn random_seed() -> Result<u64, ApiError> {
    let seed = getrandom::u32().map_err(|_| ApiError::internal("no random numbers"))?;
    Ok(seed.into())
}

/// Returns the parameters of a body: a JSON object, or a form.
async fn fields(request: Request) -> Result<Map<String, Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let essence = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is_form = essence.eq_ignore_ascii_case("multipart/form-data");
    if !is_form && !essence.eq_ignore_ascii_case("application/json") {
        let message = "Content-Type: expected application/json or multipart/form-data";
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            message,
        ));
    }
    let declared =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if declared
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: u64| length > MAX_BODY_BYTES as u64)
    {
        return Err(too_large());
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES));
    let bytes: Bytes = match read.await {
        Err(_) => {
            let message = "the body did not arrive in time";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message));
        }
        Ok(Err(error)) => {
            let is_limit = std::error::Error::source(&error)
                .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
            return Err(match is_limit {
                true => too_large(),
                false => ApiError::bad_request("invalid_body", "the body cannot be read"),
            });
        }
        Ok(Ok(bytes)) => bytes,
    };
    if is_form {
        return form(Request::from_parts(parts, Body::from(bytes))).await;
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::bad_request("invalid_json", "the body is no JSON object")),
        Err(error) => {
            let message =
                format!("the body is no JSON object: {}", opensora_files::one_line(error));
            Err(ApiError::bad_request("invalid_json", message))
        }
    }
}

fn too_large() -> ApiError {
    let message = format!("the body has more than {MAX_BODY_BYTES} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

/// Returns the fields of a form, each once and as text.
async fn form(request: Request) -> Result<Map<String, Value>, ApiError> {
    let invalid = |text: String| {
        ApiError::bad_request(
            "invalid_form",
            format!("the form: {}", opensora_files::one_line(text)),
        )
    };
    let mut form =
        Multipart::from_request(request, &()).await.map_err(|error| invalid(error.body_text()))?;
    let mut fields = Map::new();
    while let Some(field) = form.next_field().await.map_err(|error| invalid(error.body_text()))? {
        let name = field.name().unwrap_or_default().to_string();
        let bytes = field.bytes().await.map_err(|error| invalid(error.body_text()))?;
        let text = String::from_utf8(bytes.into())
            .map_err(|_| invalid(format!("'{name}' is not UTF-8")))?;
        if fields.insert(name.clone(), text.into()).is_some() {
            return Err(invalid(format!("'{name}' stands there twice")));
        }
    }
    Ok(fields)
}

/// Parameters of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<Order>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Asc,
    Desc,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json, ApiError> {
    let Query(ListQuery { after, limit, order }) = query.map_err(|error| invalid_query(&error))?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let message = format!("limit: found {limit}, expected 1 to {MAX_PAGE}");
        return Err(ApiError::bad_request("invalid_value", message));
    }
    let newest_first = order != Some(Order::Asc);
    let (views, has_more) = app.queue.list(after.as_deref(), limit, newest_first)?;
    let id = |view: Option<&JobView>| view.map(|view| view.job.spec.id.clone());
    Ok(Json(json!({
        "object": "list",
        "data": views.iter().map(video).collect::<Vec<_>>(),
        "first_id": id(views.first()),
        "last_id": id(views.last()),
        "has_more": has_more,
    })))
}

pub(super) fn invalid_query(error: &QueryRejection) -> ApiError {
    let message = opensora_files::one_line(error.body_text());
    ApiError::bad_request("invalid_query", message)
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    PathValue(id): PathValue,
) -> Result<Json, ApiError> {
    Ok(Json(video(&app.queue.get(&id)?)))
}

pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    PathValue(id): PathValue,
) -> Result<Json, ApiError> {
    let view = blocking(move || Ok(app.queue.cancel(&id)?)).await?;
    Ok(Json(video(&view)))
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    PathValue(id): PathValue,
) -> Result<Json, ApiError> {
    let deleted = {
        let (app, id) = (Arc::clone(&app), id.clone());
        blocking(move || Ok(app.queue.delete(&id)?)).await?
    };
    Ok(Json(match deleted {
        true => json!({"id": id, "object": "video.deleted", "deleted": true}),
        false => json!({
            "id": id, "object": "video.deleted", "deleted": false, "status": JobStatus::Cancelled,
        }),
    }))
}
