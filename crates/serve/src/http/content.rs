//! `/v1/videos/{id}/content`: the files of a completed job, whole or in ranges.

use super::{App, error::ApiError, path_value::PathValue, videos::invalid_query};
use crate::{job::JobStatus, store::THUMBNAIL};
use axum::{
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Deserialize;
use std::{io::SeekFrom, sync::Arc};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};

/// Bytes per read, which is also the memory that a slow client occupies.
const CHUNK: u64 = 64 << 10;

/// Which file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContentQuery {
    #[serde(default)]
    variant: Variant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
enum Variant {
    #[default]
    Video,
    Thumbnail,
    Record,
}

pub(super) async fn content(
    State(app): State<Arc<App>>,
    PathValue(id): PathValue,
    query: Result<Query<ContentQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(ContentQuery { variant }) = query.map_err(|error| invalid_query(&error))?;
    let view = app.queue.get(&id)?;
    let state = view.job.state;
    let Some(output) = state.output.filter(|_| state.status == JobStatus::Completed) else {
        let message = format!("the video is {}, it has no content", state.status.name());
        return Err(ApiError::new(StatusCode::CONFLICT, "video_not_completed", message));
    };
    let (name, kind) = match variant {
        Variant::Video if output.ends_with(".png") => (output, "image/png"),
        Variant::Video => (output, "video/mp4"),
        Variant::Thumbnail => (THUMBNAIL.into(), "image/png"),
        Variant::Record => (format!("{output}.json"), "application/json"),
    };
    let path = app.queue.path(&id, &name)?;
    // The file has been deleted, perhaps by hand.
    let gone = |_| ApiError::new(StatusCode::NOT_FOUND, "not_found", "the file is gone");
    let file = File::open(path).await.map_err(gone)?;
    let length = file.metadata().await.map_err(gone)?.len();
    let mut response = match range(&headers, length) {
        Range::Whole => body(file, 0, length).await?.into_response(),
        Range::Part(first, last) => {
            let mut response = body(file, first, last - first + 1).await?.into_response();
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            insert(&mut response, header::CONTENT_RANGE, format!("bytes {first}-{last}/{length}"));
            response
        }
        Range::Outside => {
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            insert(&mut response, header::CONTENT_RANGE, format!("bytes */{length}"));
            return Ok(response);
        }
    };
    let size = match range(&headers, length) {
        Range::Part(first, last) => last - first + 1,
        _ => length,
    };
    insert(&mut response, header::CONTENT_LENGTH, size.to_string());
    insert(&mut response, header::CONTENT_TYPE, kind.into());
    insert(&mut response, header::ACCEPT_RANGES, "bytes".into());
    let ending = name.rsplit('.').next().unwrap_or_default();
    insert(
        &mut response,
        header::CONTENT_DISPOSITION,
        format!("inline; filename=\"{id}.{ending}\""),
    );
    // A deleted video stays in no cache.
    insert(&mut response, header::CACHE_CONTROL, "no-store".into());
    Ok(response)
}

/// Inserts a header; a value with characters other than visible ASCII is left out.
fn insert(response: &mut Response, name: header::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

/// The bytes of a file that a client asks for.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// From the first to the last byte, both inclusive.
    Part(u64, u64),
    Outside,
}

/// Parses `Range`. Everything except a single byte range is ignored, as RFC 9110 allows.
fn range(headers: &HeaderMap, length: u64) -> Range {
    let text = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let Some((first, last)) = text
        .and_then(|text| text.strip_prefix("bytes="))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Range::Whole;
    };
    // The standard knows no signs, which `parse` takes.
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|_| digits)
    };
    match (number(first), number(last)) {
        (Some(first), _) if first >= length => Range::Outside,
        (Some(first), None) if last.is_empty() => Range::Part(first, length - 1),
        (Some(first), Some(last)) if first <= last => Range::Part(first, last.min(length - 1)),
        (None, Some(0)) if first.is_empty() => Range::Outside,
        (None, Some(count)) if first.is_empty() && length > 0 => {
            Range::Part(length - count.min(length), length - 1)
        }
        _ => Range::Whole,
    }
}

/// Returns the bytes of a file from `first` on, read as the client takes them.
async fn body(mut file: File, first: u64, length: u64) -> Result<Body, ApiError> {
    let failed = |_| ApiError::internal("the file cannot be read");
    file.seek(SeekFrom::Start(first)).await.map_err(failed)?;
    let chunks = stream::unfold((file, length), async |(mut file, left)| {
        if left == 0 {
            return None;
        }
        let mut chunk = vec![0; left.min(CHUNK) as usize];
        match file.read(&mut chunk).await {
            Ok(0) => {
                let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                Some((Err(error), (file, 0)))
            }
            Ok(read) => {
                chunk.truncate(read);
                Some((Ok(Bytes::from(chunk)), (file, left - read as u64)))
            }
            Err(error) => Some((Err(error), (file, 0))),
        }
    });
    Ok(Body::from_stream(chunks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_standard() {
        let of = |text: &str, length| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            range(&headers, length)
        };
        assert_eq!(range(&HeaderMap::new(), 10), Range::Whole);
        for (text, expected) in [
            ("bytes=0-", Range::Part(0, 9)),
            ("bytes=2-3", Range::Part(2, 3)),
            ("bytes=2-99", Range::Part(2, 9)),
            ("bytes=-3", Range::Part(7, 9)),
            ("bytes=-99", Range::Part(0, 9)),
            ("bytes=-0", Range::Outside),
            ("bytes=10-", Range::Outside),
            ("bytes=18446744073709551615-", Range::Outside),
            ("bytes=3-2", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=99999999999999999999-", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=+1-2", Range::Whole),
            ("bytes=1-+2", Range::Whole),
            ("bytes=-+2", Range::Whole),
            ("bytes=", Range::Whole),
            ("lines=1-2", Range::Whole),
        ] {
            assert_eq!(of(text, 10), expected, "{text}");
        }
        assert_eq!(of("bytes=0-", 0), Range::Outside);
        assert_eq!(of("bytes=-1", 0), Range::Whole);
    }
}
