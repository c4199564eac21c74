//! The web page: one file without external resources.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// The page.
const PAGE: &str = include_str!("page.html");

/// Content security policy: only the page's script and style are allowed, by digest.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let source = |element: &str| {
        let digest = Sha256::digest(inline(element).as_bytes());
        format!("'sha256-{}'", STANDARD.encode(digest))
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src blob: data:; \
         media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source("script"),
        source("style")
    )
});

/// Returns the text of the page's only element of this name.
fn inline(element: &str) -> &'static str {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let rest = PAGE.split_once(&open).map_or("", |parts| parts.1);
    rest.split_once(&close).map_or("", |parts| parts.0)
}

pub(super) async fn page() -> Response {
    let mut response = ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_file() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(inline(element).len() > 1000, "{element}");
        }
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://"));
        // The policy forbids them.
        assert!(!PAGE.contains(" style=\"") && !PAGE.contains(" onclick="));
        assert!(PAGE.len() < 64 << 10, "{}", PAGE.len());
        assert_eq!(POLICY.matches("'sha256-").count(), 2);
    }
}
