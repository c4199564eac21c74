//! Reads lists of HD-VG-130M (JSON).
//!
//! A list is one JSON object, `hdvg_<n>.json`, of videos by their ids on YouTube:
//!
//! ```json
//! {"<id>": {"url": "https://www.youtube.com/watch?v=<id>",
//!           "clip": {"<name>.mp4": {"span": ["00:00:17.7", "00:00:42.0"], "fps": 30.0,
//!                                   "scene_split": [{"clip_id": "<name>_0", "caption": "...",
//!                                                    "scene_cut": [0, 120]}]}}}}
//! ```
//!
//! `span` is a time range in the video, `scene_cut` a range of frames of that span at `fps`; an end of -1 is
//! the end of the span.
//!
//! Source: the structure as public programs read it; the dataset (daooshee/HD-VG-130M) documents it only
//! beside its download. Deviation: those programs skip the first frame of each scene.

use super::{
    address::Address,
    csv_list::{Bounded, MAX_RECORD},
    list::{Clip, List, ListError, no_times},
    seconds,
};
use opensora_manifest::value;
use serde::{
    Deserializer as _,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;
use std::{cell::Cell, fmt, fs::File, io::BufReader, path::Path, rc::Rc};

/// The column with a clip's name in the list.
const CLIP_ID: &str = "clip_id";

/// Reads the list's part of the file, in memory bounded by one video.
pub(crate) fn read(path: &Path, list: &mut List) -> Result<(), ListError> {
    let file = File::open(path).map_err(|source| ListError::Io { path: path.into(), source })?;
    list.columns = vec![CLIP_ID.into()];
    let mut is_enough = false;
    let left = Rc::new(Cell::new(MAX_RECORD));
    let bounded = Bounded { file, left: Rc::clone(&left) };
    let videos = Videos { list, left: &left, is_enough: &mut is_enough };
    let buffered = BufReader::with_capacity(1 << 16, bounded);
    let mut reader = serde_json::Deserializer::from_reader(buffered);
    match reader.deserialize_map(videos).and_then(|()| reader.end()) {
        Err(error) if !is_enough => {
            let reason = format!("not a list of HD-VG-130M: {error}");
            Err(ListError::Format { path: path.into(), reason })
        }
        _ => Ok(()),
    }
}

/// Adds videos to a list as they are read.
struct Videos<'a> {
    list: &'a mut List,
    /// Bytes that may be read for the current video.
    left: &'a Cell<u64>,
    /// Set if reading ended at the end of the part.
    is_enough: &'a mut bool,
}

impl<'de> Visitor<'de> for Videos<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of videos by their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let part = self.list.part();
        let mut index = 0;
        while index < part.end() {
            self.left.set(MAX_RECORD);
            if index < part.offset {
                if map.next_entry::<IgnoredAny, IgnoredAny>()?.is_none() {
                    return Ok(());
                }
            } else {
                let Some((id, video)) = map.next_entry::<String, Value>()? else { return Ok(()) };
                add(self.list, &id, &video, index);
            }
            index += 1;
        }
        // The rest is not parsed: only an error ends the reading of an object.
        *self.is_enough = true;
        Err(A::Error::custom("enough"))
    }
}

fn add(list: &mut List, id: &str, video: &Value, index: usize) {
    let url = video["url"].as_str().unwrap_or(id);
    let wrong = |reason: String| format!("video {} of the list, {id}: {reason}", index + 1);
    let none = Clip { rest: vec![String::new()], ..Clip::default() };
    match (Address::parse(url), clips(video)) {
        (Err(reason), _) => list.reject(Err(url), &none, &no_times(), &wrong(reason)),
        (Ok(address), Err(reason)) => {
            list.reject(Ok(&address), &none, &no_times(), &wrong(reason));
        }
        (Ok(address), Ok(clips)) => list.push(address, None, clips, &wrong),
    }
}

fn clips(video: &Value) -> Result<Vec<Clip>, String> {
    let spans = video["clip"].as_object().ok_or("it has no object \"clip\"")?;
    let mut clips = vec![];
    for (name, span) in spans {
        let scenes = span["scene_split"].as_array();
        let scenes = scenes.ok_or_else(|| format!("{name} has no list \"scene_split\""))?;
        for scene in scenes {
            let clip = clip(name, span, scene);
            clips.push(clip.ok_or_else(|| format!("{name} has a scene without times: {scene}"))?);
        }
    }
    Ok(clips)
}

