//! Which frames make which clips.

use super::Settings;
use std::ops::Range;

/// A clip that is to be cut.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cut {
    /// Its scene, counted from 0.
    pub(crate) scene: usize,
    /// Which part of the scene, from 0, where scenes are cut into several clips.
    pub(crate) part: usize,
    /// Where it begins, in seconds of the video.
    pub(crate) start: f64,
    /// Where it ends.
    pub(crate) end: f64,
    /// The video's frame that each of the clip's frames shows; never decreasing.
    pub(crate) picks: Vec<usize>,
}

/// A video's frames per second: what it states, unless its frames say otherwise, as those of a
/// variable rate do. `None` where neither is a rate.
pub(crate) fn rate(stated: f64, times: &[f64]) -> Option<f64> {
    let is_rate = |fps: &f64| fps.is_finite() && *fps > 0.0;
    let (first, last) = (times.first()?, times.last()?);
    let measured = Some((times.len() - 1) as f64 / (last - first)).filter(is_rate);
    match (Some(stated).filter(is_rate), measured) {
        (Some(stated), Some(measured)) if (stated / measured - 1.0).abs() > 0.02 => Some(measured),
        (stated, measured) => stated.or(measured),
    }
}

/// The clips of a video whose frames are shown at `times` (seconds, not decreasing), at `fps`
/// frames per second; `video_end` is when its last frame ends.
///
/// A scene gives one clip, its beginning where it is longer than the longest clip; with `keep_long`
/// it gives as many as fit. A clip's frame is the scene's frame that is nearest to its time, where
/// one is nearer than half a tick, and else the one that is still shown then. (A frame that is a
/// little late, as containers round times, is no reason to show the one before it twice; a frame
/// that is seconds away is no reason to end a still early.)
///
/// Source: hpcaitech/Open-Sora v1.0.0, `tools/scenedetect/utils.py`, `split_video`, where FFmpeg's
/// `-r` chooses frames.
pub(crate) fn plan(
    scenes: &[Range<usize>],
    times: &[f64],
    video_end: f64,
    fps: f64,
    settings: &Settings,
) -> Vec<Cut> {
    let ticks = |seconds: f64| (seconds * fps).round() as usize;
    let most = ticks(settings.max_seconds).max(1);
    // A single frame is a picture.
    let least = ticks(settings.min_seconds).max(2);
    let mut cuts = Vec::new();
    for (scene, &Range { start, end }) in scenes.iter().enumerate() {
        let end = end.min(times.len());
        let Some(&from) = times.get(start).filter(|_| start < end) else { continue };
        let until = times.get(end).copied().unwrap_or(video_end);
        let total = ticks(until - from);
        let parts = if settings.keep_long { total.div_ceil(most) } else { 1 };
        for part in 0..parts {
            let first = part * most;
            let behind = total.min(first + most);
            if behind - first < least {
                continue;
            }
            let shown_at = &times[start..end];
            let shown = |tick: usize| {
                let ticks = |frame: usize| (shown_at[frame] - from) * fps - tick as f64;
                // A little on one side, so that what lies in the middle falls there always.
                let before = shown_at
                    .partition_point(|time| (time - from) * fps - (tick as f64) < 0.5 - 1e-6);
                let mut frame = before.max(1) - 1;
                while frame > 0 && ticks(frame - 1).abs() < ticks(frame).abs() - 1e-6 {
                    frame -= 1;
                }
                start + frame
            };
            cuts.push(Cut {
                scene,
                part,
                start: from + first as f64 / fps,
                end: (from + behind as f64 / fps).min(until),
                picks: (first..behind).map(shown).collect(),
            });
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(count: usize, fps: f64) -> Vec<f64> {
        (0..count).map(|frame| frame as f64 / fps).collect()
    }

    /// All frames as one scene.
    fn whole(times: &[f64]) -> Vec<Range<usize>> {
        std::iter::once(0..times.len()).collect()
    }

    fn picks(times: &[f64], fps: f64) -> Vec<usize> {
        let end = times[times.len() - 1] + 1.0 / rate(0.0, times).unwrap();
        plan(&whole(times), times, end, fps, &Settings::default()).remove(0).picks
    }

    #[test]
    fn rates_go_up_and_down_by_time() {
        assert_eq!(picks(&even(45, 30.0), 30.0), (0..45).collect::<Vec<_>>());
        assert_eq!(picks(&even(48, 24.0), 30.0)[..8], [0, 1, 1, 2, 3, 4, 5, 5]);
        assert_eq!(picks(&even(120, 60.0), 30.0)[..4], [0, 2, 4, 6]);
        assert_eq!(picks(&even(480, 120.0), 30.0)[..4], [0, 4, 8, 12]);
        assert_eq!(picks(&even(60, 25.0), 10.0)[..4], [0, 3, 5, 8]);
        // Every frame once where times are rounded to milliseconds.
        let rounded: Vec<f64> =
            even(90, 30.0).iter().map(|time| (time * 1000.0).round() / 1000.0).collect();
        assert_eq!(picks(&rounded, 30.0), (0..90).collect::<Vec<_>>());
        // NTSC's rate: one frame in a thousand comes twice, and not before it must.
        assert_eq!(picks(&even(90, 30.0 / 1.001), 30.0), (0..90).collect::<Vec<_>>());
    }

    #[test]
    fn a_variable_rate_keeps_its_time() {
        // A second of 10 frames, a second of 50.
        let times: Vec<f64> = (0..10)
            .map(|frame| f64::from(frame) / 10.0)
            .chain((0..50).map(|frame| 1.0 + f64::from(frame) / 50.0))
            .collect();
        let cut = plan(&whole(&times), &times, 2.0, 30.0, &Settings::default()).remove(0);
        assert_eq!((cut.picks.len(), cut.picks[0], cut.picks[59]), (60, 0, 58));
        for (tick, &frame) in cut.picks.iter().enumerate() {
            let wanted = tick as f64 / 30.0;
            assert!(times[frame] < wanted + 0.5 / 30.0 && times[frame] > wanted - 0.1);
        }
        // A still is shown until the next frame comes.
        let slides = [0.0, 1.0, 1.2];
        assert_eq!(picks(&slides, 10.0), [[0; 10].as_slice(), &[1, 1], &[2; 6]].concat());
        assert_eq!(rate(15.0, &times).map(f64::round), Some(30.0));
        assert_eq!(rate(29.97, &even(90, 30.0)), Some(29.97));
        assert_eq!((rate(0.0, &[0.0]), rate(25.0, &[0.0])), (None, Some(25.0)));
    }

    #[test]
    fn clips_are_not_shorter_nor_longer_than_asked_for() {
        let times = even(600, 30.0);
        let scenes = [0..29, 29..59, 59..200, 200..590, 590..600];
        let cuts = plan(&scenes, &times, 20.0, 30.0, &Settings::default());
        let found: Vec<_> = cuts.iter().map(|cut| (cut.scene, cut.picks.len())).collect();
        assert_eq!(found, [(1, 30), (2, 141), (3, 150)]);
        assert_eq!(cuts[2].picks, (200..350).collect::<Vec<_>>());
        assert!((cuts[2].start - 200.0 / 30.0).abs() < 1e-9, "{}", cuts[2].start);
        assert!((cuts[2].end - 350.0 / 30.0).abs() < 1e-9, "{}", cuts[2].end);

        let settings = Settings { keep_long: true, ..Settings::default() };
        let cuts = plan(&scenes, &times, 20.0, 30.0, &settings);
        let found: Vec<_> = cuts.iter().map(|cut| (cut.scene, cut.part, cut.picks.len())).collect();
        assert_eq!(found, [(1, 0, 30), (2, 0, 141), (3, 0, 150), (3, 1, 150), (3, 2, 90)]);
        assert_eq!(cuts[4].picks, (500..590).collect::<Vec<_>>());
    }
}
