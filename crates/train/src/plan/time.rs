//! Seconds of an optimizer step by part.

use super::{
    Job, Layout, bytes_of,
    network::Collective::{self, AllGather, AllReduce, AllToAll, ReduceScatter},
    size::{Parameters, Share, collectives, rank_flops},
};
use crate::zero::Zero;
use serde::Serialize;

/// Seconds of an optimizer step by part.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepTime {
    /// Forward and backward passes.
    pub compute: f64,
    /// Clipping, AdamW and moving average.
    pub update: f64,
    /// Reduction of the gradients, as far as the backward pass does not hide it.
    pub gradients: f64,
    /// Gathering of updated parameters, with ZeRO.
    pub parameters: f64,
    /// Exchanges of tokens around the temporal attention, with sequence parallelism.
    pub exchanges: f64,
    /// Collectives of single numbers: loss, norm, and whether all ranks go on.
    pub scalars: f64,
    /// Copies of the collectives' buffers to the host and back.
    pub staging: f64,
}

impl StepTime {
    /// Returns the parts with their names.
    pub fn parts(&self) -> [(&'static str, f64); 7] {
        [
            ("compute", self.compute),
            ("update", self.update),
            ("gradients", self.gradients),
            ("parameters", self.parameters),
            ("token exchanges", self.exchanges),
            ("scalars", self.scalars),
            ("copies to the host", self.staging),
        ]
    }

    /// Returns the sum of all parts.
    pub fn total(&self) -> f64 {
        self.parts().into_iter().map(|(_, seconds)| seconds).sum()
    }

    /// Returns the name of the largest part.
    pub(super) fn largest(&self) -> &'static str {
        let largest = self.parts().into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        largest.map_or("compute", |(name, _)| name)
    }
}

/// Bytes that the update of a parameter reads and writes: value, gradient, two moments and average are read, all but
/// the gradient are written, and the gradient is read once more for its norm.
const UPDATE_BYTES: f64 = 40.0;

/// Collectives of a few numbers in a step: bad rows, losses and their lengths, present gradients, norm, agreement on
/// stopping.
const SCALARS: f64 = 8.0;

/// Returns the time of a step.
pub(super) fn of(job: &Job, layout: Layout, grid: [usize; 3], parameters: &Parameters) -> StepTime {
    let (ranks, sequence) = (layout.ranks(), layout.sequence);
    let passes = if layout.activation_checkpointing { 4.0 } else { 3.0 };
    let flops = rank_flops(&job.config, grid, job.caption_tokens, sequence) * passes;
    let rate = job.processor.peak(job.dtype) * job.processor.efficiency;
    let clips = layout.clips(job.clips) as f64;

    let trained = 4.0 * parameters.trained;
    let owned = if layout.zero == Zero::Off { 1.0 } else { ranks as f64 };
    let value = bytes_of(job.dtype);
    // A copy in the type to compute in is made from the f32 parameters.
    let copied = if value == 4.0 { 0.0 } else { (4.0 + value) * parameters.total };
    let updated = UPDATE_BYTES * parameters.trained / owned + copied;

    let mut time = StepTime {
        compute: clips * flops / rate,
        update: updated / job.processor.memory_bandwidth,
        scalars: SCALARS * scalar_seconds(job, ranks),
        ..StepTime::default()
    };
    let mut run = |part: fn(&mut StepTime) -> &mut f64, what: Collective, bytes, size, times| {
        *part(&mut time) += times * job.network.seconds(what, bytes, size, ranks);
        time.staging += times * job.network.staging_seconds(what, bytes, size);
    };
    let accumulation = layout.accumulation as f64;
    // Every bucket is a collective with its own latency.
    let [buckets, gathers] = collectives(&job.config, ranks, layout.zero, job.bucket_bytes() / 4.0);
    let gathered = value * parameters.trained;
    match layout.zero {
        Zero::Off => run(|time| &mut time.gradients, AllReduce, trained / buckets, ranks, buckets),
        // Gradients that are divided between micro-batches are reduced after each.
        stage => {
            let times = if stage == Zero::Gradients { accumulation } else { 1.0 };
            let bytes = trained / buckets;
            run(|time| &mut time.gradients, ReduceScatter, bytes, ranks, times * buckets);
            run(|time| &mut time.parameters, AllGather, gathered / gathers, ranks, gathers);
        }
    }
    if sequence > 1 {
        let tokens = Share::of(grid, sequence).exchanged(sequence);
        let micro_batch = layout.micro_batch(job.clips) as f64;
        let bytes = micro_batch * tokens * job.config.hidden_size as f64 * value;
        // Two exchanges in the forward pass of a block, in the pass that recomputes it, and in the backward pass.
        let exchanges = 2.0 * (passes - 1.0) * job.config.depth as f64;
        run(|time| &mut time.exchanges, AllToAll, bytes, sequence, exchanges * accumulation);
    }
    time.gradients *= 1.0 - job.overlap;
    time
}

