//! Error responses.

use super::Json;
use crate::{engine::EngineError, queue::QueueError, request::RequestError};
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use opensora_files::error_line;
use serde_json::json;

/// Seconds after which a client may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// A status with a JSON object `error`: `message`, `type`, `param` and `code`.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None }
    }

    pub(crate) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, code, message, param } = self;
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let body =
            json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let RequestError { param, code, message } = error;
        Self { status: StatusCode::BAD_REQUEST, code, message, param }
    }
}

impl From<QueueError> for ApiError {
    fn from(error: QueueError) -> Self {
        let (status, code) = match &error {
            QueueError::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            QueueError::Finished { .. } => (StatusCode::CONFLICT, "video_finished"),
            QueueError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            QueueError::DiskFull { .. } => (StatusCode::INSUFFICIENT_STORAGE, "storage_full"),
            QueueError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            QueueError::Engine(EngineError::Request(_)) => {
                (StatusCode::BAD_REQUEST, "invalid_request")
            }
            // Paths of the server are not revealed to clients.
            QueueError::Io(_) | QueueError::Store(_) | QueueError::Worker(_) => {
                return Self::internal("the job cannot be stored");
            }
            QueueError::Engine(_) => return Self::internal("the video cannot be made"),
        };
        Self::new(status, code, error_line(&error))
    }
}
