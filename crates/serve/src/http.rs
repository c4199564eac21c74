//! The routes of the server.

mod content;
mod error;
mod events;
mod guard;
mod models;
mod page;
mod path_value;
mod videos;

pub use guard::Security;

use crate::{metrics, queue::Queue};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use error::ApiError;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Description of the API (OpenAPI 3.1, JSON): the reference for names and types.
pub const OPENAPI: &str = include_str!("openapi.json");

/// State that all routes share.
pub(crate) struct App {
    pub(crate) queue: Arc<Queue>,
    pub(crate) security: Security,
    /// Permits for connections that follow jobs.
    pub(crate) followers: Arc<Semaphore>,
}

/// Maximum number of event streams, so that connections are left for other requests.
const MAX_FOLLOWERS: usize = 64;

/// Returns the routes over a queue, for embedding into a larger server. [`Server`](crate::Server) adds
/// limits of connections and of slow clients.
pub fn router(queue: Arc<Queue>, security: Security) -> Router {
    let app = Arc::new(App { queue, security, followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)) });
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/metrics", get(prometheus))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(models::list))
        // The id of a repository has a slash.
        .route("/v1/models/{*model}", get(models::get))
        .route("/v1/videos", get(videos::list).post(videos::create))
        .route("/v1/videos/{video_id}", get(videos::get).delete(videos::delete))
        .route("/v1/videos/{video_id}/cancel", post(videos::cancel))
        .route("/v1/videos/{video_id}/content", get(content::content))
        .route("/v1/videos/{video_id}/events", get(events::events))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such route"))
        .method_not_allowed_fallback(async || {
            let message = "the route has no such method";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// A JSON response. (axum's `Json` would change features of `serde_json` for the whole build.)
pub(crate) struct Json(pub(crate) serde_json::Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.0.to_string()).into_response()
    }
}

/// Runs disk operations on tokio's pool of blocking threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|_| Err(ApiError::internal("the request could not be handled")))
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let alive = app.queue.is_alive();
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = if alive { "ok" } else { "stopped" };
    (status, Json(serde_json::json!({"status": text}))).into_response()
}

async fn prometheus(State(app): State<Arc<App>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, metrics::text(&app.queue)).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
