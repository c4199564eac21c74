//! Downloads from plain URLs, for weights that are published outside the hub.

use crate::{
    Hub, HubError, Observer, Planned,
    client::{Ask, refusal, text},
    digest::Digest,
    lock::BlobLock,
    observer::proceed,
    redirect::shown,
    remote::plain_tag,
    repository::check_relative,
    transfer::Transfer,
};
use opensora_files::folder_of;
use std::{
    fs,
    path::{Path, PathBuf},
};

impl Hub {
    /// Returns the path at which [`fetch_address`](Self::fetch_address) stores the file of a URL: below
    /// `$HF_HOME/opensora`, by host and path.
    ///
    /// # Errors
    /// Returns an error if the URL is not an HTTP or HTTPS URL of a file.
    pub fn address_path(&self, url: &str) -> Result<PathBuf, HubError> {
        const REASON: &str = "expected an address of a file, http://HOST/PATH";
        let wrong = || HubError::Name { name: shown(url), reason: REASON };
        let plain = shown(url);
        let (scheme, rest) = plain.split_once("://").ok_or_else(wrong)?;
        if !["http", "https"].contains(&scheme) || !rest.contains('/') {
            return Err(wrong());
        }
        let name = rest.replace(':', "_");
        check_relative(&name, REASON)?;
        Ok(self.settings.home.join("opensora").join(Path::new(&name)))
    }

    /// Returns the path of the file of a URL, after downloading the file if it is missing. No token is sent.
    /// Only the length is verified, because such servers state no checksum.
    ///
    /// # Errors
    /// Returns an error if the file cannot be downloaded, is missing in offline mode, or does not fit on the
    /// disk, or if the observer stops the download.
    pub fn fetch_address(
        &self,
        url: &str,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf, HubError> {
        let target = self.address_path(url)?;
        if target.is_file() {
            return Ok(target);
        }
        if self.settings.offline {
            return Err(HubError::Offline {
                repository: shown(url),
                file: target.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                cache: folder_of(&target).into(),
            });
        }
        let refuse = |answer| refusal(url, answer);
        let answer = self.client.insist(
            observer,
            |observer| {
                // One byte from the last server: no earlier server describes the file.
                let answer = self.client.ask(&Ask { count: Some(1), ..Ask::get(url) }, observer)?;
                if answer.status().is_success() { Ok(answer) } else { Err(refuse(answer)) }
            },
            || 0,
        )?;
        let headers = answer.response.headers();
        let size = match text(headers, "content-range") {
            Some(range) => range.rsplit('/').next().and_then(|total| total.parse().ok()),
            None => text(headers, "content-length").and_then(|length| length.parse().ok()),
        };
        // A weak tag does not identify the bytes.
        let tag = text(headers, "etag").filter(|tag| tag.starts_with('"')).map(String::from);
        drop(answer);
        // The tag is part of the name, so that bytes of different versions do not mix.
        let version: String = plain_tag(tag.as_deref().unwrap_or("unversioned"))
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(64)
            .collect();
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let partial = target.with_file_name(format!("{name}.{version}.incomplete"));
        let there = fs::metadata(&partial).map_or(0, |partial| partial.len());
        let bytes = size.unwrap_or(0_u64).saturating_sub(there);
        let host = crate::redirect::origin(url);
        let folder = folder_of(&target);
        proceed(observer.planned(&Planned { repository: &host, folder, files: 1, bytes }))?;
        self.require_space(folder, bytes)?;
        fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        let lock = target.with_file_name(format!(".{name}.lock"));
        let _lock = BlobLock::wait(&lock, &name, observer)?;
        if target.is_file() {
            return Ok(target);
        }
        if tag.is_none() {
            // Without a tag, earlier bytes may belong to another version.
            let _ = fs::remove_file(&partial);
        }
        let transfer = Transfer {
            url,
            name: &name,
            partial: &partial,
            target: &target,
            size,
            digest: Digest::None,
            if_range: tag.as_deref(),
            refuse: &refuse,
        };
        transfer.run(&self.client, observer)?;
        Ok(target)
    }
}
