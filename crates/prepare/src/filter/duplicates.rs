//! Finds near-duplicates: clips whose frames at the same relative times look alike.
//!
//! A clip's hash has a perceptual hash of 64 bits for each of [`MOMENTS`] evenly spaced moments, of which
//! another encoding, size or frame rate changes few bits. Parts and trimmed copies of a clip have other
//! moments and are not found.
//!
//! Clips are processed in order of preference, and each is dropped if it is close to a kept clip. So every
//! dropped clip is close to the clip that it duplicates, and not only connected to it by a chain.

use image::GrayImage;
use image_hasher::{HashAlg, Hasher, HasherConfig};
use std::{cmp::Reverse, collections::HashMap};

/// Number of hashed frames of a clip.
pub const MOMENTS: usize = 5;

/// Number of kept clips that are compared with all others.
const FIRST: usize = 500;

/// Maximum number of close pairs that are stored: 256 MiB.
const PAIRS: usize = 1 << 24;

/// Number of bits of a clip's hash.
const BITS: usize = 64 * MOMENTS;

/// When two clips are near-duplicates, and which one is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Duplicates {
    /// Maximum distance of near-duplicates: differing bits of a 64-bit hash, mean over [`MOMENTS`] frames.
    pub max_distance: f64,
    /// Which clip is kept.
    pub keep: Keep,
}

impl Default for Duplicates {
    /// Returns the defaults: 6 bits of 64; the longest clip is kept.
    fn default() -> Self {
        Self { max_distance: 6.0, keep: Keep::Longest }
    }
}

/// The clip that is kept of several near-duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The first in the table.
    First,
    /// The longest, to a tenth of a second; among these the one with most pixels; among these the first.
    Longest,
}

/// Perceptual hash of a clip: one hash for each of its moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClipHash([u64; MOMENTS]);

impl ClipHash {
    pub(crate) fn new(moments: impl IntoIterator<Item = u64>) -> Option<Self> {
        let moments: Vec<u64> = moments.into_iter().collect();
        moments.try_into().ok().map(Self)
    }

    /// Returns 16 hexadecimal digits per moment, joined by hyphens.
    pub(crate) fn to_text(self) -> String {
        self.0.map(|moment| format!("{moment:016x}")).join("-")
    }

    /// Parses the form of [`to_text`](Self::to_text).
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let moment = |digits: &str| {
            let whole = digits.len() == 16 && !digits.starts_with('+');
            u64::from_str_radix(digits, 16).ok().filter(|_| whole)
        };
        Self::new(text.trim().split('-').map(moment).collect::<Option<Vec<_>>>()?)
    }

    /// Returns the number of differing bits.
    fn distance(&self, other: &Self) -> usize {
        self.0.iter().zip(other.0).map(|(a, b)| (a ^ b).count_ones() as usize).sum()
    }

    /// Returns true if the bits from `begin` to `end` are equal.
    fn equal(&self, other: &Self, [begin, end]: [usize; 2]) -> bool {
        let whole = begin / 64..end.div_ceil(64);
        whole.into_iter().all(|word| {
            let mask = mask([begin, end], word);
            (self.0[word] ^ other.0[word]) & mask == 0
        })
    }

    /// Returns a hash of the bits from `begin` to `end`.
    fn mixed(&self, [begin, end]: [usize; 2], seed: u64) -> u64 {
        (begin / 64..end.div_ceil(64)).fold(seed, |mixed, word| {
            // The finalizer of splitmix64, a bijection: different numbers stay different in each step.
            let mut x = mixed.rotate_left(29) ^ (self.0[word] & mask([begin, end], word));
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        })
    }
}

/// Returns the mask of a word's bits that are from `begin` to `end` in the whole hash.
fn mask([begin, end]: [usize; 2], word: usize) -> u64 {
    let first = begin.saturating_sub(64 * word).min(64);
    let last = end.saturating_sub(64 * word).min(64);
    let below = |bits: usize| u64::MAX.checked_shr(64 - bits as u32).unwrap_or(0);
    below(last) & !below(first)
}

