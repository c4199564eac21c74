//! Sequence parameter sets of H.264: size, colours and pixel aspect of a stream.
//!
//! The codec library neither writes nor reads the VUI, so this module does. Source: ITU-T H.264, 7.3.2.1.1
//! (syntax), 7.4.2.1.1 (cropping) and annex E.1.1 (VUI).

use crate::{aspect::PixelAspect, error::Cause, refusal::Refusal};

/// Profiles whose parameter sets state the chroma format (7.3.2.1.1).
const HIGH_PROFILES: [u32; 13] = [44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244];
/// Maximum number of reference frames (A.3.1).
const MAX_REFERENCES: u32 = 16;
/// Type of a NAL unit with a sequence parameter set.
pub(crate) const NAL_TYPE: u8 = 7;

/// Sample aspect ratios by `aspect_ratio_idc` (table E-1).
const ASPECTS: [(u32, u32); 17] = [
    (0, 0),
    (1, 1),
    (12, 11),
    (10, 11),
    (16, 11),
    (40, 33),
    (24, 11),
    (20, 11),
    (32, 11),
    (80, 33),
    (18, 11),
    (15, 11),
    (64, 33),
    (160, 99),
    (4, 3),
    (3, 2),
    (2, 1),
];

/// The colour description of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour {
    /// `matrix_coefficients` (H.264, table E-5); 2 if unspecified.
    pub matrix: u8,
    /// Luma is 0..=255 instead of 16..=235.
    pub full_range: bool,
}

/// The used fields of a sequence parameter set.
#[derive(Debug)]
pub(crate) struct Sps {
    /// Width of shown frames in pixels.
    pub(crate) width: usize,
    /// Height of shown frames in pixels.
    pub(crate) height: usize,
    /// Colour description, if stated.
    pub(crate) colour: Option<Colour>,
    /// Pixel aspect, if stated.
    pub(crate) aspect: Option<PixelAspect>,
    references: u32,
    /// Number of bits before `vui_parameters_present_flag`.
    before_vui: usize,
}

impl Sps {
    /// Parses a NAL unit (with its header byte, without start code).
    pub(crate) fn parse(nal: &[u8]) -> Result<Self, Refusal> {
        let bytes = unescape(nal);
        if bytes.first().is_none_or(|header| header & 0x1f != NAL_TYPE) {
            return Err(Refusal::unusable("damaged: not a sequence parameter set"));
        }
        let mut bits = Bits { bytes: &bytes, at: 8 };
        Self::fields(&mut bits)
            .ok_or_else(|| Refusal::unusable("damaged: its sequence parameter set is cut short"))?
    }

    /// Reads the fields from the profile on; `None` if the bits end too early.
    fn fields(bits: &mut Bits) -> Option<Result<Self, Refusal>> {
        let profile = bits.take(8)?;
        bits.take(16)?; // constraint flags, level_idc
        bits.ue()?; // seq_parameter_set_id
        if HIGH_PROFILES.contains(&profile)
            && let Err(refusal) = Self::high_profile(bits)?
        {
            return Some(Err(refusal));
        }
        bits.ue()?; // log2_max_frame_num_minus4
        Self::skip_picture_order(bits)?;
        let references = bits.ue()?;
        if references > MAX_REFERENCES {
            return Some(Err(Refusal::unusable(format!(
                "damaged: it declares {references} reference frames, at most {MAX_REFERENCES} are \
                 possible"
            ))));
        }
        bits.take(1)?; // gaps_in_frame_num_value_allowed_flag
        let width = (u64::from(bits.ue()?) + 1) * 16;
        let rows = (u64::from(bits.ue()?) + 1) * 16;
        let frames_only = bits.flag()?;
        if !frames_only {
            bits.take(1)?; // mb_adaptive_frame_field_flag
        }
        let fields = if frames_only { 1 } else { 2 };
        let height = rows * fields;
        bits.take(1)?; // direct_8x8_inference_flag
        let mut crop = [0u64; 4]; // left, right, top, bottom
        if bits.flag()? {
            for side in &mut crop {
                *side = bits.ue()?.into();
            }
        }
        // In 4:2:0, cropping is counted in chroma samples (7-19 to 7-22).
        let (crop_x, crop_y) = (2 * (crop[0] + crop[1]), 2 * fields * (crop[2] + crop[3]));
        let shown = |size: u64, crop: u64| {
            size.checked_sub(crop).filter(|&shown| shown > 0).and_then(|n| usize::try_from(n).ok())
        };
        let Some((width, height)) = shown(width, crop_x).zip(shown(height, crop_y)) else {
            let words = format!("damaged: it crops {crop_y}x{crop_x} of {height}x{width}");
            return Some(Err(Refusal::unusable(words)));
        };
        if crop[0] != 0 || crop[2] != 0 {
            // The decoder only crops at the right and bottom.
            return Some(Err(Refusal::unsupported("frames that are cropped at the top or left")));
        }
        let before_vui = bits.at;
        let mut it = Self { width, height, colour: None, aspect: None, references, before_vui };
        if bits.flag()? {
            it.aspect = Self::vui_aspect(bits)?;
            it.colour = Self::vui_colour(bits)?;
        }
        Some(Ok(it))
    }

