//! Requests to the hub: metadata of files, lists of files, and headers of safetensors files.

use crate::{
    Hub, HubError, Observer, Repository, RepositoryFile,
    background::patiently,
    client::{Answer, Ask, Failure, connection, refusal, text},
    redirect::shown,
    repository::{FILE_NAME, REVISION, check_relative, escaped_path, escaped_segment, is_commit},
};
use serde::Deserialize;
use std::{collections::BTreeSet, io::Read};

/// Upper limit of a repository's description in bytes.
const MAX_DESCRIPTION: u64 = 64 << 20;
/// Upper limit of the header of a safetensors file in bytes, as the format defines it.
const MAX_HEADER: u64 = 100_000_000;
/// The hub's message for an invalid token; other answers with status 401 are about the repository.
///
/// Source: huggingface/huggingface_hub, `utils/_http.py`.
const INVALID_TOKEN: &str = "Invalid credentials in Authorization header";

/// The files of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Hash of the commit.
    pub commit: String,
    /// Names of the files.
    pub files: BTreeSet<String>,
}

/// Metadata of a file.
#[derive(Debug, Clone)]
pub(crate) struct Metadata {
    pub(crate) commit: String,
    /// Name of the blob.
    pub(crate) tag: String,
    pub(crate) size: Option<u64>,
    pub(crate) url: String,
}

impl Hub {
    /// Requests commit, tag and size of a file.
    pub(crate) fn metadata(
        &self,
        file: &RepositoryFile<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Metadata, HubError> {
        let url = self.address(file);
        let answer = self.client.insist(
            observer,
            |observer| {
                let answer = self.client.ask(&Ask::head(&url), observer)?;
                let status = answer.status();
                match status.is_success() || status.is_redirection() {
                    true => Ok(answer),
                    false => Err(self.refuse_file(file, &url, answer)),
                }
            },
            || 0,
        )?;
        let wrong = |reason: String| HubError::Answer { url: shown(&url), reason };
        let commit = answer.header_of_any("x-repo-commit").unwrap_or_default();
        if !is_commit(commit) {
            return Err(wrong(format!("X-Repo-Commit '{commit}' found, expected a commit's hash")));
        }
        let linked = answer.header_of_any("x-linked-etag");
        let tag = plain_tag(linked.or_else(|| answer.header("etag")).unwrap_or_default());
        if tag.is_empty() || !tag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
            return Err(wrong(format!("ETag '{tag}' found, expected the name of a blob")));
        }
        let length = match answer.status().is_redirection() {
            // The Content-Length of a redirect is the size of the redirect's body, not of the file.
            true => None,
            false => text(answer.response.headers(), "content-length"),
        };
        let size = answer.header_of_any("x-linked-size").or(length);
        Ok(Metadata {
            commit: commit.into(),
            tag: tag.into(),
            size: size.and_then(|size| size.parse().ok()),
            url: self.address(&RepositoryFile { revision: commit, ..*file }),
        })
    }

    fn address(&self, file: &RepositoryFile<'_>) -> String {
        let RepositoryFile { repository, revision, name } = *file;
        let (revision, name) = (escaped_segment(revision), escaped_path(name));
        format!("{}/{repository}/resolve/{revision}/{name}", self.client.endpoint())
    }

