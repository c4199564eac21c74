//! Tests of runs from recipes: the lock of the folder, checks that need no model, the finished model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::tensor::Device;
use opensora_checkpoint::{Checkpoint, ExportOptions, export};
use opensora_data::{
    ClipDataset, Manifest, Row,
    cache::{self, CacheJob, CacheKey},
    encode::{ClipEncoder, EncoderConfig},
};
use opensora_files::{Lock, error_line};
use opensora_parallel::{Group, threads::run_ranks};
use opensora_t5::{T5Config, fit_tokenizer, keys as t5_keys};
use opensora_train::{
    Observer, Outcome, Ranks, Recipe, Session, TrainError,
    observer::{CacheDoubted, CheckpointDamaged, DescriptionOmitted, Resumed, RowsMissing},
};
use opensora_vae::{VaeConfig, keys as vae_keys};
use opensora_video::{Frames, VideoSpec, Writer};
use std::{fs, path::Path};

/// Keeps the text of events that a user should know.
#[derive(Default)]
struct Messages(Vec<String>);

impl Observer for Messages {
    fn cache_doubted(&mut self, event: &CacheDoubted<'_>) {
        self.0.push(event.to_string());
    }

    fn resumed(&mut self, event: &Resumed) {
        self.0.push(event.to_string());
    }

    fn checkpoint_damaged(&mut self, event: &CheckpointDamaged<'_>) {
        self.0.push(event.to_string());
    }

    fn rows_missing(&mut self, event: &RowsMissing) {
        self.0.push(event.to_string());
    }

    fn description_omitted(&mut self, event: &DescriptionOmitted) {
        self.0.push(event.to_string());
    }
}

const VAE: &str = r#"
[vae.config]
block_out_channels = [8, 8, 8]
layers_per_block = 1
norm_num_groups = 4
[data.clip]
num_frames = 1
image_size = [32, 32]
[run]
steps = 1
batch_size = 1
workers = 0
"#;

const STDIT: &str = r#"
[stdit.config]
caption_channels = 16
model_max_length = 8
hidden_size = 32
depth = 1
num_heads = 2
[data.clip]
num_frames = 2
frame_interval = 2
image_size = [32, 32]
[run]
steps = 1
batch_size = 1
workers = 0
"#;

/// A video of four frames at 10 a second, and its manifest.
fn data(folder: &Path) {
    let clip = Frames::from_rgb(vec![77; 4 * 32 * 32 * 3], [4, 32, 32]).unwrap();
    let spec = VideoSpec { frames: 4, width: 32, height: 32, fps: 10.0 };
    let path = folder.join("a.mp4");
    Writer::open(&path, &spec).unwrap().write(&clip, &serde_json::Value::Null).unwrap();
    let row = Row { path, caption: "a red circle".into(), num_frames: Some(4) };
    Manifest { rows: vec![row] }.write(&folder.join("clips.csv")).unwrap();
}

fn vae_config() -> VaeConfig {
    VaeConfig {
        block_out_channels: vec![8, 8, 8],
        layers_per_block: 1,
        norm_num_groups: 4,
        ..VaeConfig::default()
    }
}

fn t5_config() -> T5Config {
    T5Config {
        vocab_size: 120,
        d_model: 16,
        d_kv: 4,
        d_ff: 32,
        num_layers: 1,
        num_heads: 2,
        ..T5Config::default()
    }
}

/// Configurations of a VAE and a text encoder, without weights.
fn configs(folder: &Path) {
    fs::create_dir_all(folder.join("vae")).unwrap();
    fs::create_dir_all(folder.join("t5")).unwrap();
    let config = serde_json::to_string(&vae_config()).unwrap();
    fs::write(folder.join("vae/config.json"), config).unwrap();
    t5_config().write(&folder.join("t5/config.json")).unwrap();
}

fn weights(folder: &Path) {
    let device = Device::flex();
    let vae = vae_config().init(&device).unwrap();
    let map = vae_keys::Naming::Diffusers.key_map(&vae_config());
    let path = folder.join("vae/diffusion_pytorch_model.safetensors");
    export(&vae, &map, ExportOptions::default(), &path).unwrap();
    fit_tokenizer(["a red circle grows"], 120).unwrap().save(&folder.join("t5")).unwrap();
    let t5 = t5_config().init(&device).unwrap();
    let map = t5_keys::Layout::PUBLISHED.key_map();
    export(&t5, &map, ExportOptions::default(), &folder.join("t5/model.safetensors")).unwrap();
}

fn session(folder: &Path, recipe: Recipe) -> Session {
    let folder = folder.join("run");
    Session {
        recipe,
        folder,
        resume: false,
        peak_flops: None,
        device: Device::flex(),
        ranks: Ranks::default(),
    }
}

