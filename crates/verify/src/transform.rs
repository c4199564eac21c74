//! Cases of kind `video-transform`: pixels and frame numbers, computed on the host.

use super::{Case, Check, Failure, Output, Outputs};
use burn::tensor::Device;
use opensora::data::{
    ClipSpec,
    transform::{self, ResizeCrop},
    window::{frame_indices, last_begin, linspace},
};
use opensora::video::Frames;
use serde::Deserialize;
use std::{collections::BTreeMap, fmt::Debug};

pub(super) fn run(case: &Case, _: &Device) -> Result<Outputs, Failure> {
    let mut outputs = Outputs::new();
    for clip in case.get::<Vec<Video>>("/videos")? {
        video(case, &clip, &mut outputs)?;
    }
    for picture in case.get::<Vec<Image>>("/images")? {
        image(case, &picture, &mut outputs)?;
    }
    windows(case, &mut outputs)?;
    sides(case, &mut outputs)?;
    Ok(outputs)
}

#[derive(Deserialize)]
struct Video {
    input: String,
    resolution: usize,
    resized_hw: [usize; 2],
    crop_ij: [usize; 2],
}

fn video(case: &Case, clip: &Video, outputs: &mut Outputs) -> Result<(), Failure> {
    let (bytes, shape) = bytes(case, &clip.input)?;
    let [t, c, height, width] = shape[..] else {
        return Err(
            format!("input '{}' has shape {shape:?}, expected [T, C, H, W]", clip.input).into()
        );
    };
    // [T, C, H, W] -> [T, H, W, C]
    let area = height * width;
    let rgb = (0..t * area * c).map(|at| {
        let (frame, pixel, channel) = (at / (c * area), at / c % area, at % c);
        bytes[(frame * c + channel) * area + pixel]
    });
    let frames = Frames::from_rgb(rgb.collect(), [t, height, width])?;
    let indices: Vec<usize> = (0..t).collect();
    let place = ResizeCrop::of_video([height, width], [clip.resolution; 2]);

    let mut push = |name: &str, place: &ResizeCrop, flip: bool, signed: bool| {
        let mut values = transform::video(&frames, &indices, place, flip);
        if signed {
            transform::normalize(&mut values);
        }
        // [C, T, H, W] -> [T, C, H, W]
        let [h, w] = place.size;
        let planes: Vec<&[f32]> = values.chunks_exact(h * w).collect();
        let order = (0..t).flat_map(|frame| (0..3).map(move |channel| channel * t + frame));
        let values = order.flat_map(|plane| planes[plane]).map(|&value| f64::from(value)).collect();
        let output = Output::Values { values, shape: vec![t, 3, h, w] };
        outputs.push((format!("{}.{name}", clip.input), output));
    };
    push("totensor_resized", &place.whole(), false, false);
    push("out", &place, false, true);
    push("out_hflip", &place, true, true);

    let places = [(place.resized, clip.resized_hw), (place.offset, clip.crop_ij)];
    outputs.push((format!("{}.place", clip.input), equal(places)));
    Ok(())
}

#[derive(Deserialize)]
struct Image {
    input: String,
    image_size: usize,
}

fn image(case: &Case, picture: &Image, outputs: &mut Outputs) -> Result<(), Failure> {
    let (bytes, shape) = bytes(case, &picture.input)?;
    let [height, width, 3] = shape[..] else {
        let name = &picture.input;
        return Err(format!("input '{name}' has shape {shape:?}, expected [H, W, 3]").into());
    };
    let side = picture.image_size;
    let rgb = transform::image(&bytes, [height, width], [side; 2]);
    let mut values = transform::repeat(&rgb, 1);
    transform::normalize(&mut values);
    let mut push = |name: &str, values: Vec<f64>, shape: [usize; 3]| {
        let output = Output::Values { values, shape: shape.to_vec() };
        outputs.push((format!("{}.{name}", picture.input), output));
    };
    push("center_crop_u8", rgb.into_iter().map(f64::from).collect(), [side, side, 3]);
    push("out", values.into_iter().map(f64::from).collect(), [3, side, side]);
    Ok(())
}

#[derive(Deserialize)]
struct Window {
    total_frames: usize,
    num_frames: usize,
    frame_interval: usize,
    randint_range_inclusive: [usize; 2],
    begin: usize,
    frame_indices: Option<Vec<usize>>,
}

#[derive(Deserialize)]
struct Linspace {
    begin: usize,
    end: usize,
    num_frames: usize,
    frame_indices: Vec<usize>,
}

fn windows(case: &Case, outputs: &mut Outputs) -> Result<(), Failure> {
    let crops = case.get::<Vec<Window>>("/temporal_crop")?.into_iter().map(|crop| {
        let spec = ClipSpec {
            num_frames: crop.num_frames,
            frame_interval: crop.frame_interval,
            image_size: [1, 1],
            horizontal_flip: false,
            variants: None,
        };
        let indices = frame_indices(&spec, crop.total_frames, crop.begin);
        let range = [0, last_begin(&spec, crop.total_frames)];
        ((range, indices), (crop.randint_range_inclusive, crop.frame_indices))
    });
    outputs.push(("temporal_crop".into(), equal(crops)));
    let rows = case.get::<Vec<Linspace>>("/linspace")?.into_iter();
    let rows = rows.map(|row| (linspace(row.begin, row.end, row.num_frames), row.frame_indices));
    outputs.push(("linspace".into(), equal(rows)));
    Ok(())
}

/// Checks the sizes for which the reference fails: there the clip has its full size (a deviation).
fn sides(case: &Case, outputs: &mut Outputs) -> Result<(), Failure> {
    let key = "short_sides_where_the_reference_raises";
    let lists: BTreeMap<usize, Vec<usize>> = case.get(&format!("/{key}"))?;
    let places = lists.into_iter().flat_map(|(side, sources)| {
        sources.into_iter().map(move |source| {
            let place = ResizeCrop::of_video([source, 2 * source], [side; 2]);
            ((source, place.resized[0], place.size), (source, side, [side; 2]))
        })
    });
    outputs.push((key.into(), equal(places)));
    Ok(())
}

/// Returns a `u8` input and its shape.
fn bytes(case: &Case, name: &str) -> Result<(Vec<u8>, Vec<usize>), Failure> {
    let (values, shape) = case.integers(name)?;
    let bytes = values.into_iter().map(u8::try_from).collect::<Result<_, _>>()?;
    Ok((bytes, shape))
}

/// Compares pairs of computed and expected values.
fn equal<T: PartialEq + Debug>(pairs: impl IntoIterator<Item = (T, T)>) -> Output {
    let pairs: Vec<(T, T)> = pairs.into_iter().collect();
    let different: Vec<_> = pairs.iter().filter(|(got, want)| got != want).collect();
    let first = different.first().map(|(got, want)| format!("{got:?}, expected {want:?}"));
    Output::Check(Check::exact(different.len(), pairs.len(), first))
}
