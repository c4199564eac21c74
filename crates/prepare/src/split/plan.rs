//! Chooses the frames of each clip.

use super::Settings;
use crate::ranges::ClipRange;
use std::ops::Range;

/// A scene, or the part of a scene within a clip range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scene {
    /// The frames of the video that are shown in it, at least one.
    pub(crate) frames: Range<usize>,
    /// Start in seconds of the video.
    pub(crate) start: f64,
    /// End in seconds of the video.
    pub(crate) end: f64,
}

/// A planned clip: its scene, times and frames.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cut {
    /// The scene, counted from 0.
    pub(crate) scene: usize,
    /// The part of the scene, counted from 0; 0 unless scenes are cut into several clips.
    pub(crate) part: usize,
    /// Start in seconds of the video.
    pub(crate) start: f64,
    /// End in seconds of the video.
    pub(crate) end: f64,
    /// For each frame of the clip, the frame of the video that it shows; never decreasing.
    pub(crate) picks: Vec<usize>,
}

/// Returns a video's frames per second: the stated rate, or the mean rate of its frames if that differs
/// by more than 2 % (variable frame rates). `None` if neither is known.
pub(crate) fn rate(stated: f64, times: &[f64]) -> Option<f64> {
    let is_rate = |fps: &f64| fps.is_finite() && *fps > 0.0;
    let (first, last) = (times.first()?, times.last()?);
    let measured = Some((times.len() - 1) as f64 / (last - first)).filter(is_rate);
    match (Some(stated).filter(is_rate), measured) {
        (Some(stated), Some(measured)) if (stated / measured - 1.0).abs() > 0.02 => Some(measured),
        (stated, measured) => stated.or(measured),
    }
}

/// Returns the scenes of a video, or their parts within `range`. `shots` are the frames of each scene, `times` the
/// seconds at which the video's frames are shown, not decreasing, and `video_end` the second at which the last
/// frame ends.
pub(crate) fn scenes(
    shots: &[Range<usize>],
    times: &[f64],
    video_end: f64,
    range: Option<ClipRange>,
) -> Vec<Scene> {
    let scene = |shot: &Range<usize>| {
        let frames = shot.start..shot.end.min(times.len());
        let start = *times.get(frames.start).filter(|_| !frames.is_empty())?;
        let end = times.get(frames.end).copied().unwrap_or(video_end);
        let Some(range) = range else { return Some(Scene { frames, start, end }) };
        let (start, end) = (start.max(range.start), end.min(range.end));
        let shown = &times[frames.clone()];
        // The frame that is shown at the start may have appeared before it.
        let first = shown.partition_point(|time| *time <= start).max(1) - 1;
        let behind = shown.partition_point(|time| *time < end);
        let frames = frames.start + first..frames.start + behind;
        (start < end).then_some(Scene { frames, start, end })
    };
    shots.iter().filter_map(scene).collect()
}

