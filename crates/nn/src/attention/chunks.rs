//! Attention in chunks, so that never more than a budget of scores is held.
//!
//! A query's softmax runs over all its keys, so samples and queries can be cut apart without any
//! change to the result; keys are not cut. With the budget fixed, memory is that of queries, keys
//! and values: linear in the number of tokens.

use super::Heads;
use burn::tensor::{Tensor, module::attention as fused_attention, ops::AttentionModuleOptions};

/// Scores that are held at once, over all heads: 64 MiB in f32, enough to keep any device busy.
pub(super) const SCORE_BUDGET: usize = 1 << 24;

/// Chunks of fewer than all queries are a multiple of this where the budget allows: what the
/// accelerated kernels of CubeCL ask of a sequence (8 planes of 16 queries).
const QUERY_MULTIPLE: usize = 128;

/// How the work is cut.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// Samples at once; 1 where not all queries fit.
    pub(crate) samples: usize,
    /// Queries at once.
    pub(crate) queries: usize,
}

impl Chunks {
    /// For scores `[samples, heads, queries, keys]`.
    pub(crate) fn new([samples, heads, queries, keys]: [usize; 4], budget: usize) -> Self {
        let scores_of_query = heads.saturating_mul(keys).max(1);
        let fitting = (budget / scores_of_query).clamp(1, queries.max(1));
        if fitting < queries {
            let multiple = fitting - fitting % QUERY_MULTIPLE;
            return Self { samples: 1, queries: if multiple == 0 { fitting } else { multiple } };
        }
        let scores_of_sample = scores_of_query.saturating_mul(queries).max(1);
        Self { samples: (budget / scores_of_sample).clamp(1, samples.max(1)), queries: fitting }
    }
}

/// Attention with at most `budget` scores at once, or those of one query of one sample where that
/// is more.
pub(super) fn attention(heads: Heads, budget: usize) -> Tensor<4> {
    let [samples, count, queries, _] = heads.query.dims();
    let keys = heads.key.dims()[2];
    let chunks = Chunks::new([samples, count, queries, keys], budget);
    if chunks.samples >= samples && chunks.queries >= queries {
        return whole(heads);
    }
    let mut done = Vec::with_capacity(samples.div_ceil(chunks.samples));
    for first in (0..samples).step_by(chunks.samples) {
        let part = samples_of(&heads, first, chunks.samples.min(samples - first));
        let rows: Vec<_> = (0..queries)
            .step_by(chunks.queries)
            .map(|row| whole(queries_of(&part, row, chunks.queries.min(queries - row))))
            .collect();
        done.push(Tensor::cat(rows, 2));
    }
    Tensor::cat(done, 0)
}

/// Attention at once: burn's, but where the host's own is faster.
fn whole(heads: Heads) -> Tensor<4> {
    #[cfg(feature = "flex")]
    let heads = match super::host::attention(heads) {
        Ok(output) => return output,
        Err(heads) => heads,
    };
    let Heads { query, key, value, bias, scale } = heads;
    // One row of scores a query: backends that tile over queries need the bias at full height,
    // and an expanded view keeps them from materialising it once a head.
    let bias = bias.map(|bias| {
        let [batch, heads, _, keys] = bias.dims();
        bias.expand([batch, heads, query.dims()[2], keys])
    });
    let options = AttentionModuleOptions { scale, ..Default::default() };
    fused_attention(query, key, value, None, bias, options)
}

/// `count` samples from `first` on.
fn samples_of(heads: &Heads, first: usize, count: usize) -> Heads {
    let part = |x: &Tensor<4>| x.clone().narrow(0, first, count);
    Heads {
        query: part(&heads.query),
        key: part(&heads.key),
        value: part(&heads.value),
        bias: heads.bias.as_ref().map(|b| if b.dims()[0] == 1 { b.clone() } else { part(b) }),
        scale: heads.scale,
    }
}

/// `count` queries from `first` on, over all keys.
fn queries_of(heads: &Heads, first: usize, count: usize) -> Heads {
    let part = |x: &Tensor<4>| x.clone().narrow(2, first, count);
    Heads {
        query: part(&heads.query),
        bias: heads.bias.as_ref().map(|b| if b.dims()[2] == 1 { b.clone() } else { part(b) }),
        ..heads.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_not_cut() {
        assert_eq!(Chunks::new([2, 3, 5, 7], 210), Chunks { samples: 2, queries: 5 });
        assert_eq!(Chunks::new([2, 3, 5, 7], usize::MAX), Chunks { samples: 2, queries: 5 });
    }

    #[test]
    fn samples_are_cut_before_queries() {
        assert_eq!(Chunks::new([9, 1, 10, 10], 450), Chunks { samples: 4, queries: 10 });
        assert_eq!(Chunks::new([9, 1, 10, 10], 99), Chunks { samples: 1, queries: 9 });
        // One query at least, whatever it costs.
        assert_eq!(Chunks::new([9, 4, 10, 10], 1), Chunks { samples: 1, queries: 1 });
        assert_eq!(Chunks::new([9, 4, 1000, 10], 300 * 40), Chunks { samples: 1, queries: 256 });
    }

    #[test]
    fn a_million_tokens_stay_in_the_budget() {
        let million = 1_000_000;
        let Chunks { samples, queries } = Chunks::new([1, 16, million, million], SCORE_BUDGET);
        assert_eq!(samples * queries, 1); // 16 M scores already
        let chunks = Chunks::new([1, 1, million, million], SCORE_BUDGET);
        assert!(chunks.queries * million <= SCORE_BUDGET, "{chunks:?}");
    }
}
