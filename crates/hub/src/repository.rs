//! Names of repositories, revisions and files.

use crate::HubError;
use opensora_files::read::inside;
use std::{fmt, path::Path, str::FromStr};

/// Maximum length of a repository's name, as on the hub.
const MAX_NAME: usize = 96;

/// Owner and name of a model repository, such as `hpcai-tech/Open-Sora`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

impl Repository {
    /// Returns `OWNER/NAME`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the repository's folder in the cache.
    pub fn folder_name(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }

    /// Returns the repository of a folder name in the cache; `None` for other folders.
    pub fn of_folder(name: &str) -> Option<Self> {
        name.strip_prefix("models--")?.replacen("--", "/", 1).parse().ok()
    }
}

impl FromStr for Repository {
    type Err = HubError;

    /// Parses `OWNER/NAME`, or the `NAME` of a repository without an owner.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let part = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        let fits = text.len() <= MAX_NAME
            && text.split('/').count() <= 2
            && text.split('/').all(part)
            && !text.contains("--")
            && !text.contains("..");
        match fits {
            true => Ok(Self(text.into())),
            false => Err(HubError::Name {
                name: text.into(),
                reason: "expected a repository OWNER/NAME of letters, digits, '-', '_' and '.'",
            }),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file of a repository at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepositoryFile<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Branch, tag or commit.
    pub revision: &'a str,
    /// Name of the file in the repository.
    pub name: &'a str,
}

impl RepositoryFile<'_> {
    pub(crate) fn check(&self) -> Result<(), HubError> {
        check_relative(self.revision, REVISION)?;
        check_relative(self.name, FILE_NAME)
    }
}

/// What [`check_relative`] expects of a file.
pub(crate) const FILE_NAME: &str = "expected the name of a file in the repository";
/// What [`check_relative`] expects of a revision.
pub(crate) const REVISION: &str = "expected a branch, a tag or a commit";

/// Checks a name from a user or a server before it becomes part of a path.
pub(crate) fn check_relative(name: &str, reason: &'static str) -> Result<(), HubError> {
    // Control characters and bidirectional marks could disguise a name in terminal output.
    let is_plain = |c: char| {
        let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        !(c.is_control() || turns || c == '\\')
    };
    let plain = name.chars().all(is_plain) && !name.ends_with('/');
    match plain && inside(Path::new(""), Path::new(name)).is_ok() {
        true => Ok(()),
        false => Err(HubError::Name { name: name.into(), reason }),
    }
}

/// Returns true for a full commit hash.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hexadecimal(text)
}

pub(crate) fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Returns text percent-encoded as one segment of a URL's path.
pub(crate) fn escaped_segment(text: &str) -> String {
    escaped(text, b"-_.~")
}

/// Returns a path percent-encoded for a URL.
pub(crate) fn escaped_path(path: &str) -> String {
    escaped(path, b"-_.~/")
}

/// Percent-encodes all bytes but ASCII letters, digits and those of `plain`.
fn escaped(text: &str, plain: &[u8]) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_hub() {
        for name in ["hpcai-tech/Open-Sora", "gpt2", "DeepFloyd/t5-v1_1-xxl", "a.b/c"] {
            let repository: Repository = name.parse().unwrap();
            assert_eq!(Repository::of_folder(&repository.folder_name()), Some(repository));
        }
        for name in ["", "/", "a/", "a/b/c", "../b", "a/..", "a b/c", "a--b/c", "-a/b", "a/b."] {
            assert!(name.parse::<Repository>().is_err(), "{name}");
        }
        assert_eq!(Repository::of_folder("datasets--a--b"), None);
    }

    #[test]
    fn paths_stay_below_their_folder() {
        for name in ["config.json", "vae/model.safetensors", "refs/pr/1"] {
            check_relative(name, "x").unwrap();
        }
        for name in [
            "",
            "/etc/passwd",
            "../a",
            "a/../../b",
            "a\\b",
            "a/",
            "a\nb",
            "\u{1b}[31ma",
            "a\u{202e}b",
        ] {
            assert!(check_relative(name, "x").is_err(), "{name}");
        }
        assert_eq!(escaped_segment("refs/pr/1 ü"), "refs%2Fpr%2F1%20%C3%BC");
        assert_eq!(escaped_path("a/b.bin"), "a/b.bin");
    }
}
