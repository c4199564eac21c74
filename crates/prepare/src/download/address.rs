//! Addresses of videos: how they are downloaded, and the names of their files.

use super::secrets::{shown, without_user};
use opensora_files::hex;
use sha2::{Digest, Sha256};
use std::fmt;
use ureq::http::Uri;

/// Maximum length of the readable part of a file name, in characters.
const MAX_STEM: usize = 40;
/// Extensions that a file keeps from its address; others become `mp4`.
const ENDINGS: [&str; 12] =
    ["mp4", "mov", "mkv", "avi", "webm", "m4v", "gif", "jpg", "jpeg", "png", "webp", "bmp"];

/// Method of downloading an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// HTTP, in this process.
    Direct,
    /// The program `yt-dlp` downloads the video.
    YtDlp,
}

/// Address of a video, with and without secrets, and its file name.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// With passwords, tokens and signatures.
    secret: String,
    /// Without them, as it is stored and shown.
    url: String,
    fetch: Fetch,
    file: String,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.url).finish()
    }
}

impl Address {
    /// Parses an address: http, https, or the id of a video on YouTube. All addresses of one video on
    /// YouTube become the same. An error is one line with the invalid part.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if is_youtube_id(text) {
            return Ok(Self::youtube(text));
        }
        let wrong = |found: &str| format!("{:?} is not an address: {found}", shown(text));
        let uri: Uri =
            text.parse().map_err(|error: ureq::http::uri::InvalidUri| wrong(&error.to_string()))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            Some(other) => return Err(wrong(&format!("{other} instead of http or https"))),
            None => return Err(wrong("no http or https")),
        }
        let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
            return Err(wrong("no host"));
        };
        match youtube_video(host, &uri) {
            Some(Some(id)) => Ok(Self::youtube(id)),
            Some(None) => Err(wrong("a page of YouTube that is not a video")),
            None => Ok(Self {
                secret: text.into(),
                url: shown(text),
                fetch: Fetch::Direct,
                // Without the password, which could be guessed from a digest.
                file: file_name(&without_user(text), uri.path()),
            }),
        }
    }

    fn youtube(id: &str) -> Self {
        let url = format!("https://www.youtube.com/watch?v={id}");
        let file = file_name(&url, id);
        Self { secret: url.clone(), url, fetch: Fetch::YtDlp, file }
    }

    /// Returns the address for requests. It can contain a password, and is neither stored nor shown.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Returns the address without secrets, as it is stored and shown.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns how the address is downloaded.
    pub(crate) fn fetch(&self) -> Fetch {
        self.fetch
    }

    /// Returns the name of the file, which depends only on the address: at most 70 bytes of lower-case ASCII
    /// letters, digits, `-`, `_` and a dot, which every file system allows.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// Returns the host in lower case; empty if there is none.
    pub(crate) fn host(&self) -> String {
        let host = self.url.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_string));
        host.unwrap_or_default().to_ascii_lowercase()
    }
}

/// Returns true if `host` is `domain` or one of its subdomains.
pub(crate) fn is_below(host: &str, domain: &str) -> bool {
    host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

fn is_youtube_id(text: &str) -> bool {
    text.len() == 11
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Returns the id of a video on YouTube: the outer `None` for other hosts, the inner for other pages.
fn youtube_video<'a>(host: &str, uri: &'a Uri) -> Option<Option<&'a str>> {
    let host = host.to_ascii_lowercase();
    let short = is_below(&host, "youtu.be");
    if !short && !["youtube.com", "youtube-nocookie.com"].iter().any(|own| is_below(&host, own)) {
        return None;
    }
    let mut parts = uri.path().split('/').skip(1);
    let id = match parts.next() {
        first if short => first,
        Some("watch") => {
            let mut fields = uri.query().unwrap_or("").split('&');
            fields.find_map(|field| field.strip_prefix("v="))
        }
        Some("shorts" | "embed" | "v" | "live") => parts.next(),
        _ => None,
    };
    Some(id.filter(|id| is_youtube_id(id)))
}

