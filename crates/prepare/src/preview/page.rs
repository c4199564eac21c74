//! The HTML sheet: one page with embedded images and no requests.
//!
//! Names and captions are untrusted: HTML is escaped, control characters are removed, and a content
//! security policy forbids scripts and requests in any case.

use super::Entry;
use crate::RowError;
use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use opensora_video::Frames;
use std::fmt::Write;

/// JPEG quality, from 1 to 100.
const QUALITY: u8 = 85;

/// The page before the first clip.
const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Clips</title>
<style>
body { font-family: sans-serif; margin: 1rem; color: #1e1e1e; background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 40rem), 1fr)); gap: 1.5rem }
figure { margin: 0 }
h2 { font-size: 0.8rem; font-weight: normal; color: #555; margin: 0 0 0.2rem; overflow-wrap: anywhere }
img { max-width: 100%; height: auto; display: block }
figcaption { unicode-bidi: isolate; white-space: pre-line; overflow-wrap: anywhere; margin-top: 0.3rem }
.bad { color: #b3261e; margin: 0 }
</style>
</head>
<body>
<main>
"#;

/// A strip of frames as JPEG in base64, and its height and width.
pub(super) struct Picture {
    base64: String,
    size: [usize; 2],
}

/// Encodes a strip of frames.
pub(super) fn picture(strip: &Frames) -> Result<Picture, RowError> {
    let mut jpeg = Vec::new();
    let size = [strip.height(), strip.width()];
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode(
        strip.data(),
        size[1] as u32,
        size[0] as u32,
        ExtendedColorType::Rgb8,
    )?;
    Ok(Picture { base64: STANDARD.encode(jpeg), size })
}

/// Returns the page.
pub(super) fn page(entries: &[Entry<'_, Picture>]) -> String {
    let mut page = String::from(HEAD);
    for entry in entries {
        page.push_str("<figure>\n<h2>");
        escape(&entry.headline(), &mut page);
        page.push_str("</h2>\n");
        match &entry.look {
            Ok((Picture { base64, size: [height, width] }, _)) => {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    page,
                    "<img alt=\"three frames\" width=\"{width}\" height=\"{height}\" \
                     loading=\"lazy\" src=\"data:image/jpeg;base64,{base64}\">"
                );
            }
            Err(reason) => {
                page.push_str("<p class=\"bad\">cannot be read: ");
                escape(reason, &mut page);
                page.push_str("</p>\n");
            }
        }
        page.push_str("<figcaption dir=\"auto\">");
        escape(entry.caption.trim(), &mut page);
        page.push_str("</figcaption>\n</figure>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// Appends escaped text.
fn escape(text: &str, page: &mut String) {
    for letter in text.chars() {
        match letter {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            '\n' => page.push('\n'),
            control if control.is_control() => page.push(' '),
            _ => page.push(letter),
        }
    }
}