/// Returns the clip of a scene; `None` if its times are invalid.
fn clip(name: &str, span: &Value, scene: &Value) -> Option<Clip> {
    let bound = |at: usize| seconds::parse(span["span"][at].as_str()?);
    let (first, last) = (bound(0)?, bound(1)?);
    let (from, to) = (scene["scene_cut"][0].as_i64()?, scene["scene_cut"][1].as_i64()?);
    let (start, end) = if to < 0 {
        (first, last)
    } else {
        let fps = span["fps"].as_f64().filter(|fps| *fps > 0.0)?;
        let frame = |frame: i64| seconds::micro(first + frame.max(0) as f64 / fps);
        (frame(from), frame(to))
    };
    (start < end).then(|| Clip {
        start: Some(start),
        end: Some(end),
        text: scene["caption"].as_str().filter(|text| !value::is_missing(text)).map(String::from),
        licence: None,
        rest: vec![scene["clip_id"].as_str().unwrap_or(name).into()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        download::list::{ListFormat, Part, REASON},
        step::Shard,
    };

    fn read(text: &str, part: Part) -> Result<List, ListError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hdvg_0.json");
        std::fs::write(&path, text).unwrap();
        assert_eq!(ListFormat::of(&path).unwrap(), ListFormat::HdVg130M);
        List::read(&path, ListFormat::HdVg130M, part)
    }

    #[test]
    fn scenes_become_clips_with_times_in_the_video() {
        let text = r#"{
            "-2yHu5qgTz1": {"url": "https://www.youtube.com/watch?v=-2yHu5qgTz1", "clip": {
                "a.mp4": {"span": ["00:00:10.500", "00:00:20.000"], "fps": 30.0, "scene_split": [
                    {"clip_id": "a_0", "caption": "A fox.", "scene_cut": [0, 60]},
                    {"clip_id": "a_1", "caption": "Fog.", "scene_cut": [60, 135]}]},
                "b.mp4": {"span": ["00:01:00.000", "00:01:05.000"], "fps": 25, "scene_split": [
                    {"clip_id": "b_0", "caption": "Rain.", "scene_cut": [0, -1]}]}}},
            "-2yHu5qgTz2": {"clip": {"c.mp4": {"span": ["x", "y"], "scene_split": [{}]}}},
            "-2yHu5qgTz3": {"url": "nowhere", "clip": {}},
            "-2yHu5qgTz4": 7}"#;
        let list = read(text, Part::WHOLE).unwrap();
        assert_eq!((list.videos(), list.clips(), list.rejected.len()), (1, 3, 3));
        let clips: Vec<_> = list.videos[0]
            .clips
            .iter()
            .map(|clip| (clip.start, clip.end, clip.text.as_deref(), clip.rest[0].as_str()))
            .collect();
        assert_eq!(
            clips,
            [
                (Some(10.5), Some(12.5), Some("A fox."), "a_0"),
                (Some(12.5), Some(15.0), Some("Fog."), "a_1"),
                (Some(60.0), Some(65.0), Some("Rain."), "b_0"),
            ]
        );
        for (row, words) in [
            (0, "c.mp4 has a scene without times"),
            (1, "\"nowhere\" is not an address"),
            (2, "it has no object \"clip\""),
        ] {
            let reason = list.rejected.get(row, REASON).unwrap();
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn clips_that_no_table_can_hold_are_listed() {
        let scene = |caption: &str| format!(r#"{{"caption": "{caption}", "scene_cut": [0, -1]}}"#);
        let scenes = [scene(&"x".repeat(10_001)), scene("a\\u0000b"), scene("Fog.")].join(", ");
        let text = format!(
            r#"{{"-2yHu5qgTz1": {{"clip": {{"a.mp4": {{"span": ["0:01", "0:02"],
            "scene_split": [{scenes}]}}}}}}}}"#
        );
        let list = read(&text, Part::WHOLE).unwrap();
        assert_eq!((list.videos(), list.clips(), list.rejected.len()), (1, 1, 2));
        for (row, words) in
            [(0, "its caption has 10001 characters"), (1, "its text has a NUL byte")]
        {
            let reason = list.rejected.get(row, REASON).unwrap();
            assert!(reason.contains(words) && reason.contains("video 1 of the list"), "{reason}");
        }
        assert_eq!(list.rejected.get(1, "text"), Some("a\u{fffd}b"));
    }

    #[test]
    fn a_video_without_end_is_not_read_into_memory() {
        let text = format!(r#"{{"-2yHu5qgTz1": {{"url": "{}"#, "x".repeat(65 << 20));
        for offset in [0, 1] {
            let part = Part { offset, ..Part::WHOLE };
            let error = read(&text, part).unwrap_err().to_string();
            assert!(error.contains("longer than 64 MiB"), "{error}");
        }
    }

    #[test]
    fn records_after_a_part_are_not_read() {
        let video = |id: usize| {
            format!(
                r#""-2yHu5qgTz{id}": {{"clip": {{"a.mp4": {{"span": ["0:01", "0:02"],
                "scene_split": [{{"scene_cut": [0, -1]}}]}}}}}}"#
            )
        };
        let text = format!("{{{}, {}, {}, broken", video(1), video(2), video(3));
        let part = Part { offset: 1, limit: Some(2), shard: Shard::WHOLE };
        let list = read(&text, part).unwrap();
        let urls: Vec<_> = list.videos.iter().map(|video| video.address.url()).collect();
        assert_eq!(
            urls,
            [2, 3].map(|id| format!("https://www.youtube.com/watch?v=-2yHu5qgTz{id}"))
        );
        let error = read(&text, Part::WHOLE).unwrap_err().to_string();
        assert!(error.contains("not a list of HD-VG-130M"), "{error}");
    }
}
