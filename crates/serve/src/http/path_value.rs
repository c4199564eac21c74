//! The variable part of a route.

use super::error::ApiError;
use axum::{
    extract::{FromRequestParts, Path},
    http::{StatusCode, request::Parts},
};
use opensora_files::one_line;

/// The variable part of a route, decoded. Its error is JSON like all others, which that of axum's
/// [`Path`] is not: a value that is not UTF-8 names nothing.
pub(super) struct PathValue(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathValue {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(value)| Self(value)).map_err(|error| {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", one_line(error.body_text()))
        })
    }
}
