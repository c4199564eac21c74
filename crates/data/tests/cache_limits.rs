//! Tests of the latent cache: bad rows, sizes of shards, interrupted replacements, moved data.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use opensora_data::{
    ClipDataset, ClipSpec, DataError, Manifest, Observer, RowsDone, Source,
    cache::{CacheJob, CacheKey, LatentCache, write},
    encode::{EncoderConfig, OnTheFly},
    loader::{Loader, LoaderConfig},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, ops::ControlFlow, path::Path, sync::Arc};
use world::{Log, SEED, World};

const ROWS: usize = 6;
/// Bytes of a row's latents: mean and log variance of 2 frames, 4x16x16, in f32.
const LATENTS: usize = 2 * 2 * 4 * 16 * 16 * 4;

impl World {
    fn job<T>(&self, shard_bytes: usize, work: impl FnOnce(&CacheJob<'_>, &Path) -> T) -> T {
        let (dataset, encoder, key) =
            (self.dataset(&clip()), self.encoder(None), self.key(&clip()));
        let job = CacheJob::new(&dataset, &encoder, &key).with_shard_bytes(shard_bytes);
        work(&job, &self.path("cache"))
    }

    fn write(&self, shard_bytes: usize) {
        self.job(shard_bytes, |job, folder| write(job, folder, &mut ())).unwrap();
    }

    fn edit(&self, change: impl FnOnce(&mut Manifest)) {
        let csv = self.path("data/clips.csv");
        let mut manifest = Manifest::read(&csv).unwrap();
        change(&mut manifest);
        manifest.write(&csv).unwrap();
    }

    /// Returns the files in the cache's folder with this ending.
    fn files(&self, ending: &str) -> BTreeSet<String> {
        let names = fs::read_dir(self.path("cache")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(ending)).collect()
    }
}

fn clip() -> ClipSpec {
    ClipSpec {
        num_frames: 2,
        frame_interval: 1,
        image_size: [32, 32],
        horizontal_flip: false,
        variants: Some(1),
    }
}

#[test]
fn any_number_of_variants_fits_a_recipe_without_one() {
    let world = World::new(ROWS, 4);
    world.write(1 << 20);
    let open = |variants| {
        LatentCache::open_for(&world.path("cache"), &ClipSpec { variants, ..clip() }).map(|_| ())
    };
    open(None).unwrap();
    open(Some(1)).unwrap();
    let error = open(Some(2)).unwrap_err().to_string();
    assert!(error.contains("variants") && !error.contains("num_frames"), "{error}");
}

#[test]
fn what_cannot_be_encoded_leaves_an_earlier_cache_as_it_is() {
    let world = World::new(ROWS, 4);
    world.write(1 << 20);
    let odd = ClipSpec { image_size: [31, 31], ..clip() };
    let (dataset, encoder, key) = (world.dataset(&odd), world.encoder(None), world.key(&odd));
    let job = CacheJob::new(&dataset, &encoder, &key);
    let error = write(&job, &world.path("cache"), &mut ()).unwrap_err().to_string();
    assert!(error.contains("31x31"), "{error}");
    LatentCache::open(&world.path("cache")).unwrap();

    // Stopped while the files are read.
    struct StopAt(usize);
    impl Observer for StopAt {
        fn row_read(&mut self, event: &RowsDone) -> ControlFlow<()> {
            if event.done == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    let stopped = world.job(1 << 20, |job, folder| write(job, folder, &mut StopAt(3))).unwrap_err();
    assert!(matches!(stopped, DataError::Stopped { done: 0, total: ROWS }), "{stopped}");
    LatentCache::open(&world.path("cache")).unwrap();
}

#[test]
fn prompt_states_count_for_the_size_of_a_shard_and_equal_captions_are_stored_once() {
    let world = World::new(ROWS, 4);
    let all = "a red circle grows a red circle grows a red circle grows";
    world.edit(|manifest| {
        for (row, entry) in manifest.rows.iter_mut().enumerate() {
            entry.caption = if row < 3 { all.into() } else { format!("{all} {row}") };
        }
    });
    world.write(3 * LATENTS);
    let states = |shard: usize| -> usize {
        let file = world.path("cache").join(format!("shard-{shard:05}.safetensors"));
        let checkpoint = opensora_checkpoint::Checkpoint::open(file).unwrap();
        checkpoint.keys().filter(|key| key.starts_with("states.")).count()
    };
    // States of 12 tokens are a twentieth of a row's latents: three rows fill either shard.
    assert_eq!((world.files(".safetensors").len(), states(0), states(1)), (2, 1, 3));
    let cache = LatentCache::open(&world.path("cache")).unwrap();
    assert_eq!(cache.read(0, 0).unwrap().states, cache.read(2, 0).unwrap().states);
    // Shards with space for one row only.
    world.write(LATENTS + 1);
    assert_eq!(world.files(".safetensors").len(), 2, "complete shards are kept");
    fs::remove_dir_all(world.path("cache")).unwrap();
    world.write(LATENTS + 1);
    assert_eq!(world.files(".safetensors").len(), ROWS);
}

#[test]
fn a_stopped_cache_resumes_at_the_row_where_it_stopped() {
    let world = World::new(ROWS, 4);
    let write = |stop_at: usize| {
        world.job(usize::MAX, |job, folder| {
            let mut log = Log { stop_at: Some(stop_at), ..Log::default() };
            let written = write(job, folder, &mut log);
            (written, log.done)
        })
    };
    let (stopped, _) = write(2);
    assert!(matches!(stopped, Err(DataError::Stopped { done: 2, total: ROWS })), "{stopped:?}");
    assert_eq!(world.files(".safetensors").len(), 1, "the rows that were done are kept");
    let (resumed, told) = write(0);
    resumed.unwrap();
    // The kept shard, rows 3 to 6, their shard.
    assert_eq!(told, [2, 3, 4, 5, 6, 6]);
    let cache = LatentCache::open(&world.path("cache")).unwrap();
    cache.check_rows(&world.dataset(&clip())).unwrap();
    // A stop after the last row has no effect.
    assert!(write(ROWS).0.is_ok());
}

#[test]
fn bad_rows_are_errors_or_left_out_if_allowed() {
    let world = World::new(ROWS, 4);
    let paths: Vec<_> =
        world.dataset(&clip()).manifest().rows.iter().map(|row| row.path.clone()).collect();
    fs::write(&paths[1], "no video").unwrap();
    fs::remove_file(&paths[4]).unwrap();
    let skipping = |skip_bad| {
        world.job(2 * LATENTS, |job, folder| write(&CacheJob { skip_bad, ..*job }, folder, &mut ()))
    };
    let error = skipping(0).unwrap_err();
    assert!(matches!(error, DataError::Row { row: 1 | 4, .. }), "{error}");
    let error = skipping(1).unwrap_err().to_string();
    assert!(error.contains("more than the 1 bad row") && error.contains("row 5"), "{error}");
    let bad = skipping(2).unwrap();
    assert_eq!(bad.keys().copied().collect::<Vec<_>>(), [1, 4]);
    let mut log = Log::default();
    let again = world
        .job(2 * LATENTS, |job, folder| write(&CacheJob { skip_bad: 2, ..*job }, folder, &mut log));
    assert_eq!((again.unwrap(), log.done.len()), (bad, 2), "two shards are kept");
    assert!(skipping(1).is_err(), "bad rows of kept shards count too");
    // A row whose cause is gone, such as a program that was missing: its file is the same.
    let sidecar = world.path("cache/shard-00001.json");
    let mut shard: Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    assert_eq!(shard["bad"].as_array().unwrap().len(), 1);
    shard["bad"].as_array_mut().unwrap().push(json!([5, "needs ffmpeg"]));
    fs::write(&sidecar, shard.to_string()).unwrap();
    assert_eq!(skipping(3).unwrap().into_keys().collect::<Vec<_>>(), [1, 4]);

    // Training leaves out the same rows as without a cache.
    let cache = LatentCache::open(&world.path("cache")).unwrap();
    cache.check_rows(&world.dataset(&clip())).unwrap();
    let error = cache.read(4, 0).unwrap_err();
    assert!(matches!(&error, DataError::Row { row: 4, path, .. } if *path == paths[4]), "{error}");
    let config = LoaderConfig {
        batch_size: 3,
        workers: 2,
        prefetch: 2,
        seed: 1,
        shuffle: true,
        skip_bad: 2,
        skip_list: None,
    };
    let fly = OnTheFly::new(world.dataset(&clip()), world.encoder(None));
    let cached = Loader::new(Arc::new(cache), config.clone(), 0).unwrap();
    let computed = Loader::new(Arc::new(fly), config, 0).unwrap();
    for (cached, computed) in cached.zip(computed).take(5) {
        assert!(cached.unwrap() == computed.unwrap());
    }

    // A repaired file is encoded.
    fs::copy(&paths[0], &paths[1]).unwrap();
    fs::copy(&paths[0], &paths[4]).unwrap();
    assert!(skipping(0).unwrap().is_empty());
    let cache = LatentCache::open(&world.path("cache")).unwrap();
    let fly = OnTheFly::new(world.dataset(&clip()), world.encoder(None));
    assert!(cache.read(1, 0).unwrap() == fly.read(1, 0).unwrap());
}

#[test]
fn an_interrupted_replacement_is_not_a_complete_cache() {
    let world = World::new(ROWS, 4);
    world.write(2 * LATENTS);
    let (victim, whole) = {
        let path = world.dataset(&clip()).manifest().rows[3].path.clone();
        (path.clone(), fs::read(path).unwrap())
    };
    // Row 3 is not readable: writing the second shard fails.
    fs::write(&victim, "no video").unwrap();
    assert!(world.job(2 * LATENTS, |job, folder| write(job, folder, &mut ())).is_err());
    let error = LatentCache::open(&world.path("cache")).unwrap_err().to_string();
    assert!(error.contains("no complete cache"), "{error}");

    fs::write(&victim, whole).unwrap();
    fs::write(world.path("cache/.shard-00001.safetensors.1.partial"), "half").unwrap();
    let mut log = Log::default();
    world.job(2 * LATENTS, |job, folder| write(job, folder, &mut log)).unwrap();
    let rows: BTreeSet<usize> = log.done.into_iter().collect();
    // The first shard is reported as a whole, the second row by row, the third as a whole.
    assert_eq!(rows, [2, 3, 4, 6].into());
    LatentCache::open(&world.path("cache")).unwrap();
    assert!(world.files(".partial").is_empty());
}

#[test]
fn a_cache_shrinks_and_grows_with_its_manifest() {
    let world = World::new(ROWS, 4);
    let mut last = None;
    world.write(2 * LATENTS);
    world.edit(|manifest| last = manifest.rows.pop());
    world.edit(|manifest| _ = manifest.rows.pop());
    world.write(2 * LATENTS);
    assert_eq!(world.files(".safetensors").len(), 2);
    assert_eq!(world.files(".json").len(), 3);
    world.edit(|manifest| manifest.rows.extend(last));
    let mut log = Log::default();
    world.job(2 * LATENTS, |job, folder| write(job, folder, &mut log)).unwrap();
    assert_eq!(log.done, [2, 4, 5, 5], "only the new row is encoded");
    let cache = LatentCache::open(&world.path("cache")).unwrap();
    cache.check_rows(&world.dataset(&clip())).unwrap();
    assert_eq!(Source::len(&cache), ROWS - 1);
}

#[test]
fn data_that_moved_is_the_same_data() {
    let world = World::new(ROWS, 4);
    world.write(2 * LATENTS);
    fs::rename(world.path("data"), world.path("moved")).unwrap();
    let manifest = Manifest::read(&world.path("moved/clips.csv")).unwrap();
    let dataset = ClipDataset::new(manifest, clip(), SEED).unwrap();
    LatentCache::open(&world.path("cache")).unwrap().check_rows(&dataset).unwrap();
    let (encoder, key) = (world.encoder(None), world.key(&clip()));
    let job = CacheJob::new(&dataset, &encoder, &key).with_shard_bytes(2 * LATENTS);
    let mut log = Log::default();
    write(&job, &world.path("cache"), &mut log).unwrap();
    assert_eq!(log.done, [2, 4, 6], "nothing is encoded again");
}

#[test]
fn a_changed_byte_of_the_index_is_found() {
    let world = World::new(ROWS, 4);
    world.write(2 * LATENTS);
    let index = world.path("cache/index.json");
    let text = fs::read_to_string(&index).unwrap();
    for (from, to) in [("true", "null"), ("\"seed\":3", "\"seed\":4"), ("true", "false")] {
        assert!(text.contains(from), "{from}");
        fs::write(&index, text.replacen(from, to, 1)).unwrap();
        let error = LatentCache::open(&world.path("cache")).unwrap_err().to_string();
        assert!(error.contains("index.json") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn weights_and_configuration_of_a_single_file_are_part_of_the_key() {
    let world = World::new(ROWS, 4);
    let weights = world.path("vae/diffusion_pytorch_model.safetensors");
    let encoder = EncoderConfig { vae: weights, ..world.encoder_config() };
    let key = || CacheKey::new(&clip(), SEED, &encoder).unwrap().vae;
    let before = key();
    assert_eq!(key(), before);
    fs::write(world.path("vae/config.json"), "{}").unwrap();
    assert_ne!(key(), before);
}