fn stdit(folder: &Path) -> Recipe {
    let mut recipe = Recipe::parse(STDIT).unwrap();
    recipe.data.manifest = Some(folder.join("clips.csv"));
    let part = recipe.stdit.as_mut().unwrap();
    (part.vae, part.t5) = (Some(folder.join("vae")), Some(folder.join("t5")));
    recipe
}

/// Encodes the rows of the manifest into `cache`, each in a separate shard.
fn encode(folder: &Path, max_length: usize) {
    let (clip, seed) = (Recipe::parse(STDIT).unwrap().data.clip, 42);
    let manifest = Manifest::read(&folder.join("clips.csv")).unwrap();
    let dataset = ClipDataset::new(manifest, clip.clone(), seed).unwrap();
    let (vae, t5) = (folder.join("vae"), folder.join("t5"));
    let encoder = EncoderConfig { vae, t5, max_length, vae_micro_batch: None };
    let key = CacheKey::new(&clip, seed, &encoder).unwrap();
    let encoder = ClipEncoder::load(&encoder, &Device::flex()).unwrap();
    let job = CacheJob::new(&dataset, &encoder, &key).with_shard_bytes(1);
    cache::write(&job, &folder.join("cache"), &mut ()).unwrap();
}

/// A recipe for the cache of [`encode`] and prompts of up to 64 tokens.
fn cached(folder: &Path) -> Recipe {
    let mut recipe = stdit(folder);
    recipe.data.cache = Some(folder.join("cache"));
    recipe.stdit.as_mut().unwrap().config.model_max_length = 64;
    recipe
}

/// Changes the last bit of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Prepares a run, and returns the error on one line if that fails.
fn prepare(session: &Session) -> Result<(), String> {
    session.prepare().map(drop).map_err(|error| error_line(&error))
}

#[test]
fn a_folder_has_one_run_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    data(folder.path());
    let mut recipe = Recipe::parse(VAE).unwrap();
    recipe.data.manifest = Some(folder.path().join("clips.csv"));
    let session = session(folder.path(), recipe);
    let prepared = session.prepare().unwrap();
    let error = session.run(&mut (), &mut ()).unwrap_err();
    assert!(matches!(error, TrainError::Locked { .. }), "{error}");
    let words = format!("in use by process {}", std::process::id());
    assert!(error_line(&error).ends_with(&words), "{}", error_line(&error));
    // A run that did not start leaves no folder.
    drop(prepared);
    assert!(!folder.path().join("run").exists());

    let outcome = session.run(&mut (), &mut ()).unwrap();
    assert!(matches!(outcome, Outcome::Finished(progress) if progress.step == 1));
    assert!(!folder.path().join("run/.lock").exists());
    let again = session.run(&mut (), &mut ()).unwrap_err();
    assert!(again.to_string().contains("already holds a run"), "{again}");
    drop(Lock::take(&folder.path().join("run/.lock")).unwrap());
}

#[test]
fn ranks_with_different_recipes_do_not_train() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    /// Change of a recipe, and the words of its error.
    type Case = (fn(&mut Recipe), &'static str);
    let changes: [Case; 3] = [
        (
            |recipe| recipe.optimizer.learning_rate = 0.5,
            "optimizer.learning_rate is 0.5, expected ",
        ),
        // A resumed run may have other values of these.
        (|recipe| recipe.run.steps = 3, "run.steps is 3, expected 1 as on rank 0"),
        (|recipe| recipe.run.sample_every = 7, "run.sample_every is 7, expected 0 as on rank 0"),
    ];
    for (change, words) in changes {
        let lines = run_ranks(2, |group| {
            let mut recipe = Recipe::parse(VAE).unwrap();
            recipe.data.manifest = Some(path.join("clips.csv"));
            if group.rank() == 1 {
                change(&mut recipe);
            }
            let session = Session { ranks: Ranks::new(group), ..session(path, recipe) };
            error_line(&session.run(&mut (), &mut ()).unwrap_err())
        });
        assert!(lines[1].starts_with(&format!("invalid recipe: {words}")), "{lines:?}");
        assert_eq!(lines[0], format!("rank 1: {}", lines[1]));
        assert!(!path.join("run").exists(), "{words}");
    }
}

#[test]
fn weights_that_a_killed_process_did_not_finish_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    let mut recipe = Recipe::parse(VAE).unwrap();
    recipe.data.manifest = Some(path.join("clips.csv"));
    let vae = path.join("run/vae");
    fs::create_dir_all(&vae).unwrap();
    let left = [".opensora-0123456789abcdef.part", ".tmpAbC123"].map(|name| vae.join(name));
    left.iter().for_each(|file| fs::write(file, "half").unwrap());
    session(path, recipe).run(&mut (), &mut ()).unwrap();
    assert!(left.iter().all(|file| !file.exists()) && vae.join("config.json").exists());
}

