//! Detection of files that are not videos, by their first bytes.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Returns the kind of a file if it is a common kind without video. The answer does not depend on the `ffmpeg`
/// program. (MP4, Matroska, Ogg, PNG and others may contain video.)
///
/// # Errors
/// Returns an error if the file cannot be read.
pub(crate) fn kind(path: &Path) -> io::Result<Option<&'static str>> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    Ok(of(&start))
}

fn of(start: &[u8]) -> Option<&'static str> {
    let begins = |magic: &[u8]| start.starts_with(magic);
    let text = start.trim_ascii_start();
    let tag = |tag: &[u8]| text.get(..tag.len()).is_some_and(|it| it.eq_ignore_ascii_case(tag));
    Some(match () {
        () if begins(b"version https://git-lfs.github.com/") => {
            "a Git LFS pointer (git lfs pull gets the file)"
        }
        () if tag(b"<html") || tag(b"<!doctype html") => "a web page",
        () if tag(b"<?xml") => "XML",
        () if tag(b"{\"") => "JSON",
        () if begins(b"PK\x03\x04") => "a ZIP archive",
        () if begins(b"\x1f\x8b") => "a gzip archive",
        () if begins(b"Rar!\x1a\x07") => "a RAR archive",
        () if begins(b"\x28\xb5\x2f\xfd") => "a Zstandard archive",
        () if begins(b"%PDF-") => "a PDF",
        () if begins(b"\xff\xd8\xff") => "a JPEG image",
        () if begins(b"RIFF") && start.get(8..12) == Some(b"WEBP") => "a WebP image",
        () if begins(b"RIFF") && start.get(8..12) == Some(b"WAVE") => "sound (WAV)",
        () if begins(b"ID3") => "sound (MP3)",
        () if begins(b"fLaC") => "sound (FLAC)",
        () if !start.is_empty() && start.iter().all(|&byte| byte == 0) => {
            "a file of zeros, as an interrupted download leaves"
        }
        () => return None,
    })
}

/// Returns true for a GIF file with any extension.
pub(crate) fn is_gif(path: &Path) -> bool {
    let mut start = [0; 6];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && [b"GIF87a", b"GIF89a"].contains(&&start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_kinds_are_told_by_their_first_bytes() {
        for (start, kind) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..],
                "a Git LFS pointer",
            ),
            (b"\n <!DOCTYPE HTML><title>404", "a web page"),
            (b"{\"error\": \"gone\"}", "JSON"),
            (b"<?xml version='1.0'?><Error/>", "XML"),
            (b"RIFF\x24\0\0\0WAVEfmt ", "sound (WAV)"),
            (b"\xff\xd8\xff\xe0", "a JPEG image"),
            (&[0; 512], "a file of zeros"),
        ] {
            assert!(of(start).unwrap().starts_with(kind), "{kind}");
        }
        for video in [
            &b"\0\0\0\x20ftypisom"[..],
            b"RIFF\x24\0\0\0AVI LIST",
            b"\x1a\x45\xdf\xa3",
            b"OggS",
            b"GIF89a",
            b"\0\0\x01\xba",
            b"FLV\x01",
            b"#EXTM3U",
            b"",
        ] {
            assert_eq!(of(video), None, "{video:?}");
        }
    }
}
