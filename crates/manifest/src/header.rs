//! Known columns and their aliases in other tools.

use crate::{
    csv_file::dialect::is_file,
    known,
    limits::MAX_COLUMNS,
    table::{NUM_FRAMES, PATH, TEXT, URL},
};

/// Aliases of the known columns in public tools and data sets. If a table has several, the first in this list
/// is used. Names are compared without case, blanks, `_` and `-`.
///
/// Sources: Open-Sora 1.0 to 1.2 (`path`, `text`, `num_frames`), VideoTuna (`path`, `caption`,
/// `frames`), finetrainers (`caption`, `video_file`, `prompt`, `video`), Hugging Face datasets and
/// DiffSynth-Studio (`file_name`, `text`, `video`, `prompt`), EasyAnimate (`file_path`), OpenVid-1M
/// (`video`, `caption`, `frame`), WebVid (`contentUrl`), MiraData (`video_url`).
const ALIASES: [(&str, &[&str]); 4] = [
    (
        PATH,
        &[
            "path",
            "videopath",
            "filepath",
            "filename",
            "file",
            "videofile",
            "video",
            "videoname",
            "clippath",
            "imagepath",
            "imagefile",
            "image",
        ],
    ),
    (TEXT, &["text", "caption", "captions", "prompt", "description"]),
    (NUM_FRAMES, &["numframes", "frames", "nframes", "framecount", "frame"]),
    (URL, &["url", "videourl", "imageurl", "contenturl"]),
];

/// Returns true if the fields are a header: one of them is an alias of `path` or `url`, and the first is no file. A row
/// without a header begins with its file, and its caption can be such a word (`a.mp4,video`).
pub(crate) fn is_header(fields: &[&str]) -> bool {
    let is_row = fields.first().is_some_and(|field| is_file(field.trim()));
    !is_row && (has(fields, PATH) || has(fields, URL))
}

/// Returns true if one of the fields is an alias of the column `known`.
fn has(fields: &[&str], known: &str) -> bool {
    fields.iter().any(|field| rank(field, known).is_some())
}

/// Returns true if fields resemble a header without a path: one of them is an alias of `text`, and none could
/// be a file or URL.
pub(crate) fn looks_like_header(fields: &[&str]) -> bool {
    let file = |field: &&str| field.contains(['.', '/', '\\']);
    has(fields, TEXT) && !fields.iter().any(file)
}

/// Returns the names of a header's columns, with aliases replaced by the names of the known columns.
pub(crate) fn columns(names: &[&str]) -> Result<Vec<String>, String> {
    if names.len() > MAX_COLUMNS {
        return Err(format!("found {} columns, expected at most {MAX_COLUMNS}", names.len()));
    }
    let mut columns: Vec<String> = names.iter().map(|name| name.trim().into()).collect();
    for (known, _) in ALIASES {
        let ranks =
            names.iter().enumerate().filter_map(|(at, name)| Some((rank(name, known)?, at)));
        let Some((first, at)) = ranks.clone().min() else { continue };
        if ranks.filter(|(rank, _)| *rank == first).count() > 1 {
            return Err(format!("the header names the column {known} twice"));
        }
        columns[at] = known.into();
    }
    let mut sorted: Vec<&String> = columns.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) if pair[0].is_empty() => Err("the header has two columns without names".into()),
        Some(pair) => Err(format!("the header names the column {} twice", known::start(pair[0]))),
        None => Ok(columns),
    }
}

/// Returns the index of the column `known` among the names of a header.
pub(crate) fn place(names: &[&str], known: &str) -> Option<usize> {
    let ranks = names.iter().enumerate().filter_map(|(at, name)| Some((rank(name, known)?, at)));
    ranks.min().map(|(_, at)| at)
}

/// Returns the aliases of the column `known` for messages.
pub(crate) fn names_of(known: &str) -> &'static str {
    match known {
        PATH => "path (or video_path, video, file_name, file, image, ...)",
        TEXT => "text (or caption, prompt, description)",
        _ => "url (or video_url, contentUrl)",
    }
}

/// Returns the rank of a name among the aliases of the column `known`.
fn rank(name: &str, known: &str) -> Option<usize> {
    // Longer than any alias, such as a caption, or two names with a tab between them.
    let name = name.trim();
    if name.len() > 64 || name.contains('\t') {
        return None;
    }
    let plain = |c: &char| !c.is_whitespace() && !['_', '-'].contains(c);
    let name: String = name.chars().filter(plain).map(|c| c.to_ascii_lowercase()).collect();
    let (_, aliases) = ALIASES.iter().find(|(column, _)| *column == known)?;
    aliases.iter().position(|alias| *alias == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_other_tools() {
        for (header, expected) in [
            ("path,text,num_frames", "path,text,num_frames"),
            ("path, caption, fps, frames", "path,text,fps,num_frames"),
            ("caption,video_file,other", "text,path,other"),
            ("file_name,text", "path,text"),
            ("video,caption,aesthetic score,frame,fps", "path,text,aesthetic score,num_frames,fps"),
            ("videoid,contentUrl,duration,page_dir,name", "videoid,url,duration,page_dir,name"),
            ("Video Path,Prompt", "path,text"),
            ("URL,TEXT", "url,text"),
            ("video,path,prompt,text", "video,path,prompt,text"),
            (",video-path,caption,prompt", ",path,text,prompt"),
        ] {
            let names: Vec<&str> = header.split(',').collect();
            assert!(is_header(&names), "{header}");
            assert_eq!(columns(&names).unwrap().join(","), expected, "{header}");
        }
        assert!(looks_like_header(&["clip", "caption"]));
        assert!(!looks_like_header(&["a.mp4", "caption"]) && !looks_like_header(&["a", "b"]));
    }

    #[test]
    fn a_row_that_begins_with_a_file_is_no_header() {
        assert!(!is_header(&["a.mp4", "video"]) && !is_header(&["raw/a.PNG ", "url", "1"]));
        assert!(is_header(&["video", "a.ts"]) && is_header(&["clip.id", "path"]));
    }

    #[test]
    fn the_number_of_columns_is_limited() {
        let names: Vec<String> = (0..=MAX_COLUMNS).map(|at| format!("c{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(columns(&names[1..]).unwrap().len(), MAX_COLUMNS);
        assert_eq!(columns(&names).unwrap_err(), "found 4097 columns, expected at most 4096");
    }

    #[test]
    fn names_of_at_most_64_bytes_are_compared_with_aliases() {
        let name = |bytes: usize| format!("{:_<bytes$}", "path");
        assert!(is_header(&[&name(64)]));
        assert!(!is_header(&[&name(65)]) && !is_header(&[&name(66)]));
    }

    #[test]
    fn names_that_come_twice_are_rejected() {
        for (header, found) in [
            ("path,text,PATH", "column path twice"),
            ("path,score,score", "column score twice"),
            ("path,,", "two columns without names"),
        ] {
            let names: Vec<&str> = header.split(',').collect();
            let error = columns(&names).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
    }
}