/// Neither VAE nor text encoder has weights, so loading one would be a different error.
#[test]
fn checks_that_need_no_model_come_before_loading_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    configs(path);
    let fails = |change: &dyn Fn(&mut Recipe), words: &str| {
        let mut recipe = stdit(path);
        change(&mut recipe);
        let error = session(path, recipe).run(&mut (), &mut ()).unwrap_err();
        let text = error_line(&error);
        assert!(text.contains(words) && !text.contains('\n'), "{words}: {text}");
        assert!(!path.join("run").exists(), "{words}");
    };
    fails(&|recipe| recipe.data.manifest = Some("nowhere.csv".into()), "nowhere.csv");
    fails(&|recipe| recipe.data.cache = Some("no-cache".into()), "no-cache");
    fails(&|recipe| recipe.data.clip.image_size = [30, 32], "30x32");
    fails(&|recipe| recipe.run.dtype = "f31".into(), "f31");
    fails(&|recipe| recipe.run.workers = 5000, "workers is 5000");
    let part = |change: fn(&mut opensora_train::recipe::StDitPart)| {
        move |recipe: &mut Recipe| change(recipe.stdit.as_mut().unwrap())
    };
    fails(&part(|part| part.config.caption_channels = 8), "caption_channels is 8");
    fails(&part(|part| part.config.in_channels = 8), "in_channels is 8");
    fails(&part(|part| part.init = Some("no-weights.pth".into())), "no-weights.pth");
    fails(&part(|part| part.loss.caption_dropout = 2.0), "caption_dropout");
    fails(&part(|part| part.init_depth = Some(1)), "initial model");
    fails(&part(|part| part.t5 = Some("no-t5".into())), "no-t5");
    // With all of that correct, the error is about the missing weights.
    let error = session(path, stdit(path)).run(&mut (), &mut ()).unwrap_err();
    assert!(matches!(error, TrainError::Data(opensora_data::DataError::Vae(_))), "{error}");
    assert!(error.to_string().contains("vae"), "{error}");
}

/// Runs a session in a new folder and returns its messages.
fn messages(folder: &Path, recipe: Recipe) -> Vec<String> {
    let mut messages = Messages::default();
    let folder = tempfile::tempdir_in(folder).unwrap();
    session(folder.path(), recipe).run(&mut messages, &mut ()).unwrap();
    messages.0
}

#[test]
fn a_cache_of_other_models_than_the_recipes_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    configs(path);
    weights(path);
    encode(path, 40);
    assert!(messages(path, cached(path)).is_empty());
    // The models are needed for samples only: none, and one that is not on this machine.
    let mut recipe = cached(path);
    let part = recipe.stdit.as_mut().unwrap();
    (part.vae, part.t5) = (None, Some(path.join("no-t5")));
    assert!(!messages(path, recipe).iter().any(|line| line.starts_with("warning")));

    for (changed, what) in [
        ("vae/diffusion_pytorch_model.safetensors", "of the VAE"),
        ("t5/model.safetensors", "of the text encoder"),
    ] {
        damage(&path.join(changed));
        let lines = messages(path, cached(path));
        assert!(lines.len() == 1 && lines[0].starts_with("warning: "), "{lines:?}");
        assert!(lines[0].contains(what) && lines[0].contains("encode again"), "{lines:?}");
        // The same change again restores the file.
        damage(&path.join(changed));
    }
    assert!(messages(path, cached(path)).is_empty());
}

#[test]
fn a_cache_that_may_have_cut_its_prompts_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    configs(path);
    weights(path);
    // Three words and the end of the prompt have at least four tokens.
    encode(path, 3);
    let lines = messages(path, cached(path));
    assert!(lines.len() == 1 && lines[0].contains("--max-length 64"), "{lines:?}");
    let mut recipe = cached(path);
    recipe.stdit.as_mut().unwrap().config.model_max_length = 3;
    assert!(messages(path, recipe).is_empty());
}