/// Returns a hasher of images: low frequencies compared with their median (pHash).
pub(crate) fn picture_hasher() -> impl Fn(&GrayImage) -> u64 {
    let hasher: Hasher<[u8; 8]> = HasherConfig::with_bytes_type()
        .hash_size(8, 8)
        .hash_alg(HashAlg::Median)
        .preproc_dct()
        .to_hasher();
    move |grey| u64::from_be_bytes(hasher.hash_image(grey).into_inner())
}

/// A clip for the search of near-duplicates.
pub(crate) struct Candidate {
    pub(crate) hash: ClipHash,
    /// Seconds; 0 if unknown.
    pub(crate) duration: f64,
    /// Height times width; 0 if unknown.
    pub(crate) pixels: f64,
}

/// The kept clip that a clip duplicates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Duplicate {
    /// The kept clip.
    pub(crate) of: usize,
    /// Differing bits of 64, mean over the moments.
    pub(crate) distance: f64,
}

/// Returns what each clip duplicates; `None` for kept clips.
pub(crate) fn find(clips: &[Candidate], spec: Duplicates) -> Vec<Option<Duplicate>> {
    let mut order: Vec<usize> = (0..clips.len()).collect();
    if spec.keep == Keep::Longest {
        let wish = |&row: &usize| {
            let clip = &clips[row];
            Reverse([(clip.duration * 10.0).round() as u64, clip.pixels as u64])
        };
        order.sort_by_key(wish);
    }
    // Equal hashes first: black clips have many, which need no search.
    let mut unique = Vec::new();
    let mut places = HashMap::new();
    let mut found: Vec<Option<Duplicate>> = vec![None; clips.len()];
    for &row in &order {
        let place = *places.entry(clips[row].hash).or_insert(unique.len());
        match unique.get(place) {
            Some(&of) => found[row] = Some(Duplicate { of, distance: 0.0 }),
            None => unique.push(row),
        }
    }
    let hashes: Vec<ClipHash> = unique.iter().map(|&row| clips[row].hash).collect();
    let radius = (spec.max_distance.max(0.0) * MOMENTS as f64 + 1e-9) as usize;
    for (place, nearest) in nearest_kept(&hashes, radius, PAIRS).into_iter().enumerate() {
        found[unique[place]] = nearest.map(|(distance, other)| Duplicate {
            of: unique[other],
            distance: distance as f64 / MOMENTS as f64,
        });
    }
    // A clip equal to a dropped one duplicates the same kept clip.
    for row in 0..clips.len() {
        if let Some(further) = found[row].and_then(|equal| found[equal.of]) {
            found[row] = Some(further);
        }
    }
    found
}