    /// Requests the list of a repository's files at a branch, tag or commit.
    ///
    /// # Errors
    /// Returns an error if the repository or revision does not exist or is not accessible, or if the hub
    /// cannot be reached.
    pub fn list(
        &self,
        repository: &Repository,
        revision: &str,
        observer: &mut dyn Observer,
    ) -> Result<Listing, HubError> {
        /// The fields of the hub's description that are used.
        #[derive(Deserialize)]
        struct Description {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        check_relative(revision, REVISION)?;
        if self.settings.offline {
            return Err(HubError::Offline {
                repository: repository.to_string(),
                file: "list of files".into(),
                cache: self.cache().folder().into(),
            });
        }
        let endpoint = self.client.endpoint();
        let revision_part = escaped_segment(revision);
        let url = format!("{endpoint}/api/models/{repository}/revision/{revision_part}");
        let text = self.client.insist(
            observer,
            |observer| {
                let answer = self.client.ask(&Ask::get(&url), observer)?;
                if !answer.status().is_success() {
                    return Err(self.refuse(repository, revision, None, &url, answer));
                }
                let mut body = answer.response.into_body();
                let read = move || body.with_config().limit(MAX_DESCRIPTION).read_to_string();
                let text = patiently(observer, read).map_err(Failure::Final)?;
                text.map_err(|error| connection(&url, error))
            },
            || 0,
        )?;
        let description: Description = serde_json::from_str(&text).map_err(|source| {
            HubError::Json { place: shown(&url), expected: "a repository's description", source }
        })?;
        if !is_commit(&description.sha) {
            let sha = description.sha;
            let reason = format!("sha '{sha}' found, expected a commit's hash");
            return Err(HubError::Answer { url: shown(&url), reason });
        }
        let files: BTreeSet<String> =
            description.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        files.iter().try_for_each(|file| check_relative(file, FILE_NAME))?;
        Ok(Listing { commit: description.sha, files })
    }

    /// Reads the header of a safetensors file without its tensors. Returns the first bytes of the file, up
    /// to the end of the header, and the file's size.
    ///
    /// # Errors
    /// Returns an error if the file does not exist, is not accessible, cannot be read in part, or is not a
    /// safetensors file.
    pub fn safetensors_header(
        &self,
        file: &RepositoryFile<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<u8>, u64), HubError> {
        file.check()?;
        let metadata = self.metadata(file, observer)?;
        let wrong =
            |reason: &str| HubError::Answer { url: shown(&metadata.url), reason: reason.into() };
        let size = metadata.size.ok_or_else(|| wrong("it has no stated size"))?;
        let read = |count: u64, observer: &mut dyn Observer| {
            let attempt = |o: &mut dyn Observer| self.read_start(file, &metadata, count, o);
            self.client.insist(observer, attempt, || 0)
        };
        let start = read(8, observer)?;
        let length = <[u8; 8]>::try_from(&start[..])
            .map(u64::from_le_bytes)
            .ok()
            .filter(|length| *length <= MAX_HEADER && 8 + length <= size)
            .ok_or_else(|| wrong("not a safetensors file"))?;
        Ok((read(8 + length, observer)?, size))
    }

    /// Reads the first `count` bytes of a file.
    fn read_start(
        &self,
        file: &RepositoryFile<'_>,
        metadata: &Metadata,
        count: u64,
        observer: &mut dyn Observer,
    ) -> Result<Vec<u8>, Failure> {
        let url = &metadata.url;
        let answer = self.client.ask(&Ask { count: Some(count), ..Ask::get(url) }, observer)?;
        if !answer.status().is_success() {
            let file = RepositoryFile { revision: &metadata.commit, ..*file };
            return Err(self.refuse_file(&file, url, answer));
        }
        let mut reader = answer.response.into_body().into_reader().take(count);
        let read = move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        };
        let read = patiently(observer, read).map_err(Failure::Final)?;
        let bytes = read.map_err(|error| connection(url, error.into()))?;
        match bytes.len() as u64 {
            found if found < count => {
                let file = file.name.into();
                Err(Failure::Again(HubError::Truncated { file, found, expected: count }, None))
            }
            _ => Ok(bytes),
        }
    }

    /// Returns the failure of a request for a file, by the server's answer.
    pub(crate) fn refuse_file(
        &self,
        file: &RepositoryFile<'_>,
        url: &str,
        answer: Answer,
    ) -> Failure {
        self.refuse(file.repository, file.revision, Some(file.name), url, answer)
    }

    fn refuse(
        &self,
        repository: &Repository,
        revision: &str,
        file: Option<&str>,
        url: &str,
        answer: Answer,
    ) -> Failure {
        let code = answer.header("x-error-code").unwrap_or_default();
        let is_invalid_token = answer.header("x-error-message") == Some(INVALID_TOKEN);
        let (repository, revision) = (repository.to_string(), revision.to_string());
        let endpoint = self.client.endpoint().to_string();
        let has_token = self.client.has_token();
        Failure::Final(match (answer.status().as_u16(), code, file) {
            (401, ..) if is_invalid_token => HubError::InvalidToken { endpoint },
            (_, "GatedRepo", _) => HubError::Gated { repository, endpoint, has_token },
            (401, ..) | (404, "RepoNotFound", _) | (404, "", None) => {
                HubError::RepositoryNotFound { repository, endpoint, has_token }
            }
            (404, "RevisionNotFound", _) => HubError::RevisionNotFound { repository, revision },
            (404, _, Some(file)) => {
                HubError::FileNotFound { repository, revision, file: file.into() }
            }
            _ => return refusal(url, answer),
        })
    }
}

/// Returns a tag without its quotes and without the mark of a weak tag.
pub(crate) fn plain_tag(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"')
}