#[test]
fn errors_of_a_cache_are_those_of_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    configs(path);
    weights(path);
    let rows = ["b.mp4", "c.mp4", "d.mp4"].map(|name| {
        let file = path.join(name);
        fs::copy(path.join("a.mp4"), &file).unwrap();
        Row { path: file, caption: "a red circle".into(), num_frames: Some(4) }
    });
    Manifest { rows: rows.into() }.write(&path.join("clips.csv")).unwrap();
    encode(path, 40);
    let on_ranks = || -> Vec<Result<(), String>> {
        run_ranks(3, |group: Group| {
            let ranks = Ranks::new(group);
            prepare(&Session { ranks, ..session(path, cached(path)) })
        })
    };
    assert!(on_ranks().iter().all(Result::is_ok));
    // Rank 1 compares the checksum of the second of three shards.
    for (rank, damaged) in
        ["cache/shard-00000.safetensors", "cache/shard-00001.safetensors"].into_iter().enumerate()
    {
        damage(&path.join(damaged));
        let lines: Vec<String> = on_ranks().into_iter().map(Result::unwrap_err).collect();
        assert!(lines[rank].contains("damaged: the checksum differs"), "{lines:?}");
        let elsewhere = format!("rank {rank}: {}", lines[rank]);
        let mut others = lines.iter().enumerate().filter(|(other, _)| *other != rank);
        assert!(others.all(|(_, line)| *line == elsewhere), "{lines:?}");
        damage(&path.join(damaged));
    }
}

#[test]
fn weights_that_do_not_match_are_not_an_error_of_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    configs(path);
    weights(path);
    let mut recipe = stdit(path);
    recipe.stdit.as_mut().unwrap().init = Some(path.join("vae"));
    let error = session(path, recipe).run(&mut (), &mut ()).unwrap_err();
    assert!(matches!(error, TrainError::LoadStDit(_)), "{error}");
    assert!(!error.to_string().contains("recipe"), "{error}");
}

#[test]
fn a_finished_run_is_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    configs(path);
    weights(path);
    let mut messages = Messages::default();
    session(path, stdit(path)).run(&mut messages, &mut ()).unwrap();
    assert!(messages.0.is_empty(), "{:?}", messages.0);
    let run = path.join("run");
    let text = fs::read_to_string(run.join("model.json")).unwrap();
    let model: serde_json::Value = serde_json::from_str(&text).unwrap();
    for part in ["denoiser", "t5", "vae"] {
        assert!(run.join(model[part].as_str().unwrap()).exists(), "{part}: {model}");
    }
    // Every second frame of a video with 10 frames per second.
    assert_eq!((&model["fps"], &model["num_frames"]), (&5.0.into(), &2.into()));
    assert_eq!(model["image_size"], serde_json::json!([32, 32]));
    assert_eq!(model["denoiser_config"]["hidden_size"], 32);
    assert_eq!(model["prediction_type"], "epsilon");
    // Tables of the clip's latents, which the reference's strict load expects.
    for name in ["ema", "model"] {
        let file = run.join(format!("stdit/{name}.safetensors"));
        let file = Checkpoint::open(file).unwrap();
        assert_eq!(file.tensors()["pos_embed"].shape(), [1, 16, 32]);
        assert_eq!(file.tensors()["pos_embed_temporal"].shape(), [1, 2, 32]);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::write(path.join("plain"), "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&run.join("model.json")), mode(&path.join("plain")));
        assert_eq!(mode(&run.join("stdit/ema.safetensors")), mode(&path.join("plain")));
        let values = run.join("checkpoints/step-00000001/values.safetensors");
        assert_eq!(mode(&values), mode(&path.join("plain")));
    }
}

#[test]
fn a_deeper_run_starts_from_a_shallower_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    data(path);
    configs(path);
    weights(path);
    session(path, stdit(path)).run(&mut (), &mut ()).unwrap();
    let first = path.join("first");
    fs::rename(path.join("run"), &first).unwrap();

    let mut recipe = stdit(path);
    let part = recipe.stdit.as_mut().unwrap();
    (part.config.depth, part.init_depth) = (2, Some(1));
    part.init = Some(first.join("stdit/ema.safetensors"));
    session(path, recipe).run(&mut (), &mut ()).unwrap();
    let deeper = Checkpoint::open(path.join("run/stdit/model.safetensors")).unwrap();
    // After one step, the block and its copy are still close to the block of the first run.
    let values = |checkpoint: &Checkpoint, key: &str| -> Vec<f32> {
        checkpoint.tensors()[key].read(key).unwrap().iter::<f32>().collect()
    };
    let (block, copy) = ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight");
    let before = values(&Checkpoint::open(first.join("stdit/ema.safetensors")).unwrap(), block);
    assert!(before.iter().any(|value| value.abs() > 0.01));
    for key in [block, copy] {
        let after = values(&deeper, key);
        assert_eq!(after.len(), before.len());
        assert!(before.iter().zip(after).all(|(a, b)| (a - b).abs() < 1e-3), "{key}");
    }
    let text = fs::read_to_string(path.join("run/model.json")).unwrap();
    let model: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(model["denoiser_config"]["depth"], 2);
}
