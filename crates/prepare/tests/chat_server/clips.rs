//! Clips that the stand-in server can identify, and helpers of the caption tests.

use super::{Answer, BLUE, RED_STEP, Request};
use opensora_manifest::{Table, table::PATH};
use opensora_prepare::{
    caption::{CaptionSpec, Endpoint, EndpointOptions, Report, Timeouts},
    retry::RetryPolicy,
};
use opensora_video::{Frames, VideoSpec, Writer};
use serde_json::json;
use std::{net::SocketAddr, path::Path, time::Duration};

pub(crate) const QUICK: RetryPolicy = RetryPolicy {
    attempts: 3,
    first_wait: Duration::from_millis(5),
    longest_wait: Duration::from_millis(300),
};

/// Writes clips 0 to `count` - 1: red identifies the clip, green the frame.
pub(crate) fn clips(folder: &Path, count: usize) -> Table {
    let mut table = Table::new(["id", PATH]);
    for clip in 0..count {
        let path = folder.join(format!("clip {clip}.mp4"));
        let pixels = (0..10u8).flat_map(|t| [clip as u8 * RED_STEP, 10 * t, BLUE].repeat(32 * 32));
        let frames = Frames::from_rgb(pixels.collect(), [10, 32, 32]).unwrap();
        let spec = VideoSpec { frames: 10, width: 32, height: 32, fps: 8.0 };
        Writer::open(&path, &spec).unwrap().write(&frames, &json!({})).unwrap();
        table.push([("id", clip.to_string()), (PATH, path.to_string_lossy().into_owned())]);
    }
    table
}

pub(crate) fn endpoint(address: SocketAddr, retry: RetryPolicy) -> Endpoint {
    let timeouts = Timeouts { answer: Duration::from_millis(1500), ..Timeouts::default() };
    let options = EndpointOptions { timeouts, retry, ..EndpointOptions::default() };
    Endpoint::new(&format!("http://{address}"), options).unwrap()
}

/// The stand-in's normal answer.
pub(crate) fn says(request: &Request) -> Answer {
    Answer::Says(match request.clip {
        Some(clip) => format!(" Clip {clip},\nred. "),
        None => "Grey.".into(),
    })
}

pub(crate) fn spec() -> CaptionSpec {
    CaptionSpec::new("stand-in")
}

/// Returns the column `id` of both tables together, sorted.
pub(crate) fn ids(captioned: &Report) -> Vec<usize> {
    let of = |table: &Table| -> Vec<usize> {
        (0..table.len()).map(|row| table.get(row, "id").unwrap().parse().unwrap()).collect()
    };
    let mut ids = [of(&captioned.tables.output), of(&captioned.tables.failed)].concat();
    ids.sort_unstable();
    ids
}
