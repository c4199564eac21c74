//! The frame size of clips.

use crate::RowError;
use opensora_video::pillow::Resize;

/// Returns the scaling of frames of `[height, width]` for a clip: to `shorter_side` pixels on the shorter
/// side, with the aspect ratio of the frames to the nearest even number of pixels. Smaller frames are
/// not enlarged unless `enlarge` is set, only cropped to even sides, which 4:2:0 needs.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `tools/scenedetect/utils.py`, `split_video`
/// (`scale=-2:512`). Deviation: the reference always enlarges small frames.
///
/// # Errors
/// Returns an error if a side has less than 2 pixels.
pub(crate) fn resize(
    source: [usize; 2],
    shorter_side: usize,
    enlarge: bool,
) -> Result<Resize, RowError> {
    let [height, width] = source;
    let shorter = height.min(width);
    if shorter < 2 {
        return Err(format!("its frames are {height}x{width}, expected at least 2x2").into());
    }
    if shorter < shorter_side && !enlarge || shorter == shorter_side {
        let size = source.map(|side| side - side % 2);
        return Ok(Resize { source, resized: source, offset: [0, 0], size });
    }
    let side = |pixels: usize| {
        let halves = (pixels as f64 * shorter_side as f64 / shorter as f64 / 2.0).round();
        2 * (halves as usize)
    };
    Ok(Resize::whole(source, source.map(side)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_side_has_the_requested_size() {
        let size = |source, side, enlarge| resize(source, side, enlarge).unwrap().size;
        assert_eq!(size([1080, 1920], 512, false), [512, 910]);
        assert_eq!(size([1920, 1080], 512, false), [910, 512]);
        assert_eq!(size([720, 720], 512, false), [512, 512]);
        // Sizes that a scale factor in floating point turns into 255.
        for shorter in 257..2000 {
            assert_eq!(size([shorter, 2 * shorter], 256, false), [256, 512]);
        }
        assert_eq!(size([360, 640], 512, true), [512, 910]);
    }

    #[test]
    fn small_frames_are_cropped_to_even_sides() {
        let small = resize([361, 641], 512, false).unwrap();
        assert_eq!((small.resized, small.size), ([361, 641], [360, 640]));
        assert_eq!(resize([512, 911], 512, false).unwrap().size, [512, 910]);
        assert_eq!(resize([512, 911], 512, true).unwrap().size, [512, 910]);
        let error = resize([1, 640], 512, true).unwrap_err().to_string();
        assert!(error.contains("1x640"), "{error}");
    }
}
