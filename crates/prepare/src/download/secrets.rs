//! Removes passwords, tokens and signatures from addresses that are stored or shown.

/// Query parameters whose values are secret, in lower case.
const SECRETS: [&str; 26] = [
    "access_key",
    "access_token",
    "api_key",
    "apikey",
    "api-key",
    "auth",
    "auth_token",
    "authorization",
    "awsaccesskeyid",
    "client_secret",
    "jwt",
    "key",
    "key-pair-id",
    "passwd",
    "password",
    "policy",
    "pwd",
    "secret",
    "sig",
    "signature",
    "token",
    "x-amz-credential",
    "x-amz-security-token",
    "x-amz-signature",
    "x-goog-credential",
    "x-goog-signature",
];

/// Returns the address without user name and password, and without the values of secret parameters. Text
/// that is not an address is treated as a mistyped one.
pub(crate) fn shown(url: &str) -> String {
    let url = without_user(url);
    let (front, fragment) = match url.split_once('#') {
        Some((front, fragment)) => (front, Some(fragment)),
        None => (url.as_str(), None),
    };
    let Some((front, query)) = front.split_once('?') else { return url };
    let field = |field: &str| match field.split_once('=') {
        Some((name, value)) if is_secret(name) && !value.is_empty() => format!("{name}=..."),
        _ => field.to_string(),
    };
    let query: Vec<String> = query.split('&').map(field).collect();
    let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
    format!("{front}?{}{fragment}", query.join("&"))
}

fn is_secret(name: &str) -> bool {
    SECRETS.iter().any(|secret| secret.eq_ignore_ascii_case(name))
}

/// Returns the address without user name and password.
pub(crate) fn without_user(url: &str) -> String {
    // After the scheme, or after two slashes without scheme.
    let is_behind_scheme = |at: &usize| url[..*at].is_empty() || url[..*at].ends_with(':');
    let begin = url.find("//").filter(is_behind_scheme).map_or(0, |at| at + 2);
    let rest = &url[begin..];
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{}{}", &url[..begin], &rest[at + 1..]),
        None => url.into(),
    }
}

/// Returns a message whose addresses have no secrets.
pub(crate) fn shown_in(text: &str) -> String {
    let word = |word: &str| {
        // An address can be in quotation marks or brackets.
        let begin = ["https://", "http://", "ftp://"].iter().find_map(|scheme| word.find(scheme));
        match begin {
            Some(begin) => format!("{}{}", &word[..begin], shown(&word[begin..])),
            None => word.to_string(),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_removed_and_nothing_else() {
        for (url, expected) in [
            ("https://me:s3cret@a.example/x.mp4", "https://a.example/x.mp4"),
            ("https://s3cret@a.example:8443", "https://a.example:8443"),
            ("https://me:s3@cret@a.example/@x", "https://a.example/@x"),
            ("https://a.example/x?Token=s3cret&t=4#p", "https://a.example/x?Token=...&t=4#p"),
            (
                "https://a.example/x?X-Amz-Date=1&X-Amz-Signature=s3cret",
                "https://a.example/x?X-Amz-Date=1&X-Amz-Signature=...",
            ),
            ("me:s3cret@a.example/x.mp4", "a.example/x.mp4"),
            ("//me:s3cret@a b", "//a b"),
            ("a.example//me@home", "a.example//me@home"),
            ("https://a.example/x?sign=1&token=", "https://a.example/x?sign=1&token="),
            ("https://a.example/me@home.mp4", "https://a.example/me@home.mp4"),
            ("ü", "ü"),
            ("", ""),
        ] {
            assert_eq!(shown(url), expected);
            assert_eq!(shown(expected), expected);
        }
        let said = shown_in("ERROR: 'https://me:s3cret@a.example/x?sig=s3cret': not found");
        assert_eq!(said, "ERROR: 'https://a.example/x?sig=... not found");
        assert_eq!(shown_in("no address here"), "no address here");
    }
}