/// Returns, for each of different hashes in order of preference, the nearest kept one before it within `radius` bits, with
/// its distance; `None` if it is kept.
///
/// The first [`FIRST`] kept hashes are compared with all others, and what is close to them is left out of the search
/// for pairs: a large group of like clips, such as the views of one fixed camera, has too many.
/// At most `limit` pairs are stored. A hash with pairs that are not stored is compared with all kept ones before it
/// instead, which takes longer and has the same result.
fn nearest_kept(hashes: &[ClipHash], radius: usize, limit: usize) -> Vec<Option<(usize, usize)>> {
    let mut found: Vec<Option<(usize, usize)>> = vec![None; hashes.len()];
    let (mut kept, mut begin) = (0, 0);
    while begin < hashes.len() && kept < FIRST {
        if found[begin].is_none() {
            kept += 1;
            for later in begin + 1..hashes.len() {
                let distance = hashes[begin].distance(&hashes[later]);
                let is_nearer = found[later].is_none_or(|nearest| (distance, begin) < nearest);
                if distance <= radius && is_nearer {
                    found[later] = Some((distance, begin));
                }
            }
        }
        begin += 1;
    }
    let rest: Vec<usize> = (begin..hashes.len()).filter(|&place| found[place].is_none()).collect();
    let left: Vec<ClipHash> = rest.iter().map(|&place| hashes[place]).collect();
    let near = close_earlier(&left, radius, limit);
    // In order of preference: a clip can only duplicate an earlier one.
    let mut kept: Vec<usize> = Vec::new();
    for (index, near) in near.into_iter().enumerate() {
        let distance = |&other: &usize| (left[other].distance(&left[index]), other);
        let nearest = match near {
            Some(near) => near.into_iter().filter(|&(_, other)| found[rest[other]].is_none()).min(),
            None => kept.iter().map(distance).filter(|&(distance, _)| distance <= radius).min(),
        };
        match nearest {
            // `rest` is in order, so this is also the minimum by place.
            Some((distance, other)) => found[rest[index]] = Some((distance, rest[other])),
            None => kept.push(index),
        }
    }
    found
}

/// Returns the earlier hashes within `radius` bits of each hash, with their distances; `None` for some hashes if there
/// are more than `limit` pairs.
fn close_earlier(
    hashes: &[ClipHash],
    radius: usize,
    limit: usize,
) -> Vec<Option<Vec<(usize, usize)>>> {
    let mut near = vec![Some(Vec::new()); hashes.len()];
    let mut stored = 0;
    close_pairs(hashes, radius, |a, b, distance| {
        let slot = &mut near[a.max(b)];
        match slot {
            Some(pairs) if stored < limit => {
                pairs.push((distance, a.min(b)));
                stored += 1;
            }
            // Its pairs are incomplete from now on; those of others take their place.
            Some(pairs) => {
                stored -= pairs.len();
                *slot = None;
            }
            None => {}
        }
    });
    near
}

/// Calls `report` once for each pair of different hashes with at most `radius` differing bits, with the
/// faster of two strategies.
fn close_pairs(hashes: &[ClipHash], radius: usize, report: impl FnMut(usize, usize, usize)) {
    let bands = radius + 2;
    let (tables, pairs) = (bands * (bands - 1) / 2, hashes.len() * hashes.len() / 2);
    // Each table is sorted (about 16 steps per hash), and pairs with two equal bands by chance are compared.
    let chance = pairs >> (2 * BITS / bands).min(63);
    if tables.saturating_mul(16 * hashes.len() + chance) < pairs {
        compare_banded(hashes, radius, report);
    } else {
        compare_all(hashes, radius, report);
    }
}

/// Compares all pairs of hashes.
fn compare_all(hashes: &[ClipHash], radius: usize, mut report: impl FnMut(usize, usize, usize)) {
    for (b, second) in hashes.iter().enumerate() {
        for (a, first) in hashes[..b].iter().enumerate() {
            let distance = first.distance(second);
            if distance <= radius {
                report(a, b, distance);
            }
        }
    }
}

