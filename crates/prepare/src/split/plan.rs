//! Chooses the frames of each clip.

use super::Settings;
use std::ops::Range;

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

/// Plans the clips of a video at `fps` frames per second. `times` are the seconds at which its frames
/// are shown, not decreasing; `video_end` is the second at which the last frame ends.
///
/// A scene gives one clip, which is the beginning of a scene longer than the longest clip; with
/// `keep_long` a scene gives as many clips as fit. Each frame of a clip shows the scene's nearest frame if
/// that is within half a frame duration, and otherwise the last frame before its time. So times that
/// containers round do not repeat frames, and an image that is shown for seconds is not cut short.
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
    // A single frame is an image, not a clip.
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
                // Slightly below one half, so that ties always fall on the same side.
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
        let cut = plan(&whole(&times), &times, 2.0, 30.0, &Settings::default()).remove(0);
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
