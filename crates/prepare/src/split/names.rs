//! File names of clips.

use crate::ranges::MARK;
use opensora_files::hex;
use sha2::{Digest, Sha256};
use std::{collections::HashMap, path::Path};

/// Maximum length of the part of a video's name in its clips' names, in bytes; file systems allow 255 in total.
const LONGEST: usize = 180;

/// A table of several that write to one folder of clips.
pub(crate) struct Sharing<'a> {
    /// Absolute path of the table's folder: equal keys of other tables are other videos.
    pub(crate) folder: &'a Path,
    /// The settings of the step: clips of other settings are other files.
    pub(crate) settings: &'a str,
}

impl Sharing<'_> {
    /// Returns the SHA-256 of a video's path and the settings.
    fn digest(&self, key: &str) -> [u8; 32] {
        let path = self.folder.join(key);
        // No path has a zero byte.
        let parts = [path.as_os_str().as_encoded_bytes(), b"\0", self.settings.as_bytes()];
        Sha256::digest(parts.concat()).into()
    }
}

/// Returns the name prefixes of the videos' clips: each video's file name without extension. If it is
/// too long or not unique, digits of the key's SHA-256 are appended. `keys` are the keys of all videos,
/// also of other shards. Clip ranges always have digits, so that their names do not depend on other ranges.
///
/// `shared` is set if other tables write to the same folder of clips: then every name has digits.
pub(crate) fn stems(keys: &[String], shared: Option<&Sharing<'_>>) -> Vec<String> {
    let plain = |key: &String| {
        let (path, is_range) = match key.split_once(MARK) {
            Some((path, _)) => (path, true),
            None => (key.as_str(), false),
        };
        let stem = Path::new(path).file_stem();
        (stem.map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()), is_range)
    };
    let plain: Vec<(String, bool)> = keys.iter().map(plain).collect();
    let mut count = HashMap::new();
    for (stem, _) in plain.iter().filter(|(_, is_range)| !is_range) {
        // Some file systems ignore case.
        *count.entry(stem.to_lowercase()).or_insert(0) += 1;
    }
    let name = |((stem, is_range), key): (&(String, bool), &String)| {
        let is_unique = shared.is_none() && count.get(&stem.to_lowercase()) == Some(&1);
        if !is_range && is_unique && stem.len() <= LONGEST {
            return stem.clone();
        }
        let digest: [u8; 32] = match shared {
            Some(sharing) => sharing.digest(key),
            None => Sha256::digest(key.as_bytes()).into(),
        };
        let end = stem.floor_char_boundary(LONGEST);
        format!("{}-{}", &stem[..end], hex(&digest[..5]))
    };
    plain.iter().zip(keys).map(name).collect()
}

/// Returns a clip's file name: `<video>_scene-<k>.mp4`, or `<video>_scene-<k>_part-<p>.mp4` if scenes
/// give several clips. k counts all scenes from 0, also those without clip.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `tools/scenedetect/utils.py`, `split_video`.
pub(crate) fn clip(stem: &str, scene: usize, part: Option<usize>) -> String {
    match part {
        None => format!("{stem}_scene-{scene}.mp4"),
        Some(part) => format!("{stem}_scene-{scene}_part-{part}.mp4"),
    }
}

/// Returns true for a name that [`clip`] can return.
pub(crate) fn is_clip(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let scene = name.strip_suffix(".mp4").and_then(|name| name.rsplit_once("_scene-"));
    scene.is_some_and(|(_, scene)| match scene.split_once("_part-") {
        Some((scene, part)) => is_number(scene) && is_number(part),
        None => is_number(scene),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_get_a_digest_and_other_names_none() {
        let long = format!("x/{}.mp4", "ü".repeat(126));
        let keys = ["a/Sea.mp4", "b/sea.mov", "b/fog.mp4", &long].map(String::from);
        let names = stems(&keys, None);
        assert!(names[0].starts_with("Sea-") && names[1].starts_with("sea-"), "{names:?}");
        assert_ne!(names[0][4..], names[1][4..]);
        assert_eq!(names[2], "fog");
        assert!(names[3].len() <= LONGEST + 11 && names[3].starts_with("üü"), "{names:?}");
        // A name does not depend on the order or number of the other videos.
        assert_eq!(stems(&[keys[1].clone(), keys[0].clone()], None)[1], names[0]);
        // Clip ranges change no other name.
        let ranges = ["b/fog.mp4\nclip 0 2.5", "b/fog.mp4\nclip 2.5 inf", "b/fog.mp4"];
        let of_ranges = stems(&ranges.map(String::from), None);
        assert!(of_ranges[..2].iter().all(|name| name.starts_with("fog-") && name.len() == 14));
        assert!(of_ranges[0] != of_ranges[1] && of_ranges[2] == "fog", "{of_ranges:?}");
        assert_eq!(stems(&[ranges[1].to_string()], None), of_ranges[1..2]);
        // In a folder of several tables, equal keys name different videos.
        let shared = |key: &str, folder: &str, settings: &str| {
            let sharing = Sharing { folder: Path::new(folder), settings };
            stems(&[key.to_string()], Some(&sharing)).remove(0)
        };
        let first = shared("cam/fog.mp4", "/day 1", "30 fps");
        let second = shared("cam/fog.mp4", "/day 2", "30 fps");
        assert!(first.starts_with("fog-") && second.starts_with("fog-") && first != second);
        assert_eq!(shared("/day 1/cam/fog.mp4", "/elsewhere", "30 fps"), first);
        // Clips of other settings are other files.
        assert_ne!(shared("cam/fog.mp4", "/day 1", "24 fps"), first);
        assert_eq!(clip("fog", 3, None), "fog_scene-3.mp4");
        assert_eq!(clip("fog", 3, Some(1)), "fog_scene-3_part-1.mp4");
        for name in ["fog_scene-3.mp4", "fog_scene-3_part-1.mp4", "a_scene-b_scene-12.mp4"] {
            assert!(is_clip(name), "{name}");
        }
        for name in ["fog.mp4", "fog_scene-.mp4", "fog_scene-3_part-.mp4", "fog_scene-3.mov"] {
            assert!(!is_clip(name), "{name}");
        }
    }
}
