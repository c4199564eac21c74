//! The whole pipeline: determinism, batches, latents on disk, invalid requests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::{Device, FloatDType, Tensor};
use opensora::{
    ClassToVideo, ModelFiles, Observer, PipelineError, PipelineOptions, Residency, SampleRequest,
    TextToVideo,
    checkpoint::CheckpointError,
    diffusion::{self, Ddim, Denoiser, Guidance, SampleError, Sampler, SamplerKind, StepInfo},
    latents,
    model_files::ScaleRule,
    pipeline::{
        Conditioning, Conditions, Decoded, Loaded, LoadedDenoiser, LoadedVae, Part, SamplerStep,
    },
    request::OwnSampler,
    stdit::{AttentionReuse, DenoiserWork},
    video::Frames,
};
use opensora_tests::{devices, tiny_model, with_causes};
use std::{fs::File, ops::ControlFlow, path::Path};

fn pipeline(device: &Device) -> TextToVideo {
    TextToVideo::new(tiny_model(), PipelineOptions::default(), device.clone()).unwrap()
}

fn with_residency(files: ModelFiles, residency: Residency, device: &Device) -> TextToVideo {
    let options = PipelineOptions { residency, ..PipelineOptions::default() };
    TextToVideo::new(files, options, device.clone()).unwrap()
}

const ALL_PARTS: [Part; 3] = [Part::TextEncoder, Part::Denoiser, Part::Vae];

fn small(sampler: SamplerKind) -> SampleRequest {
    SampleRequest {
        num_frames: 2,
        image_size: [16, 32],
        sampler,
        steps: Some(4),
        ..SampleRequest::default()
    }
}

fn sample(pipeline: &TextToVideo, prompts: &[&str], request: &SampleRequest) -> Vec<f32> {
    let states = pipeline.encode(prompts, request, &mut ()).unwrap();
    values(pipeline.sample(&states, request, &mut ()).unwrap().latents)
}

