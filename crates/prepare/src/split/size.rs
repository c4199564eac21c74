//! The size of a clip's pictures.

use opensora_video::pillow::Resize;

/// How pictures of `[height, width]` become a clip's: the shorter side gets `shorter_side` pixels,
/// the longer one as many as keep its proportion, to the nearest even number. Pictures that are
/// smaller stay as they are, less a last row or column where that is odd (4:2:0 has even sides
/// only), unless they may be enlarged.
///
/// Source: hpcaitech/Open-Sora v1.0.0, `tools/scenedetect/utils.py`, `split_video`
/// (`scale=-2:512`). Deviation: there, small pictures are enlarged always.
///
/// # Errors
/// Where nothing is left of a side.
pub(crate) fn resize(
    source: [usize; 2],
    shorter_side: usize,
    enlarge: bool,
) -> Result<Resize, String> {
    let [height, width] = source;
    let shorter = height.min(width);
    if shorter < 2 {
        return Err(format!("its pictures are {height}x{width}, expected at least 2x2"));
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
    fn the_shorter_side_is_what_was_asked_for() {
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
    fn small_pictures_stay_and_get_even_sides() {
        let small = resize([361, 641], 512, false).unwrap();
        assert_eq!((small.resized, small.size), ([361, 641], [360, 640]));
        assert_eq!(resize([512, 911], 512, false).unwrap().size, [512, 910]);
        assert_eq!(resize([512, 911], 512, true).unwrap().size, [512, 910]);
        let error = resize([1, 640], 512, true).unwrap_err();
        assert!(error.contains("1x640"), "{error}");
    }
}