/// Returns a readable prefix and a digest of the whole address: addresses that differ only in case, in the
/// query or after the longest prefix are common.
fn file_name(url: &str, path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or("");
    let (stem, ending) = last.rsplit_once('.').unwrap_or((last, ""));
    let ending = ending.to_ascii_lowercase();
    let ending = ENDINGS.into_iter().find(|known| *known == ending).unwrap_or("mp4");
    let safe = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '_') => c,
        _ => '-',
    };
    let stem: String = stem.chars().take(MAX_STEM).map(safe).collect();
    let stem = stem.trim_matches(['-', '_']);
    let separator = if stem.is_empty() { "" } else { "-" };
    format!("{stem}{separator}{:.20}.{ending}", hex(&Sha256::digest(url)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_video_on_youtube_has_one_address() {
        for text in [
            "-2yHu5qgTzM",
            "https://www.youtube.com/watch?v=-2yHu5qgTzM",
            "http://m.youtube.com/watch?feature=share&v=-2yHu5qgTzM&t=10",
            "https://youtu.be/-2yHu5qgTzM?t=10",
            "https://www.youtube-nocookie.com/embed/-2yHu5qgTzM",
            "https://YouTube.com/shorts/-2yHu5qgTzM",
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.url(), "https://www.youtube.com/watch?v=-2yHu5qgTzM", "{text}");
            assert_eq!(address.fetch(), Fetch::YtDlp);
        }
        // Ids that differ only in case are different videos.
        let other = Address::parse("-2yhu5qgtzm").unwrap();
        assert_ne!(other.file(), Address::parse("-2yHu5qgTzM").unwrap().file());
        assert!(Address::parse("https://youtube.com/watch?v=--exec").is_err());
        let elsewhere = Address::parse("https://notyoutube.com/watch?v=-2yHu5qgTzM").unwrap();
        assert_eq!(elsewhere.fetch(), Fetch::Direct);
    }

    #[test]
    fn passwords_are_used_and_never_shown() {
        let address = Address::parse("https://me:s3cret@a.example/fox.mp4").unwrap();
        assert_eq!(address.secret(), "https://me:s3cret@a.example/fox.mp4");
        assert_eq!(address.url(), "https://a.example/fox.mp4");
        assert!(!format!("{address:?}").contains("s3cret"));
        assert_eq!(address.file(), Address::parse(address.url()).unwrap().file());
        for wrong in ["ftp://me:s3cret@a.example/x", "me:s3cret@a.example/x", "//me:s3cret@a b"] {
            let error = Address::parse(wrong).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn names_are_plain_short_and_unique() {
        let mut names = std::collections::HashSet::new();
        for url in [
            "https://a.example/clips/Fox_1.MP4",
            "https://a.example/clips/fox_1.mp4",
            "https://a.example/clips/fox_1.mp4?sign=1",
            "https://a.example/clips/fox_1.mov",
            "https://a.example/../../etc/passwd",
            "https://a.example/..%2f..%2fx.mp4",
            "https://a.example/CON",
            "https://a.example/.hidden.mp4",
            "https://a.example/-rf.mp4",
            "https://a.example/x.exe",
            "https://a.example",
            &format!("https://a.example/{}.mp4", "long".repeat(100)),
        ] {
            let address = Address::parse(url).unwrap();
            let name = address.file();
            assert!(name.len() <= 70 && name.starts_with(|c: char| c.is_ascii_alphanumeric()));
            assert!(
                name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
            );
            assert_eq!(name.matches('.').count(), 1, "{name}");
            assert!(names.insert(name.to_string()), "{name}");
        }
        let name = Address::parse("https://a.example/clips/Fox_1.MP4").unwrap();
        assert!(name.file().starts_with("fox_1-") && name.file().ends_with(".mp4"));
    }

    #[test]
    fn invalid_addresses_give_the_reason() {
        for (text, words) in [
            ("", "not an address"),
            ("fox.mp4", "no http"),
            ("file:///etc/passwd", "not an address"),
            ("ftp://a.example/x.mp4", "ftp instead of http"),
            ("https://a.example/a b.mp4", "not an address"),
            ("javascript:alert(1)", "not an address"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