fn values(tensor: Tensor<5>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_repeated_run_is_bit_identical() {
    for (name, device) in devices() {
        for sampler in SamplerKind::ALL {
            let run = || sample(&pipeline(&device), &["a red fox"], &small(sampler));
            assert_eq!(run(), run(), "{name} {sampler}");
        }
    }
}

#[test]
fn a_seed_means_the_same_on_every_device() {
    for sampler in SamplerKind::ALL {
        let request = small(sampler);
        let mut first: Option<Vec<f32>> = None;
        for (name, device) in devices() {
            let latents = sample(&pipeline(&device), &["a red fox"], &request);
            let first = first.get_or_insert_with(|| latents.clone());
            let scale = first.iter().fold(1.0f32, |max, value| max.max(value.abs()));
            // The tolerance of the golden sampling cases: about 1e-4 of the largest value over 8 steps.
            let difference = largest_difference(&latents, first);
            assert!(difference <= 1e-4 * scale, "{name} {sampler}: {difference} of {scale}");
        }
    }
}

#[test]
fn another_seed_gives_other_latents() {
    let (_, device) = devices().remove(0);
    let request = small(SamplerKind::Iddpm);
    let other = SampleRequest { seed: 43, ..request.clone() };
    let pipeline = pipeline(&device);
    assert_ne!(sample(&pipeline, &["a fox"], &request), sample(&pipeline, &["a fox"], &other));
}

/// A prompt's clip depends on its position in the list, not on the batch size.
#[test]
fn batches_do_not_change_a_clip() {
    for (name, device) in devices() {
        let prompts = ["a red fox", "the sea at night, seen from a drone", ""];
        for sampler in SamplerKind::ALL {
            let one = SampleRequest { batch_size: 1, ..small(sampler) };
            let two = SampleRequest { batch_size: 2, ..one.clone() };
            let pipeline = pipeline(&device);
            let singles = sample(&pipeline, &prompts, &one);
            let pairs = sample(&pipeline, &prompts, &two);
            let scale = singles.iter().fold(1.0f32, |max, value| max.max(value.abs()));
            let difference = largest_difference(&singles, &pairs);
            assert!(difference <= 1e-4 * scale, "{name} {sampler}: {difference} of {scale}");
        }
    }
}

#[test]
fn clips_and_images_have_the_requested_size() {
    for (name, device) in devices() {
        let pipeline = pipeline(&device);
        for (num_frames, image_size) in [(1, [16, 16]), (3, [32, 16]), (5, [16, 48])] {
            let request = SampleRequest { num_frames, image_size, ..small(SamplerKind::DpmSolver) };
            let clips = pipeline.generate(&["a fox", "a bear"], &request, &mut ()).unwrap();
            assert_eq!(clips.len(), 2, "{name}");
            for clip in clips {
                assert_eq!([clip.len(), clip.height(), clip.width()][1..], image_size, "{name}");
                assert_eq!(clip.len(), num_frames, "{name}");
            }
        }
    }
}

#[test]
fn latents_on_disk_are_bit_exact() {
    let (_, device) = devices().remove(0);
    let pipeline = pipeline(&device);
    let states = pipeline.encode(&["a red fox"], &SampleRequest::default(), &mut ()).unwrap();
    let request = small(SamplerKind::DpmSolver);
    let sampled = pipeline.sample(&states, &request, &mut ()).unwrap().latents;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/latents.safetensors");
    latents::save(&path, sampled.clone(), &serde_json::json!({"seed": 1})).unwrap();
    let read = latents::load(&path, &device).unwrap();
    assert_eq!(read.dims(), sampled.dims());
    assert_eq!(values(read), values(sampled));
    // Nothing else is left in the folder.
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn models_are_loaded_one_after_the_other() {
    struct Order(Vec<Part>);
    impl Observer for Order {
        fn loading(&mut self, part: Part) {
            self.0.push(part);
        }
        fn loaded(&mut self, event: &Loaded<'_>) {
            assert_eq!(Some(&event.part), self.0.last());
            assert!(event.report.tensors > 0 && event.report.elements > 0);
        }
    }
    let (_, device) = devices().remove(0);
    let mut order = Order(vec![]);
    let request = small(SamplerKind::DpmSolver);
    pipeline(&device).generate(&["a fox"], &request, &mut order).unwrap();
    assert_eq!(order.0, ALL_PARTS);
}

#[test]
fn an_observer_stops_the_sampling() {
    let (_, device) = devices().remove(0);
    let request = small(SamplerKind::Iddpm);
    // A closure observes the steps.
    let mut stop_after_two = |event: &SamplerStep<'_>| {
        assert_eq!((event.steps, event.batch, event.batches), (4, 0, 1));
        assert_eq!(event.latents.dims(), [1, 4, 2, 2, 4]);
        if event.step == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = pipeline(&device).generate(&["a fox"], &request, &mut stop_after_two);
    let stopped = stopped.unwrap_err();
    assert!(matches!(
        stopped,
        PipelineError::Sample(SampleError::Interrupted { completed: 2, total: 4 })
    ));
}

#[test]
fn low_memory_gives_the_same_clips() {
    for (name, device) in devices() {
        let usual = pipeline(&device);
        let little = with_residency(tiny_model(), Residency::Streamed, &device);
        for sampler in SamplerKind::ALL {
            for reuse in [AttentionReuse::OFF, AttentionReuse::PUBLISHED] {
                let request = SampleRequest { attention_reuse: reuse, ..small(sampler) };
                let clips = |pipeline: &TextToVideo| {
                    let clips =
                        pipeline.generate(&["a red fox", "a bear"], &request, &mut ()).unwrap();
                    clips.iter().map(|clip| clip.data().to_vec()).collect::<Vec<_>>()
                };
                let latents = |pipeline| sample(pipeline, &["a red fox"], &request);
                let what = format!("{name} {sampler} {reuse}");
                if name == "flex" {
                    assert_eq!(latents(&little), latents(&usual), "{what}");
                }
                // The VAE's norms sum parts of a frame in another order, and products of other backends can depend on
                // the memory layout and the number of frames, so a pixel may be rounded differently.
                let (little, usual) = (clips(&little).concat(), clips(&usual).concat());
                let pixels = usual.len();
                let others: Vec<_> =
                    little.into_iter().zip(usual).filter(|(a, b)| a != b).collect();
                assert!(others.iter().all(|(a, b)| a.abs_diff(*b) <= 1), "{what}: {others:?}");
                if name == "flex" {
                    assert!(others.len() * 1000 <= pixels, "{what}: {} pixels", others.len());
                }
            }
        }
    }
}

#[test]
fn a_denoiser_truncated_while_streaming_gives_one_line() {
    let (_, device) = devices().remove(0);
    let folder = tempfile::tempdir().unwrap();
    let mut files = tiny_model();
    let cut = folder.path().join("cut.pth");
    std::fs::copy(&files.denoiser, &cut).unwrap();
    files.denoiser = cut.clone();
    let pipeline = with_residency(files, Residency::Streamed, &device);
    let request = small(SamplerKind::Iddpm);
    let mut cut_in_half = |event: &SamplerStep<'_>| {
        assert_eq!(event.step, 0, "it went on");
        let file = File::options().write(true).open(&cut).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        ControlFlow::Continue(())
    };
    let stopped = pipeline.generate(&["a fox"], &request, &mut cut_in_half).unwrap_err();
    let line = with_causes(&stopped);
    assert!(line.contains("cut.pth: tensor 'blocks.") && !line.contains('\n'), "{line}");
    let PipelineError::Sample(SampleError::Denoiser(error)) = stopped else { panic!("{line}") };
    assert!(matches!(error.downcast_ref(), Some(CheckpointError::Tensor { .. })));
}

#[test]
fn long_prompts_are_truncated_and_empty_ones_are_one_token() {
    for (name, device) in devices() {
        let long = "a very long walk ".repeat(600);
        assert!(long.len() > 10_000);
        let request = SampleRequest::default();
        let encoded = pipeline(&device).encode(&[long.as_str(), ""], &request, &mut ());
        let states = encoded.unwrap().prompts;
        assert_eq!(states.states.dims()[..2], [2, 24], "{name}");
        let kept = |row: usize| states.mask.rows()[row].iter().filter(|&&keep| keep).count();
        assert_eq!((kept(0), kept(1)), (24, 1), "{name}");
        let none: [&str; 0] = [];
        assert!(pipeline(&device).encode(&none, &request, &mut ()).is_err());
    }
}

#[test]
fn invalid_requests_are_rejected_before_any_work() {
    let (_, device) = devices().remove(0);
    let pipeline = pipeline(&device);
    let ok = small(SamplerKind::Iddpm);
    pipeline.check(&ok).unwrap();
    for (bad, says) in [
        (SampleRequest { image_size: [17, 32], ..ok.clone() }, "17x32"),
        // Eight pixels are one latent pixel, which the patch size of two does not divide.
        (SampleRequest { image_size: [16, 24], ..ok.clone() }, "patches"),
        (SampleRequest { image_size: [0, 32], ..ok.clone() }, "0x32"),
        (SampleRequest { num_frames: 0, ..ok.clone() }, "0 frames"),
        (SampleRequest { num_frames: usize::MAX, ..ok.clone() }, "too many"),
        (SampleRequest { steps: Some(0), ..ok.clone() }, "0"),
        (SampleRequest { steps: Some(1001), ..ok.clone() }, "1001"),
        (SampleRequest { batch_size: 0, ..ok.clone() }, "batch size"),
        (SampleRequest { guidance_scale: f64::NAN, ..ok.clone() }, "guidance"),
    ] {
        let error = pipeline.check(&bad).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
        assert!(pipeline.generate(&["a fox"], &bad, &mut ()).is_err());
    }
}

#[test]
fn half_precision_is_used_if_the_device_supports_it() {
    for (name, device) in devices() {
        let options = PipelineOptions { dtype: FloatDType::BF16, ..PipelineOptions::default() };
        let made = TextToVideo::new(tiny_model(), options, device.clone());
        match made {
            Ok(pipeline) => {
                let request = small(SamplerKind::DpmSolver);
                let latents = sample(&pipeline, &["a red fox"], &request);
                assert!(latents.iter().all(|value| value.is_finite()), "{name}");
            }
            Err(error) => assert!(matches!(error, PipelineError::Dtype(_)), "{name}: {error}"),
        }
    }
}

#[test]
fn attention_reuse_of_range_one_is_bit_exact_and_others_save_work() {
    let device = Device::flex();
    let pipeline = pipeline(&device);
    let prompts = ["a red fox", "rain over the sea"];
    let states = pipeline.encode(&prompts, &SampleRequest::default(), &mut ()).unwrap();
    let run = |reuse: &str, batch_size| {
        let attention_reuse: AttentionReuse = reuse.parse().unwrap();
        let request = SampleRequest {
            steps: Some(10),
            attention_reuse,
            batch_size,
            ..small(SamplerKind::DpmSolver)
        };
        let sampled = pipeline.sample(&states, &request, &mut ()).unwrap();
        (values(sampled.latents), sampled.work)
    };
    let (full, full_work): (_, DenoiserWork) = run("off", 1);
    // Two prompts, each with its null prompt, 10 steps.
    assert_eq!((full_work.forward_samples, full_work.attentions_reused), (40, 0));
    assert_eq!(
        run("spatial=1,temporal=1,cross=1,above=0,below=1000", 1),
        (full.clone(), full_work)
    );

    let (alone, work) = run("published", 1);
    assert_ne!(alone, full);
    assert!(work.attentions_reused > 0 && work.flops < full_work.flops, "{work:?}");
    // The attention cache of one prompt does not affect the next.
    let (together, _) = run("published", 2);
    let scale = alone.iter().fold(1.0f32, |max, value| max.max(value.abs()));
    let difference = largest_difference(&alone, &together);
    assert!(difference <= 1e-4 * scale, "{difference} of {scale}");
}

/// A complete batch is handed over before the next one starts.
#[test]
fn batches_are_handed_over_one_by_one() {
    let device = Device::flex();
    let pipeline = pipeline(&device);
    let request = SampleRequest { batch_size: 2, ..small(SamplerKind::DpmSolver) };
    let states = pipeline.encode(&["a fox", "rain", "the sea"], &request, &mut ()).unwrap();
    let sampled = pipeline.sample(&states, &request, &mut ()).unwrap();
    let whole = values(sampled.latents);

    let batches: Result<Vec<_>, _> =
        pipeline.latents(&states, &request, &mut ()).unwrap().collect();
    let batches = batches.unwrap();
    let clips: Vec<_> = batches.iter().map(|batch| batch.clips.clone()).collect();
    assert_eq!(clips, [0..2, 2..3]);
    assert!(batches[0].work.forward_samples > 0);
    assert_eq!(batches[1].work, sampled.work);
    let latents: Vec<_> = batches.into_iter().map(|batch| batch.latents).collect();
    assert_eq!(latents.iter().map(|latents| latents.dims()[0]).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(values(Tensor::cat(latents, 0)), whole);

    // The first batch survives what stops the second, and nothing comes after an error.
    let mut stop = |event: &SamplerStep<'_>| {
        assert_eq!(event.batches, 2);
        if event.batch == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let mut batches = pipeline.latents(&states, &request, &mut stop).unwrap();
    let first = values(batches.next().unwrap().unwrap().latents);
    assert_eq!(first, whole[..first.len()]);
    let stopped = batches.next().unwrap();
    assert!(matches!(
        stopped,
        Err(PipelineError::Sample(SampleError::Interrupted { completed: 1, total: 4 }))
    ));
    assert!(batches.next().is_none());
}

/// Clips come one by one, as `generate` and `decode` make them.
#[test]
fn clips_are_handed_over_one_by_one() {
    let device = Device::flex();
    let pipeline = pipeline(&device);
    let request = SampleRequest { batch_size: 2, ..small(SamplerKind::DpmSolver) };
    let prompts = ["a fox", "rain", "the sea"];
    let whole = pipeline.generate(&prompts, &request, &mut ()).unwrap();

    let conditioning = pipeline.encode(&prompts, &request, &mut ()).unwrap();
    let clips: Result<Vec<_>, _> =
        pipeline.clips(&conditioning, &request, &mut ()).unwrap().collect();
    let clips = clips.unwrap();
    let places: Vec<_> = clips.iter().map(|clip| (clip.index, clip.batch.clone())).collect();
    assert_eq!(places, [(0, 0..2), (1, 0..2), (2, 2..3)]);
    assert!(clips[0].work.forward_samples < clips[2].work.forward_samples);
    assert!(clips.iter().map(|clip| &clip.clip).eq(&whole));

    let latents = pipeline.sample(&conditioning, &request, &mut ()).unwrap().latents;
    struct Counts(Vec<[usize; 2]>);
    impl Observer for Counts {
        fn decoded(&mut self, event: &Decoded) -> ControlFlow<()> {
            self.0.push([event.frames, event.total]);
            if self.0.len() < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
    }
    let mut frames = Counts(vec![]);
    let decoded: Result<Vec<_>, _> =
        pipeline.decode(latents.clone(), &mut frames).unwrap().collect();
    assert_eq!(decoded.unwrap(), whole);
    assert_eq!(frames.0, [[2, 6], [4, 6], [6, 6]]);
    // The fourth event stops the decoding, and nothing comes after the error.
    let mut stopped = pipeline.decode(latents, &mut frames).unwrap();
    let error = stopped.next().unwrap().unwrap_err();
    assert!(matches!(error, PipelineError::DecodingStopped { frames: 2, total: 6 }), "{error}");
    assert!(stopped.next().is_none());
}

/// Position scales follow the request if the model does not fix them: published models divide positions by 0.5 at
/// 256 pixels and by 1.0 at 512.
#[test]
fn scales_of_a_bare_checkpoint_follow_the_request() {
    let (_, device) = devices().remove(0);
    let pipeline = |scales, space_scale| {
        let mut files = tiny_model();
        files.scales = scales;
        files.denoiser_config.scales.space_scale = space_scale;
        TextToVideo::new(files, PipelineOptions::default(), device.clone()).unwrap()
    };
    let request = |side| SampleRequest {
        num_frames: 1,
        image_size: [side, side],
        steps: Some(2),
        ..small(SamplerKind::Ddim)
    };
    let bare = pipeline(ScaleRule::ForRequest, 0.25);
    let scale = |request: &SampleRequest| bare.position_scales(request).space_scale;
    assert_eq!((scale(&request(256)), scale(&request(512))), (0.5, 1.0));
    let own = SampleRequest { space_scale: Some(0.7), ..request(512) };
    assert_eq!(scale(&own), 0.7);
    assert_eq!(bare.position_scales(&own).time_scale, 1.0);

    let at_512 = |pipeline: &TextToVideo| sample(pipeline, &["a red fox"], &request(512));
    let expected = at_512(&pipeline(ScaleRule::Fixed, 1.0));
    assert_eq!(at_512(&bare), expected);
    assert_ne!(at_512(&pipeline(ScaleRule::Fixed, 0.5)), expected);

    for bad in [0.0, -1.0, f64::NAN] {
        let request = SampleRequest { space_scale: Some(bad), ..request(256) };
        assert!(matches!(bare.check(&request), Err(PipelineError::Size(_))), "{bad}");
    }
}

#[test]
fn pipelines_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<TextToVideo>();
    shared::<ClassToVideo>();
    shared::<SampleRequest>();
    sent::<LoadedDenoiser<'_>>();
    sent::<LoadedVae<'_>>();

    let (_, device) = devices().remove(0);
    let pipeline = with_residency(tiny_model(), Residency::All, &device);
    let request = small(SamplerKind::Ddim);
    let clips = |prompt: &str| pipeline.generate(&[prompt], &request, &mut ()).unwrap();
    let (fox, sea) = std::thread::scope(|scope| {
        let fox = scope.spawn(|| clips("a red fox"));
        let sea = scope.spawn(|| clips("the sea"));
        (fox.join().unwrap(), sea.join().unwrap())
    });
    assert_eq!((clips("a red fox"), clips("the sea")), (fox, sea));
}

/// Records the loads that an observer sees.
#[derive(Default)]
struct Loads(Vec<Part>);

impl Observer for Loads {
    fn loading(&mut self, part: Part) {
        self.0.push(part);
    }
}

/// Copies the tiny model to a folder that can be deleted.
fn copied_model(folder: &Path) -> ModelFiles {
    let mut files = tiny_model();
    let copy = |from: &Path, to: &str| {
        let to = folder.join(to);
        if from.is_dir() {
            std::fs::create_dir(&to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        } else {
            std::fs::copy(from, &to).unwrap();
        }
        to
    };
    files.denoiser = copy(&files.denoiser, "denoiser.pth");
    files.t5 = copy(&files.t5, "t5");
    files.vae = copy(&files.vae, "vae");
    files
}

#[test]
fn resident_models_open_no_file_again() {
    for (name, device) in devices() {
        let made = |residency| {
            let folder = tempfile::tempdir().unwrap();
            let made = with_residency(copied_model(folder.path()), residency, &device);
            (folder, made)
        };
        let request = small(SamplerKind::Iddpm);
        // Other sizes and position scales, which do not depend on the weights.
        let other = SampleRequest {
            num_frames: 3,
            image_size: [32, 16],
            space_scale: Some(0.7),
            ..request.clone()
        };
        let clip = |pipeline: &TextToVideo, request: &SampleRequest, loads: &mut Loads| {
            pipeline.generate(&["a red fox"], request, loads)
        };
        let (_folder, fresh) = made(Residency::Sequential);
        let expected = [&request, &other, &request]
            .map(|request| clip(&fresh, request, &mut Loads::default()).unwrap());

        let (folder, all) = made(Residency::All);
        let mut loads = Loads::default();
        let first = clip(&all, &request, &mut loads).unwrap();
        assert_eq!(loads.0, ALL_PARTS, "{name}");
        // A later call that opened a file would fail.
        let path = folder.path().to_path_buf();
        folder.close().unwrap();
        assert!(!path.exists());
        let mut loads = Loads::default();
        let second = clip(&all, &other, &mut loads).unwrap();
        let third = clip(&all, &request, &mut loads).unwrap();
        assert!(loads.0.is_empty(), "{name}: {:?}", loads.0);
        let found = [first, second, third];
        if name == "flex" {
            assert!(found == expected, "{name}");
        }
        assert_eq!(found[0], found[2], "{name}");
        all.release();
        assert!(clip(&all, &request, &mut loads).is_err(), "{name}: nothing is kept any more");

        let (_folder, denoiser) = made(Residency::Denoiser);
        clip(&denoiser, &request, &mut Loads::default()).unwrap();
        let mut loads = Loads::default();
        clip(&denoiser, &other, &mut loads).unwrap();
        assert_eq!(loads.0, [Part::TextEncoder, Part::Vae], "{name}");

        let (_folder, little) = made(Residency::Streamed);
        clip(&little, &request, &mut Loads::default()).unwrap();
        let mut loads = Loads::default();
        clip(&little, &request, &mut loads).unwrap();
        assert_eq!(loads.0, ALL_PARTS, "{name}: low memory keeps nothing");
    }
}

fn one_clip(conditioning: &Conditioning, index: usize) -> Conditioning {
    conditioning.select(index..index + 1).into_owned()
}

/// The steps of `generate`, called one by one with a callback that sees latents, give the same clips.
#[test]
fn a_clip_is_made_step_by_step() {
    let (_, device) = devices().remove(0);
    let pipeline = pipeline(&device);
    let request = small(SamplerKind::Iddpm);
    let prompts = ["a red fox", "the sea"];
    let whole = pipeline.generate(&prompts, &request, &mut ()).unwrap();

    let conditioning = pipeline.encode(&prompts, &request, &mut ()).unwrap();
    let mut denoiser = pipeline.load_denoiser(&request, &mut ()).unwrap();
    let vae = pipeline.load_vae(&mut ()).unwrap();
    for (index, expected) in whole.iter().enumerate() {
        let one = one_clip(&conditioning, index);
        let mut seen = Vec::new();
        let mut see = |event: &SamplerStep<'_>| {
            assert_eq!((event.step, event.steps), (seen.len(), 4));
            seen.push(values(event.latents.clone()));
            ControlFlow::Continue(())
        };
        let latents = denoiser.sample(&one, index, &mut see).unwrap();
        assert_eq!(seen.last(), Some(&values(latents.clone())));
        let start = denoiser.initial_latents(1, index);
        assert_eq!(start.dims(), denoiser.latents_shape(1));
        let again = denoiser.sample_from(start, &one, index, &mut ()).unwrap();
        assert_eq!(values(again), values(latents.clone()));
        assert_eq!(&vae.decode(latents, &mut ()).unwrap(), expected);
    }
    let one = one_clip(&conditioning, 0);
    let other = denoiser.initial_latents(1, 0) * 0.5;
    let changed = denoiser.sample_from(other, &one, 0, &mut ()).unwrap();
    let usual = denoiser.sample(&one, 0, &mut ()).unwrap();
    assert_ne!(values(changed), values(usual));
    let short = denoiser.initial_latents(1, 0).narrow(2, 0, 1);
    let error = denoiser.sample_from(short, &one, 0, &mut ()).unwrap_err();
    assert!(error.to_string().contains("shape [1, 4, 1, 2, 4]"), "{error}");
}

#[test]
fn the_vae_encodes_what_it_can_decode() {
    let (_, device) = devices().remove(0);
    let pipeline = pipeline(&device);
    let vae = pipeline.load_vae(&mut ()).unwrap();
    let clip = Frames::from_rgb((0..3 * 16 * 32 * 3).map(|i| i as u8).collect(), [3, 16, 32]);
    let latents = vae.encode(&clip.unwrap()).unwrap();
    assert_eq!(latents.dims(), [1, 4, 3, 2, 4]);
    assert_eq!(vae.decode(latents, &mut ()).unwrap().len(), 3);
    let odd = Frames::from_rgb(vec![0; 17 * 16 * 3], [1, 17, 16]).unwrap();
    assert!(matches!(vae.encode(&odd), Err(PipelineError::VaeConfig(_))));
}

/// A negative prompt replaces the null prompt, with its own mask.
#[test]
fn a_negative_prompt_replaces_the_null_prompt() {
    for (name, device) in devices() {
        let pipeline = pipeline(&device);
        let usual = small(SamplerKind::Ddim);
        let negative =
            |text: &str| SampleRequest { negative_prompt: Some(text.to_string()), ..usual.clone() };
        let fox = |request: &SampleRequest| sample(&pipeline, &["a red fox"], request);
        assert_ne!(fox(&negative("rain over the wide sea")), fox(&usual), "{name}");
        assert_ne!(fox(&negative("rain over the wide sea")), fox(&negative("")), "{name}");
        // With the prompt as its own negative, every guidance scale gives the model's prediction.
        let plain = SampleRequest { guidance_scale: 1.0, ..usual.clone() };
        let (same, alone) = (fox(&negative("a red fox")), fox(&plain));
        let scale = alone.iter().fold(1.0f32, |max, value| max.max(value.abs()));
        let difference = largest_difference(&same, &alone);
        assert!(difference <= 1e-3 * scale, "{name}: {difference} of {scale}");
        // The negative prompt is encoded only with guidance.
        let unguided = SampleRequest { guidance_scale: 1.0, ..negative("a bear") };
        assert!(pipeline.encode(&["a fox"], &unguided, &mut ()).unwrap().negative.is_none());
        assert_eq!(fox(&unguided), alone, "{name}");
        // The same at every batch size; with low memory, both predictions in one call or in two.
        let prompts = ["a red fox", "the sea at night"];
        let pairs = SampleRequest { batch_size: 2, ..negative("rain") };
        let singles = sample(&pipeline, &prompts, &negative("rain"));
        let difference = largest_difference(&sample(&pipeline, &prompts, &pairs), &singles);
        assert!(difference <= 1e-4 * scale, "{name}: {difference} of {scale}");
    }
}

/// Equal prompts are encoded once and give different clips, each with the noise of its position.
#[test]
fn several_clips_of_one_prompt_differ_in_their_noise() {
    let (_, device) = devices().remove(0);
    let pipeline = pipeline(&device);
    let request = small(SamplerKind::Ddim);
    let list = ["a fox", "a fox", "a bear", "a fox"];
    let all = sample(&pipeline, &list, &request);
    let clips: Vec<&[f32]> = all.chunks(all.len() / list.len()).collect();
    let scale = all.iter().fold(1.0f32, |max, value| max.max(value.abs()));
    assert!(largest_difference(clips[0], clips[1]) > 0.1 * scale);
    for (index, prompt) in list.iter().enumerate() {
        let alone = SampleRequest { noise_index: index as u64, ..request.clone() };
        let difference = largest_difference(&sample(&pipeline, &[prompt], &alone), clips[index]);
        assert!(difference <= 1e-4 * scale, "{index}: {difference} of {scale}");
    }
}

/// A user's sampler: one step of DDIM.
#[derive(Debug)]
struct Leap(Ddim);

impl Sampler for Leap {
    fn name(&self) -> &str {
        "leap"
    }

    fn steps(&self) -> usize {
        1
    }

    fn sample(
        &self,
        model: &dyn Denoiser,
        guidance: &Guidance,
        latents: Tensor<5>,
        _noise: &mut dyn FnMut(usize) -> Tensor<5>,
        observer: &mut dyn diffusion::Observer,
    ) -> Result<Tensor<5>, SampleError> {
        guidance.check()?;
        let channels = latents.dims()[1];
        let tables = self.0.process().tables();
        let timestep = tables.timestep_map[0] as f32;
        let eps = guidance.predict(model, &latents, timestep, channels)?;
        let clean = latents.mul_scalar(tables.sqrt_recip_alphas_cumprod[0])
            - eps.mul_scalar(tables.sqrt_recipm1_alphas_cumprod[0]);
        StepInfo::new(0, 1, timestep, &clean).report(observer)?;
        Ok(clean)
    }
}

#[test]
fn a_users_sampler_plugs_in() {
    let (_, device) = devices().remove(0);
    let pipeline = pipeline(&device);
    let own = OwnSampler::new(Leap(Ddim::with_steps(1).unwrap()));
    let request = SampleRequest { own_sampler: Some(own.clone()), ..small(SamplerKind::Iddpm) };
    assert_eq!(request, request.clone());
    assert_eq!(request.sampler().unwrap().name(), "leap");
    assert_eq!(request.guidance().guided_channels, None);
    let found = sample(&pipeline, &["a red fox"], &request);
    let all_channels =
        SampleRequest { steps: Some(1), guided_channels: Some(4), ..small(SamplerKind::Ddim) };
    let expected = sample(&pipeline, &["a red fox"], &all_channels);
    let scale = expected.iter().fold(1.0f32, |max, value| max.max(value.abs()));
    let difference = largest_difference(&found, &expected);
    assert!(difference <= 1e-5 * scale, "{difference} of {scale}");
}