/// Returns the seconds of an all-reduce of one number, in as many rounds as the binary logarithm of the ranks.
fn scalar_seconds(job: &Job, ranks: usize) -> f64 {
    let network = &job.network;
    let is_within = ranks <= network.ranks_per_node;
    let latency = if is_within { network.within.latency } else { network.between.latency };
    latency * f64::from(ranks.next_power_of_two().ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Link, Network, Processor, size::parameters};

    /// STDiT-XL/2 on one node of 8, bf16, without latency or copies.
    fn job(ranks: usize) -> Job {
        let network = Network {
            ranks_per_node: 8,
            within: Link { bandwidth: 100e9, latency: 0.0 },
            between: Link { bandwidth: 25e9, latency: 0.0 },
            staging: None,
        };
        Job { ranks, clips: ranks, network, processor: Processor::H100, ..Job::default() }
    }

    fn time(job: &Job, layout: Layout) -> StepTime {
        of(job, layout, [16, 16, 16], &parameters(&job.config))
    }

    #[test]
    fn gradients_and_parameters_move_the_bytes_of_a_ring() {
        let job = job(8);
        let trained = parameters(&job.config).trained;
        let close = |found: f64, wanted: f64| {
            assert!((found / wanted - 1.0).abs() < 1e-12, "{found} {wanted}");
        };
        let off = time(&job, Layout::data(8));
        close(off.gradients, 2.0 * 7.0 / 8.0 * 4.0 * trained / 100e9);
        assert_eq!([off.parameters, off.exchanges, off.staging], [0.0; 3]);
        let one = time(&job, Layout { zero: Zero::Optimizer, ..Layout::data(8) });
        // A reduce-scatter in f32 is half of an all-reduce; bf16 parameters take half of its time.
        close(one.gradients, off.gradients / 2.0);
        close(one.parameters, off.gradients / 4.0);
        // bf16 weights are written from f32 parameters by every rank.
        let copy = 6.0 * parameters(&job.config).total / 3.35e12;
        close(one.update - copy, (off.update - copy) / 8.0);
        let hidden = time(&Job { overlap: 0.25, ..job.clone() }, Layout::data(8));
        close(hidden.gradients, 0.75 * off.gradients);
        let staged = Job { network: Network { staging: Some(50e9), ..job.network }, ..job };
        close(time(&staged, Layout::data(8)).staging, 2.0 * 4.0 * trained / 50e9);
    }

    #[test]
    fn ranks_that_fit_on_a_node_are_not_charged_for_the_network() {
        let trained = parameters(&job(8).config).trained;
        let gradients = |ranks| time(&job(ranks), Layout::data(ranks)).gradients;
        let times = [4, 5, 6, 7, 8].map(gradients);
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
        // Two groups of 3 on the node: 3 clips of 6 frames of 86 positions for each of 3 ranks, in bf16; two thirds
        // are sent.
        let groups = Layout { data: 2, sequence: 3, ..Layout::data(2) };
        let once = 3.0 * (6.0 * 86.0 * 3.0) * 1152.0 * 2.0 * 2.0 / 3.0 / 100e9;
        let found = time(&Job { clips: 6, ..job(6) }, groups).exchanges;
        assert!((found / (28.0 * 4.0 * once) - 1.0).abs() < 1e-12, "{found} {once}");
        // One ring over nodes has the whole link.
        for ranks in [9, 12, 16] {
            let wanted = 2.0 * (ranks - 1) as f64 / ranks as f64 * 4.0 * trained / 25e9;
            let found = gradients(ranks);
            assert!((found / wanted - 1.0).abs() < 1e-12, "{ranks} ranks: {found} {wanted}");
        }
    }

    #[test]
    fn every_bucket_has_a_latency() {
        let mut job = job(8);
        let bytes = 4.0 * parameters(&job.config).trained;
        let without = time(&job, Layout::data(8)).gradients;
        job.network.within.latency = 1e-3;
        let [buckets, _] = collectives(&job.config, 8, Zero::Off, (8 << 20) as f64);
        let with = time(&job, Layout::data(8)).gradients;
        let wanted = buckets * 2.0 * 7.0 * 1e-3;
        assert!(((with - without) / wanted - 1.0).abs() < 1e-9, "{with} {without} {wanted}");
        job.bucket = Some(bytes);
        let once = time(&job, Layout::data(8)).gradients - without;
        assert!((once / (2.0 * 7.0 * 1e-3) - 1.0).abs() < 1e-6, "{once}");
    }

    #[test]
    fn exchanges_are_counted_by_block_and_pass() {
        let job = Job { clips: 8, ..job(8) };
        let layout = Layout { data: 4, sequence: 2, ..Layout::data(4) };
        // 2 clips of 8 frames of 256 positions and 1152 channels in bf16; half of them is sent.
        let once = 2.0 * 8.0 * 256.0 * 1152.0 * 2.0 / 2.0 / 100e9;
        let found = time(&job, layout);
        assert!((found.exchanges / (28.0 * 4.0 * once) - 1.0).abs() < 1e-12, "{found:?}");
        let again = time(&job, Layout { activation_checkpointing: true, ..layout });
        assert!((again.exchanges / (28.0 * 6.0 * once) - 1.0).abs() < 1e-12, "{again:?}");
        assert!((again.compute / found.compute - 4.0 / 3.0).abs() < 1e-12);
        // Accumulation sends the same tokens in more messages.
        let parts = time(&job, Layout { accumulation: 2, ..layout });
        assert!((parts.exchanges / found.exchanges - 1.0).abs() < 1e-12);
    }

    #[test]
    fn gradients_in_shards_are_reduced_after_each_micro_batch() {
        let job = Job { clips: 32, ..job(8) };
        let with = |zero, accumulation| {
            time(&job, Layout { zero, accumulation, ..Layout::data(8) }).gradients
        };
        assert_eq!(with(Zero::Gradients, 4), 4.0 * with(Zero::Gradients, 1));
        assert_eq!(with(Zero::Optimizer, 4), with(Zero::Optimizer, 1));
    }

    #[test]
    fn numbers_take_a_logarithm_of_latencies() {
        let mut job = job(8);
        job.network.within.latency = 1.0;
        job.network.between.latency = 10.0;
        assert_eq!([1, 2, 8].map(|ranks| scalar_seconds(&job, ranks)), [0.0, 1.0, 3.0]);
        assert_eq!(scalar_seconds(&job, 64), 60.0);
    }
}
