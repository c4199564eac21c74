//! URLs of redirects: origin, resolution and display.

/// Returns scheme, host and port of a URL in lower case.
pub(crate) fn origin(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}").to_ascii_lowercase()
}

/// Resolves `location` relative to `url`.
pub(crate) fn join(url: &str, location: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return location.into() };
    let path_start = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_start);
    if location.contains("://") {
        location.into()
    } else if let Some(other) = location.strip_prefix("//") {
        format!("{scheme}://{other}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
        format!("{scheme}://{authority}{folder}{location}")
    }
}

/// Returns a URL without user and query, which may contain credentials.
pub(crate) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let plain = &url[..end];
    match plain.split_once("://").and_then(|(scheme, rest)| {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (_, host) = authority.rsplit_once('@')?;
        Some(format!("{scheme}://{host}/{path}"))
    }) {
        Some(without_user) => without_user,
        None => plain.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined_as_browsers_do() {
        let url = "https://hub.example/a/b/resolve?x=1";
        for (location, joined) in [
            ("https://cdn.example/c?sig=1", "https://cdn.example/c?sig=1"),
            ("//cdn.example/c", "https://cdn.example/c"),
            ("/api/c", "https://hub.example/api/c"),
            ("c", "https://hub.example/a/b/c"),
        ] {
            assert_eq!(join(url, location), joined);
        }
        assert_eq!(join("http://h", "c"), "http://h/c");
    }

    #[test]
    fn hosts_and_ports_make_an_origin_and_secrets_are_not_shown() {
        assert_eq!(origin("HTTP://Hub.example:80/a"), "http://hub.example:80");
        assert_ne!(origin("http://127.0.0.1:9/a"), origin("http://localhost:9/a"));
        assert_ne!(origin("http://h/a"), origin("https://h/a"));
        assert_eq!(shown("https://u:p@cdn.example/c?sig=1"), "https://cdn.example/c");
        assert_eq!(shown("https://cdn.example"), "https://cdn.example");
    }
}