/// Plans the clips of scenes at `fps` frames per second. `times` are the seconds at which the video's frames
/// are shown.
///
/// A scene gives one clip, which is the beginning of a scene longer than the longest clip; with
/// `keep_long` a scene gives as many clips as fit. Each frame of a clip shows the scene's nearest frame if
/// that is within half a frame duration, and otherwise the last frame before its time. So times that
/// containers round do not repeat frames, and an image that is shown for seconds is not cut short.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `tools/scenedetect/utils.py`, `split_video`, where FFmpeg's
/// `-r` chooses frames.
pub(crate) fn plan(scenes: &[Scene], times: &[f64], fps: f64, settings: &Settings) -> Vec<Cut> {
    let ticks = |seconds: f64| (seconds * fps).round() as usize;
    let most = ticks(settings.max_seconds).max(1);
    // A single frame is an image, not a clip.
    let least = ticks(settings.min_seconds).max(2);
    let mut cuts = Vec::new();
    for (index, scene) in scenes.iter().enumerate() {
        let (from, until) = (scene.start, scene.end);
        let total = ticks(until - from);
        let parts = if settings.keep_long { total.div_ceil(most) } else { 1 };
        for part in 0..parts {
            let first = part * most;
            let behind = total.min(first + most);
            if behind - first < least {
                continue;
            }
            let shown_at = &times[scene.frames.clone()];
            let shown = |tick: usize| {
                let ticks = |frame: usize| (shown_at[frame] - from) * fps - tick as f64;
                // Slightly below one half, so that ties always fall on the same side.
                let before = shown_at
                    .partition_point(|time| (time - from) * fps - (tick as f64) < 0.5 - 1e-6);
                let mut frame = before.max(1) - 1;
                while frame > 0 && ticks(frame - 1).abs() < ticks(frame).abs() - 1e-6 {
                    frame -= 1;
                }
                scene.frames.start + frame
            };
            cuts.push(Cut {
                scene: index,
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

    /// Plans the clips of a video that ends at `end`.
    fn clips(
        shots: &[Range<usize>],
        times: &[f64],
        end: f64,
        fps: f64,
        settings: &Settings,
    ) -> Vec<Cut> {
        plan(&scenes(shots, times, end, None), times, fps, settings)
    }

    fn picks(times: &[f64], fps: f64) -> Vec<usize> {
        let end = times[times.len() - 1] + 1.0 / rate(0.0, times).unwrap();
        clips(&whole(times), times, end, fps, &Settings::default()).remove(0).picks
    }

    #[test]
    fn frames_are_repeated_and_dropped_by_time() {
        assert_eq!(picks(&even(45, 30.0), 30.0), (0..45).collect::<Vec<_>>());
        assert_eq!(picks(&even(48, 24.0), 30.0)[..8], [0, 1, 1, 2, 3, 4, 5, 5]);
        assert_eq!(picks(&even(120, 60.0), 30.0)[..4], [0, 2, 4, 6]);
        assert_eq!(picks(&even(480, 120.0), 30.0)[..4], [0, 4, 8, 12]);
        assert_eq!(picks(&even(60, 25.0), 10.0)[..4], [0, 3, 5, 8]);
        // Every frame once where times are rounded to milliseconds.
        let rounded: Vec<f64> =
            even(90, 30.0).iter().map(|time| (time * 1000.0).round() / 1000.0).collect();
        assert_eq!(picks(&rounded, 30.0), (0..90).collect::<Vec<_>>());
        // NTSC's rate: one frame in a thousand is repeated, and none of the first 90.
        assert_eq!(picks(&even(90, 30.0 / 1.001), 30.0), (0..90).collect::<Vec<_>>());
    }

    #[test]
    fn clips_of_a_variable_frame_rate_keep_time() {
        // One second of 10 frames, then one of 50.
        let times: Vec<f64> = (0..10)
            .map(|frame| f64::from(frame) / 10.0)
            .chain((0..50).map(|frame| 1.0 + f64::from(frame) / 50.0))
            .collect();
        let cut = clips(&whole(&times), &times, 2.0, 30.0, &Settings::default()).remove(0);
        assert_eq!((cut.picks.len(), cut.picks[0], cut.picks[59]), (60, 0, 58));
        for (tick, &frame) in cut.picks.iter().enumerate() {
            let wanted = tick as f64 / 30.0;
            assert!(times[frame] < wanted + 0.5 / 30.0 && times[frame] > wanted - 0.1);
        }
        // A frame is shown until the next one.
        let slides = [0.0, 1.0, 1.2];
        assert_eq!(picks(&slides, 10.0), [[0; 10].as_slice(), &[1, 1], &[2; 6]].concat());
        assert_eq!(rate(15.0, &times).map(f64::round), Some(30.0));
        assert_eq!(rate(29.97, &even(90, 30.0)), Some(29.97));
        assert_eq!((rate(0.0, &[0.0]), rate(25.0, &[0.0])), (None, Some(25.0)));
    }

    #[test]
    fn clips_have_the_shortest_to_the_longest_length() {
        let times = even(600, 30.0);
        let shots = [0..29, 29..59, 59..200, 200..590, 590..600];
        let cuts = clips(&shots, &times, 20.0, 30.0, &Settings::default());
        let found: Vec<_> = cuts.iter().map(|cut| (cut.scene, cut.picks.len())).collect();
        assert_eq!(found, [(1, 30), (2, 141), (3, 150)]);
        assert_eq!(cuts[2].picks, (200..350).collect::<Vec<_>>());
        assert!((cuts[2].start - 200.0 / 30.0).abs() < 1e-9, "{}", cuts[2].start);
        assert!((cuts[2].end - 350.0 / 30.0).abs() < 1e-9, "{}", cuts[2].end);

        let settings = Settings { keep_long: true, ..Settings::default() };
        let cuts = clips(&shots, &times, 20.0, 30.0, &settings);
        let found: Vec<_> = cuts.iter().map(|cut| (cut.scene, cut.part, cut.picks.len())).collect();
        assert_eq!(found, [(1, 0, 30), (2, 0, 141), (3, 0, 150), (3, 1, 150), (3, 2, 90)]);
        assert_eq!(cuts[4].picks, (500..590).collect::<Vec<_>>());
    }

    #[test]
    fn scenes_are_cut_at_the_bounds_of_a_range() {
        let times = even(40, 10.0);
        let parts = |start, end| {
            let parts = scenes(&[0..16, 16..40], &times, 4.0, Some(ClipRange { start, end }));
            parts.into_iter().map(|it| (it.frames, it.start, it.end)).collect::<Vec<_>>()
        };
        assert_eq!(parts(0.0, 99.0), [(0..16, 0.0, 1.6), (16..40, 1.6, 4.0)]);
        assert_eq!(parts(1.0, 3.0), [(10..16, 1.0, 1.6), (16..30, 1.6, 3.0)]);
        assert_eq!(parts(1.6, 1.7), [(16..17, 1.6, 1.7)]);
        // Between two frames, the earlier one is shown.
        assert_eq!(parts(2.05, 2.35), [(20..24, 2.05, 2.35)]);
        assert_eq!(parts(3.5, f64::INFINITY), [(35..40, 3.5, 4.0)]);
        assert_eq!((parts(4.0, 5.0), parts(7.0, f64::INFINITY)), (vec![], vec![]));

        let range = |start, end| Some(ClipRange { start, end });
        let part = scenes(&[0..16, 16..40], &times, 4.0, range(1.0, 3.0));
        let cuts = plan(&part, &times, 10.0, &Settings::default());
        // The first part is too short.
        assert_eq!((cuts.len(), cuts[0].scene), (1, 1));
        assert_eq!((cuts[0].start, cuts[0].end), (1.6, 3.0));
        assert_eq!(cuts[0].picks, (16..30).collect::<Vec<_>>());

        // An image that is shown for ten seconds.
        let image = scenes(std::slice::from_ref(&(0..2)), &[0.0, 10.0], 11.0, range(3.0, 7.0));
        let cut = plan(&image, &[0.0, 10.0], 10.0, &Settings::default()).remove(0);
        assert_eq!((cut.start, cut.end, cut.picks), (3.0, 7.0, vec![0; 40]));
    }

    #[test]
    fn bounds_that_are_rounded_to_milliseconds_give_the_frames_of_the_range() {
        let times = even(90, 30.0 / 1.001);
        let bound = |frame: usize, shift: f64| (times[frame] * 1000.0).round() / 1000.0 + shift;
        for (first, behind) in [(7, 47), (10, 55), (31, 80)] {
            for shift in [-0.0004, 0.0, 0.0004] {
                let range = ClipRange { start: bound(first, shift), end: bound(behind, shift) };
                let part = scenes(&whole(&times), &times, 3.0, Some(range));
                let cut = plan(&part, &times, 30.0 / 1.001, &Settings::default()).remove(0);
                assert_eq!(cut.picks, (first..behind).collect::<Vec<_>>(), "{range:?}");
            }
        }
    }
}