    /// Reads the fields of high profiles. Formats other than 8-bit 4:2:0 are rejected.
    fn high_profile(bits: &mut Bits) -> Option<Result<(), Refusal>> {
        let chroma = bits.ue()?;
        if chroma != 1 {
            return Some(Err(match chroma {
                0 => Refusal::unsupported("grey video (4:0:0)"),
                2 => Refusal::unsupported("4:2:2 video"),
                3 => Refusal::unsupported("4:4:4 video"),
                _ => Refusal::unusable("damaged: no such chroma format"),
            }));
        }
        let (luma, chroma) = (bits.ue()?, bits.ue()?);
        if (luma, chroma) != (0, 0) {
            let depth = luma.max(chroma).saturating_add(8);
            return Some(Err(Refusal::unsupported(format!("video of {depth} bits"))));
        }
        bits.take(1)?; // qpprime_y_zero_transform_bypass_flag
        if bits.flag()? {
            for list in 0..8 {
                if bits.flag()? {
                    bits.skip_scaling_list(if list < 6 { 16 } else { 64 })?;
                }
            }
        }
        Some(Ok(()))
    }

    /// Skips the fields of the picture order count.
    fn skip_picture_order(bits: &mut Bits) -> Option<()> {
        match bits.ue()? {
            0 => _ = bits.ue()?, // log2_max_pic_order_cnt_lsb_minus4
            1 => {
                bits.take(1)?;
                bits.ue()?; // offsets are signed, but of the same length
                bits.ue()?;
                for _ in 0..bits.ue()? {
                    bits.ue()?;
                }
            }
            _ => {}
        }
        Some(())
    }

    fn vui_aspect(bits: &mut Bits) -> Option<Option<PixelAspect>> {
        if !bits.flag()? {
            return Some(None);
        }
        let (width, height) = match bits.take(8)? as usize {
            255 => (bits.take(16)?, bits.take(16)?),
            code => ASPECTS.get(code).copied().unwrap_or_default(),
        };
        Some(PixelAspect::stated(width.into(), height.into()))
    }

    fn vui_colour(bits: &mut Bits) -> Option<Option<Colour>> {
        if bits.flag()? {
            bits.take(1)?; // overscan_appropriate_flag
        }
        if !bits.flag()? {
            return Some(None);
        }
        bits.take(3)?; // video_format
        let full_range = bits.flag()?;
        let matrix = if bits.flag()? { (bits.take(24)? & 0xff) as u8 } else { 2 };
        Some(Some(Colour { matrix, full_range }))
    }
}

/// Replaces the VUI of a NAL unit: square pixels, limited range, BT.709 primaries with the given matrix, chroma
/// samples at the centre of their four pixels (as `crate::color` averages them), and no reordering, so that a
/// player can show each frame immediately.
pub(crate) fn with_colour(nal: &[u8], matrix: u8) -> Result<Vec<u8>, Cause> {
    let sps = Sps::parse(nal)?;
    let bytes = unescape(nal);
    let mut kept = Bits { bytes: &bytes, at: 0 };
    let mut out = BitWriter::default();
    for _ in 0..sps.before_vui {
        out.put(1, kept.take(1).ok_or("a parameter set shrank")?);
    }
    out.put(1, 1); // vui_parameters_present_flag
    out.put(1, 1); // aspect_ratio_info_present_flag
    out.put(8, 1); // aspect_ratio_idc: square
    out.put(1, 0); // overscan_info_present_flag
    out.put(1, 1); // video_signal_type_present_flag
    out.put(3, 5); // video_format: unspecified
    out.put(1, 0); // video_full_range_flag
    out.put(1, 1); // colour_description_present_flag
    out.put(8, 1); // colour_primaries: BT.709
    out.put(8, 1); // transfer_characteristics: BT.709
    out.put(8, matrix.into());
    out.put(1, 1); // chroma_loc_info_present_flag
    out.ue(1); // top field: centre
    out.ue(1); // bottom field: centre
    out.put(4, 0); // no timing info (the container has it), no HRD twice, no pic_struct
    out.put(1, 1); // bitstream_restriction_flag
    out.put(1, 1); // motion_vectors_over_pic_boundaries_flag
    out.ue(0); // max_bytes_per_pic_denom: no limit
    out.ue(0); // max_bits_per_mb_denom: no limit
    out.ue(15); // log2_max_mv_length_horizontal
    out.ue(15); // log2_max_mv_length_vertical
    out.ue(0); // max_num_reorder_frames
    out.ue(sps.references); // max_dec_frame_buffering
    Ok(escape(&out.finish()))
}

/// Removes the emulation prevention bytes (7.4.1).
fn unescape(nal: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        bytes.push(byte);
    }
    bytes
}

