//! Tests of the latent cache: the same numbers as without a cache, reuse, stale and damaged caches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use opensora_data::{
    ClipSpec, Manifest, Source,
    cache::{CacheJob, LatentCache, write},
    encode::OnTheFly,
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use world::{Log, World};

impl World {
    /// Writes the cache in shards of two rows. Returns the number of rows that were encoded.
    fn write(&self, clip: &ClipSpec) -> usize {
        let (dataset, encoder, key) = (self.dataset(clip), self.encoder(Some(2)), self.key(clip));
        let latents = 4 * clip.num_frames * 16 * 16;
        let job = CacheJob::new(&dataset, &encoder, &key)
            .with_shard_bytes(2 * 2 * 4 * latents * clip.variants.unwrap_or(1) as usize);
        let mut log = Log::default();
        write(&job, &self.path("cache"), &mut log).unwrap();
        // Each shard that exists already is reported once, a row that is encoded once more.
        log.done.len() - 3
    }

    fn rejected(&self, clip: &ClipSpec) -> String {
        let error = LatentCache::open_for(&self.path("cache"), clip).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

fn clip() -> ClipSpec {
    ClipSpec {
        num_frames: 3,
        frame_interval: 1,
        image_size: [32, 32],
        horizontal_flip: true,
        variants: Some(2),
    }
}

fn shard(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("shard-{number:05}.safetensors"))
}

#[test]
fn the_cache_has_the_numbers_of_encoding_during_training() {
    let world = World::new(5, 6);
    assert_eq!(world.write(&clip()), 5);
    let cache = LatentCache::open_for(&world.path("cache"), &clip()).unwrap();
    cache.check(&world.key(&clip())).unwrap();
    cache.check_rows(&world.dataset(&clip())).unwrap();
    let fly = OnTheFly::new(world.dataset(&clip()), world.encoder(Some(2)));
    assert_eq!(Source::len(&cache), Source::len(&fly));
    let mut different = 0;
    for row in 0..5 {
        for epoch in 0..4 {
            assert!(cache.read(row, epoch).unwrap() == fly.read(row, epoch).unwrap());
        }
        different += usize::from(cache.read(row, 0).unwrap() != cache.read(row, 1).unwrap());
    }
    // Two draws of one row can be equal, but not those of all rows.
    assert!(different > 0);
    assert!(cache.read(5, 0).is_err());
}

#[test]
fn complete_shards_are_kept_and_changed_ones_written_again() {
    let world = World::new(5, 6);
    world.write(&clip());
    assert_eq!(world.write(&clip()), 0);
    let cache = world.path("cache");
    // Killed after the second shard, and within the third.
    for name in ["index.json", "shard-00002.json"] {
        fs::remove_file(cache.join(name)).unwrap();
    }
    assert!(world.rejected(&clip()).contains("no complete cache"));
    assert_eq!(world.write(&clip()), 1);
    // A damaged shard.
    fs::write(shard(&cache, 0), "damaged").unwrap();
    assert!(world.rejected(&clip()).contains("damaged"));
    assert_eq!(world.write(&clip()), 2);
    // A caption of the second shard.
    let csv = world.path("data/clips.csv");
    let mut manifest = Manifest::read(&csv).unwrap();
    manifest.rows[3].caption = "a red circle".into();
    manifest.write(&csv).unwrap();
    let opened = LatentCache::open(&cache).unwrap();
    let error = opened.check_rows(&world.dataset(&clip())).unwrap_err().to_string();
    assert!(error.contains("caption of row 4"), "{error}");
    assert_eq!(world.write(&clip()), 2);
    LatentCache::open(&cache).unwrap().check_rows(&world.dataset(&clip())).unwrap();
}

#[test]
fn other_settings_and_models_make_a_cache_stale_and_a_flipped_bit_is_found() {
    let world = World::new(5, 6);
    world.write(&clip());
    let cache = world.path("cache");
    for (other, named) in [
        (ClipSpec { num_frames: 4, ..clip() }, "num_frames"),
        (ClipSpec { horizontal_flip: false, ..clip() }, "horizontal_flip"),
        (ClipSpec { variants: Some(3), ..clip() }, "variants"),
    ] {
        let error = world.rejected(&other);
        assert!(error.contains("stale") && error.contains(named), "{error}");
    }
    let opened = LatentCache::open(&cache).unwrap();
    fs::write(world.path("vae/config.json"), "{}").unwrap();
    let error = opened.check(&world.key(&clip())).unwrap_err().to_string();
    assert!(error.contains("the VAE has changed"), "{error}");

    let whole = fs::read(shard(&cache, 1)).unwrap();
    for at in [0, 9, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(shard(&cache, 1), bytes).unwrap();
        assert!(world.rejected(&clip()).contains("damaged"), "byte {at}");
    }
    fs::write(shard(&cache, 1), &whole[..whole.len() - 5]).unwrap();
    assert!(world.rejected(&clip()).contains("damaged"));
}

#[test]
fn other_models_than_those_that_encoded_a_cache_are_found() {
    let world = World::new(5, 6);
    world.write(&clip());
    let cache = LatentCache::open(&world.path("cache")).unwrap();
    let (vae, t5) = (world.path("vae"), world.path("t5"));
    let weights = vae.join("diffusion_pytorch_model.safetensors");
    cache.check_models(None, None).unwrap();
    for vae in [&vae, &weights, &world.path("not on this machine")] {
        cache.check_models(Some(vae), Some(&t5)).unwrap();
    }
    for (changed, what) in
        [(&weights, "of the VAE"), (&t5.join("model.safetensors"), "of the text encoder")]
    {
        let whole = fs::read(changed).unwrap();
        let mut bytes = whole.clone();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(changed, bytes).unwrap();
        let error = cache.check_models(Some(&vae), Some(&t5)).unwrap_err().to_string();
        assert!(error.contains("other files") && error.contains(what), "{error}");
        assert!(error.contains("encode again") && !error.contains('\n'), "{error}");
        fs::write(changed, whole).unwrap();
        cache.check_models(Some(&vae), Some(&t5)).unwrap();
    }
}

#[test]
fn ranks_share_the_checksums_of_a_cache() {
    let world = World::new(5, 6);
    world.write(&clip());
    let opens = |rank: usize, ranks: usize| {
        LatentCache::open_for_rank(&world.path("cache"), &clip(), [rank, ranks]).is_ok()
    };
    // The second of three shards.
    let path = shard(&world.path("cache"), 1);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    fs::write(&path, bytes).unwrap();
    assert_eq!([0, 1].map(|rank| opens(rank, 2)), [true, false]);
    assert_eq!([0, 1, 2, 3].map(|rank| opens(rank, 4)), [true, false, true, true]);
    assert!(!opens(0, 1));
}

#[test]
fn one_process_at_a_time_writes_a_cache() {
    let world = World::new(5, 6);
    let folder = world.path("cache");
    fs::create_dir_all(&folder).unwrap();
    let other = opensora_files::Lock::take(&folder.join("write.lock")).unwrap();
    let (dataset, encoder, key) =
        (world.dataset(&clip()), world.encoder(Some(2)), world.key(&clip()));
    let job = CacheJob::new(&dataset, &encoder, &key);
    let busy = write(&job, &folder, &mut Log::default()).unwrap_err();
    let line = opensora_files::error_line(&busy);
    assert!(line.contains("in use by process"), "{line}");
    drop(other);
    world.write(&clip());
}