/// Compares pairs of hashes with two equal bands.
///
/// Hashes are cut into `radius` + 2 bands, at most one for each bit. Each differing bit changes one band, so
/// close hashes have at least two equal bands, and only such pairs are compared. With two bands of 20 bits
/// in total, one in a million other pairs is compared by chance, so most of the work is sorting the hashes
/// by each pair of bands.
///
/// Source: M. Norouzi, A. Punjani, D. Fleet, "Fast exact search in Hamming space with multi-index
/// hashing", 2014; here with pairs of bands.
fn compare_banded(hashes: &[ClipHash], radius: usize, mut report: impl FnMut(usize, usize, usize)) {
    let count = radius + 2;
    let bands: Vec<[usize; 2]> =
        (0..count).map(|band| [band * BITS / count, (band + 1) * BITS / count]).collect();
    let mut keyed = Vec::with_capacity(hashes.len());
    for second in 1..count {
        for first in 0..second {
            let key = |hash: &ClipHash| hash.mixed(bands[second], hash.mixed(bands[first], 0));
            keyed.clear();
            keyed.extend(hashes.iter().enumerate().map(|(place, hash)| (key(hash), place)));
            keyed.sort_unstable();
            for bucket in keyed.chunk_by(|a, b| a.0 == b.0) {
                for (index, &(_, b)) in bucket.iter().enumerate() {
                    for &(_, a) in &bucket[..index] {
                        let distance = hashes[a].distance(&hashes[b]);
                        if distance > radius {
                            continue;
                        }
                        // A pair can share several buckets; it is reported in the first one.
                        let mut shared =
                            (0..count).filter(|&band| hashes[a].equal(&hashes[b], bands[band]));
                        if shared.next() == Some(first) && shared.next() == Some(second) {
                            report(a, b, distance);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers (splitmix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        }

        fn hash(&mut self) -> ClipHash {
            ClipHash([(); MOMENTS].map(|()| self.next()))
        }

        /// A hash with this many flipped bits, some of them possibly flipped twice.
        fn near(&mut self, hash: ClipHash, bits: usize) -> ClipHash {
            let mut moments = hash.0;
            for _ in 0..bits {
                let bit = self.next() as usize % BITS;
                moments[bit / 64] ^= 1 << (bit % 64);
            }
            ClipHash(moments)
        }
    }

    fn clip(hash: ClipHash, duration: f64, pixels: f64) -> Candidate {
        Candidate { hash, duration, pixels }
    }

    #[test]
    fn both_strategies_find_the_same_pairs() {
        let mut random = Random(7);
        let mut hashes: Vec<ClipHash> = (0..150).map(|_| random.hash()).collect();
        for index in 0..150 {
            let near = random.near(hashes[index], index % 45);
            hashes.push(near);
        }
        for radius in [0, 1, 14, 30, 64] {
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            compare_banded(&hashes, radius, |a, b, distance| {
                found.push((a.min(b), a.max(b), distance));
            });
            compare_all(&hashes, radius, |a, b, distance| expected.push((a, b, distance)));
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "radius {radius}");
            assert!(expected.len() >= if radius < 14 { 4 } else { 50 }, "{}", expected.len());
        }
        // A radius too large for bands works with either strategy.
        let mut pairs = 0;
        close_pairs(&hashes, BITS, |_, _, _| pairs += 1);
        assert_eq!(pairs, 300 * 299 / 2);
    }

    #[test]
    fn many_kept_clips_and_large_groups_are_those_of_a_search_one_by_one() {
        let mut random = Random(11);
        let mut hashes = Vec::new();
        // More groups than are compared with all clips.
        for group in 0..FIRST + 200 {
            let hash = random.hash();
            hashes.push(hash);
            hashes.extend((0..group % 4).map(|bits| random.near(hash, 1 + 10 * bits)));
        }
        let radius = 15;
        let mut kept: Vec<usize> = Vec::new();
        for place in 0..hashes.len() {
            if kept.iter().all(|&kept| hashes[kept].distance(&hashes[place]) > radius) {
                kept.push(place);
            }
        }
        let nearest = nearest_kept(&hashes, radius, PAIRS);
        for limit in [0, 1, 30, 100] {
            assert_eq!(nearest_kept(&hashes, radius, limit), nearest, "{limit} pairs");
        }
        let places = (0..hashes.len()).filter(|&place| nearest[place].is_none());
        assert_eq!(places.collect::<Vec<_>>(), kept);
        for (place, nearest) in nearest.iter().enumerate() {
            let Some((distance, of)) = *nearest else { continue };
            assert_eq!(hashes[of].distance(&hashes[place]), distance);
            assert!(distance <= radius && of < place && kept.contains(&of));
        }

        // A fixed camera: all pairs are close.
        let hash = random.hash();
        let group: Vec<ClipHash> = (0..20_000).map(|_| random.near(hash, 3)).collect();
        let nearest = nearest_kept(&group, 30, PAIRS);
        assert_eq!(nearest.iter().filter(|nearest| nearest.is_none()).count(), 1);
    }

    #[test]
    fn a_large_group_after_many_kept_clips_stores_few_pairs() {
        let mut random = Random(13);
        let mut hashes: Vec<ClipHash> = (0..FIRST).map(|_| random.hash()).collect();
        let camera = random.hash();
        // Some are close to the first of the group, some only to dropped ones.
        hashes.extend((0..400).map(|index| random.near(camera, 4 + (index + 8) % 22)));
        let radius = 20;
        let expected = nearest_kept(&hashes, radius, usize::MAX);
        assert!(expected[FIRST..].iter().filter(|nearest| nearest.is_none()).count() > 1);
        for limit in [0, 10, 1000] {
            assert_eq!(nearest_kept(&hashes, radius, limit), expected, "{limit} pairs");
            let near = close_earlier(&hashes[FIRST..], radius, limit);
            assert!(near.iter().flatten().map(Vec::len).sum::<usize>() <= limit);
            assert!(near.iter().any(Option::is_none), "{limit} pairs are all");
        }
    }

    #[test]
    fn dropped_clips_are_close_to_the_kept_one() {
        let mut random = Random(3);
        let first = random.hash();
        // A chain: each clip is 20 bits from the next, and the ends are 40 bits apart.
        let flip = |hash: ClipHash, word: usize| {
            let mut moments = hash.0;
            moments[word] ^= 0xf_ffff;
            ClipHash(moments)
        };
        let chain = [first, flip(first, 0), flip(flip(first, 0), 1)];
        let clips: Vec<_> = chain.map(|hash| clip(hash, 2.0, 4.0)).into();
        let spec = Duplicates { max_distance: 4.0, keep: Keep::First };
        let found = find(&clips, spec);
        assert_eq!(found, [None, Some(Duplicate { of: 0, distance: 4.0 }), None]);
        assert_eq!(find(&clips, Duplicates { max_distance: 3.9, ..spec }), [None; 3]);
        assert_eq!(find(&[], spec), []);
    }

    #[test]
    fn the_longest_then_largest_then_first_is_kept() {
        let mut random = Random(5);
        let hash = random.hash();
        let other = random.hash();
        let near = random.near(hash, 3);
        let clips = [
            clip(hash, 2.0, 100.0),
            clip(other, 9.0, 100.0),
            clip(near, 4.01, 100.0),
            clip(hash, 4.0, 400.0),
            clip(hash, 4.0, 400.0),
        ];
        let of = |keep| {
            let found = find(&clips, Duplicates { keep, ..Duplicates::default() });
            found.into_iter().map(|duplicate| duplicate.map(|found| found.of)).collect::<Vec<_>>()
        };
        assert_eq!(of(Keep::Longest), [Some(3), None, Some(3), None, Some(3)]);
        assert_eq!(of(Keep::First), [None, None, Some(0), Some(0), Some(0)]);
    }

    #[test]
    fn hashes_round_trip_through_text() {
        let hash = Random(1).hash();
        assert_eq!(ClipHash::from_text(&hash.to_text()), Some(hash));
        let short = hash.to_text()[17..].to_string();
        for wrong in ["", "0-0-0-0-0", "x", short.as_str(), &format!("{}-", hash.to_text())] {
            assert_eq!(ClipHash::from_text(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn masks_cover_their_bits() {
        assert_eq!(mask([0, 64], 0), u64::MAX);
        assert_eq!(mask([60, 70], 0), 0xf << 60);
        assert_eq!(mask([60, 70], 1), 0x3f);
        assert_eq!(mask([60, 70], 2), 0);
    }
}