/// Inserts emulation prevention bytes (7.4.1).
fn escape(bytes: &[u8]) -> Vec<u8> {
    let mut nal = Vec::with_capacity(bytes.len() + 4);
    let mut zeros = 0;
    for &byte in bytes {
        if zeros >= 2 && byte <= 3 {
            nal.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        nal.push(byte);
    }
    nal
}

/// A bit reader, most significant bit first; reads return `None` at the end.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// Reads up to 32 bits as a number.
    fn take(&mut self, count: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.take(1)? == 1)
    }

    /// Reads an unsigned Exp-Golomb code (9.1).
    fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
        }
        let rest = if zeros < 32 { self.take(zeros)? } else { return None };
        (1u32 << zeros).checked_add(rest).map(|code| code - 1)
    }

    /// Skips a scaling list (7.3.2.1.1.1).
    fn skip_scaling_list(&mut self, size: usize) -> Option<()> {
        let (mut last, mut next) = (8i64, 8i64);
        for _ in 0..size {
            if next != 0 {
                let code = i64::from(self.ue()?);
                let delta = if code % 2 == 1 { code / 2 + 1 } else { -(code / 2) };
                next = (last + delta).rem_euclid(256);
            }
            last = if next == 0 { last } else { next };
        }
        Some(())
    }
}

#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    free: u32,
}

impl BitWriter {
    fn put(&mut self, count: u32, value: u32) {
        for bit in (0..count).rev() {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            self.free -= 1;
            if let Some(last) = self.bytes.last_mut() {
                *last |= ((value >> bit & 1) as u8) << self.free;
            }
        }
    }

    fn ue(&mut self, value: u32) {
        let length = 32 - (value + 1).leading_zeros();
        self.put(length - 1, 0);
        self.put(length, value + 1);
    }

    /// Adds the stop bit and returns the bytes.
    fn finish(mut self) -> Vec<u8> {
        self.put(1, 1);
        self.bytes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Main profile, level 3.0, 318x238 in 20x15 macroblocks, no VUI.
    fn example() -> Vec<u8> {
        example_of(20, 15)
    }

    /// The same with another number of macroblocks.
    pub(crate) fn example_of(columns: u32, rows: u32) -> Vec<u8> {
        let mut out = BitWriter::default();
        out.put(8, 0x67);
        out.put(24, 0x4d_00_1e);
        for code in [0, 0, 0, 0, 2] {
            out.ue(code); // id, frame_num, order type 0 and its length, two references
        }
        out.put(1, 0);
        out.ue(columns - 1);
        out.ue(rows - 1);
        out.put(3, 0b111); // frames only, direct 8x8, cropping
        for crop in [0, 1, 0, 1] {
            out.ue(crop);
        }
        out.put(1, 0);
        out.finish()
    }

    #[test]
    fn size_is_what_is_left_of_the_crop() {
        let sps = Sps::parse(&example()).unwrap();
        assert_eq!((sps.width, sps.height, sps.colour, sps.references), (318, 238, None, 2));
        assert_eq!(sps.aspect, None);
    }

    #[test]
    fn colour_is_added_and_read_back() {
        for matrix in [1, 6] {
            let nal = with_colour(&example(), matrix).unwrap();
            let sps = Sps::parse(&nal).unwrap();
            assert_eq!((sps.width, sps.height), (318, 238));
            assert_eq!(sps.colour, Some(Colour { matrix, full_range: false }));
            assert_eq!(sps.aspect, Some(PixelAspect::SQUARE));
            assert!(!nal.windows(3).any(|bytes| bytes[..2] == [0, 0] && bytes[2] < 3));
            // A second call replaces the VUI.
            assert_eq!(with_colour(&nal, matrix).unwrap(), nal);
        }
    }

    #[test]
    fn escapes_are_undone() {
        for bytes in [&[0, 0, 0, 0, 0, 1, 0, 0, 3][..], &[1, 0, 0, 2, 0, 0, 4], &[0, 0], &[]] {
            assert_eq!(unescape(&escape(bytes)), bytes);
            assert!(!escape(bytes).windows(3).any(|b| b[..2] == [0, 0] && b[2] < 3));
        }
    }

    #[test]
    fn what_is_cut_or_absurd_is_refused() {
        let nal = with_colour(&example(), 6).unwrap();
        for length in 0..nal.len() - 8 {
            assert!(Sps::parse(&nal[..length]).is_err(), "{length}");
        }
        for bit in 0..8 * nal.len() {
            let mut flipped = nal.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = Sps::parse(&flipped);
        }
        // High 4:4:4: the chroma format stands behind the identifier.
        let mut out = BitWriter::default();
        out.put(8, 0x67);
        out.put(24, 0xf4_00_1e);
        out.ue(0);
        out.ue(3);
        assert!(Sps::parse(&out.finish()).unwrap_err().to_string().contains("4:4:4"));
        assert!(Sps::parse(&[0x67; 3]).is_err() && Sps::parse(&[0x68, 0, 0]).is_err());
        assert!(Sps::parse(&[[0x67, 0x4d, 0, 30].as_slice(), &[0; 90]].concat()).is_err());
    }
}
