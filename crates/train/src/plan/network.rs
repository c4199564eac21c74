//! Links between ranks, and the time of collectives on them.
//!
//! A message of b bytes takes `latency + b / bandwidth`. All-reduce, reduce-scatter and all-gather are those of a
//! ring (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"): over n
//! ranks and a buffer of B bytes, each rank sends `(n - 1) / n B` bytes in n - 1 messages, and twice that for an
//! all-reduce. A ring enters and leaves each node once, so that it has the whole link of a node. In an all-to-all,
//! every rank sends `(n - 1) / n` of its buffer in n - 1 messages, and the ranks of a node share its link.

use super::{PlanError, Processor};
use serde::Serialize;

/// A link: bandwidth and latency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Link {
    /// Bytes per second in one direction.
    pub bandwidth: f64,
    /// Seconds of an empty message.
    pub latency: f64,
}

/// The network of a cluster of equal nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Network {
    /// Ranks of a node.
    pub ranks_per_node: usize,
    /// Link between two ranks of a node; each rank has its own.
    pub within: Link,
    /// All links of a node to the others together; its ranks share them.
    pub between: Link,
    /// Bytes per second to and from the host, if collectives go through the host's memory; `None` if the network
    /// reads the processor's memory.
    pub staging: Option<f64>,
}

/// A collective operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// Every rank gets the sum of all buffers.
    AllReduce,
    /// Every rank gets its part of the sum of all buffers.
    ReduceScatter,
    /// Every rank gets the concatenation of all parts.
    AllGather,
    /// Every rank sends a part of its buffer to every other.
    AllToAll,
}

/// Latency between ranks of a node in seconds: assumed, not measured.
const LATENCY_WITHIN: f64 = 5e-6;
/// Latency between nodes in seconds: assumed, not measured.
const LATENCY_BETWEEN: f64 = 10e-6;

impl Network {
    /// Returns the network of nodes of 8 such processors with one link of 200 Gbit/s a node. Collectives go through
    /// the host's memory, as those of this workspace do.
    pub fn of(processor: &Processor) -> Self {
        // What passes through the host is not faster than its link to the processor.
        let within = processor.host_bandwidth.unwrap_or(processor.peer_bandwidth);
        Self {
            ranks_per_node: 8,
            within: Link {
                bandwidth: within.min(processor.peer_bandwidth),
                latency: LATENCY_WITHIN,
            },
            between: Link { bandwidth: 0.0, latency: LATENCY_BETWEEN },
            staging: processor.host_bandwidth,
        }
        .with_gbits(200.0)
    }

    /// Returns the network with `gbits` Gbit/s between nodes, all links of a node together.
    pub fn with_gbits(self, gbits: f64) -> Self {
        let between = Link { bandwidth: gbits * 1e9 / 8.0, ..self.between };
        Self { between, ..self }
    }

    /// Returns the network whose collectives read the memory of `processor`, without a copy through the host, as
    /// NCCL and MPI for CUDA do.
    pub fn direct(self, processor: &Processor) -> Self {
        let within = Link { bandwidth: processor.peer_bandwidth, ..self.within };
        Self { within, staging: None, ..self }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Returns an error if there are no ranks in a node, a bandwidth is not positive or a latency is negative.
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.ranks_per_node == 0 {
            return Err(PlanError::value("ranks_per_node", 0, "at least 1"));
        }
        let staging = self.staging.unwrap_or(1.0);
        for (field, found) in [
            ("bandwidth within a node", self.within.bandwidth),
            ("bandwidth between nodes", self.between.bandwidth),
            ("bandwidth to the host", staging),
        ] {
            if !(found.is_finite() && found > 0.0) {
                return Err(PlanError::value(field, found, "a positive number"));
            }
        }
        for (field, found) in [
            ("latency within a node", self.within.latency),
            ("latency between nodes", self.between.latency),
        ] {
            if !(found.is_finite() && found >= 0.0) {
                return Err(PlanError::value(field, found, "0 or a positive number"));
            }
        }
        Ok(())
    }

    /// Returns the ranks of the fullest node when `total` ranks fill one node after the other.
    fn used_per_node(&self, total: usize) -> usize {
        self.ranks_per_node.min(total).max(1)
    }

    /// Returns the ranks that a group of `size` adjacent ranks of `total` has on the fullest node.
    fn on_a_node(&self, size: usize, total: usize) -> usize {
        let per_node = self.used_per_node(total);
        if size == total {
            // The last node may have fewer ranks. It is not the slower one: the ring enters it once, as any node, and
            // in an all-to-all no more bytes cross its link than that of a full node.
            per_node
        } else if per_node == total || per_node.is_multiple_of(size) {
            size
        } else {
            // Groups that do not divide the node are spread over more nodes than they need.
            gcd(size, per_node)
        }
    }

    /// Returns the seconds of a collective of a group of `size` adjacent ranks. All groups of the cluster, `total`
    /// ranks, run it at once. `bytes` is the whole buffer of a rank: the sum, the concatenation, or what an all-to-all
    /// sends.
    pub fn seconds(&self, collective: Collective, bytes: f64, size: usize, total: usize) -> f64 {
        if size <= 1 {
            return 0.0;
        }
        // A group is part of the cluster.
        let total = total.max(size);
        let ranks = size as f64;
        let moved = bytes * (ranks - 1.0) / ranks;
        let per_node = self.used_per_node(total);
        let on_a_node = self.on_a_node(size, total);
        let is_within = on_a_node == size;
        let latency = if is_within { self.within.latency } else { self.between.latency };
        let bandwidth = match is_within {
            true => self.within.bandwidth,
            // Groups of several ranks a node have a ring each, which share the link.
            false => {
                let rings = (per_node / on_a_node).max(1) as f64;
                self.within.bandwidth.min(self.between.bandwidth / rings)
            }
        };
        let once = moved / bandwidth + (ranks - 1.0) * latency;
        match collective {
            Collective::AllReduce => 2.0 * once,
            Collective::ReduceScatter | Collective::AllGather => once,
            Collective::AllToAll if is_within => once,
            Collective::AllToAll => {
                let leaving = bytes * (size - on_a_node) as f64 / ranks;
                let shared = per_node as f64 * leaving / self.between.bandwidth;
                shared.max(moved / self.within.bandwidth) + (ranks - 1.0) * latency
            }
        }
    }

    /// Returns the seconds in which a rank copies the buffers of a collective to the host and back.
    pub fn staging_seconds(&self, collective: Collective, bytes: f64, size: usize) -> f64 {
        let Some(bandwidth) = self.staging.filter(|_| size > 1) else { return 0.0 };
        let part = bytes / size as f64;
        let copied = match collective {
            Collective::AllReduce | Collective::AllToAll => 2.0 * bytes,
            Collective::ReduceScatter | Collective::AllGather => bytes + part,
        };
        copied / bandwidth
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::{Collective::*, *};

    /// Nodes of 4 ranks; round numbers.
    fn network() -> Network {
        Network {
            ranks_per_node: 4,
            within: Link { bandwidth: 100.0, latency: 0.5 },
            between: Link { bandwidth: 40.0, latency: 2.0 },
            staging: None,
        }
    }

    #[test]
    fn rings_within_a_node_take_the_hand_computed_time() {
        let network = network();
        // 4 ranks, 800 bytes: each rank sends 600 in 3 messages.
        assert_eq!(network.seconds(ReduceScatter, 800.0, 4, 4), 6.0 + 1.5);
        assert_eq!(network.seconds(AllGather, 800.0, 4, 4), 6.0 + 1.5);
        assert_eq!(network.seconds(AllReduce, 800.0, 4, 4), 12.0 + 3.0);
        assert_eq!(network.seconds(AllToAll, 800.0, 4, 4), 6.0 + 1.5);
        // 2 ranks: 400 bytes in a message.
        assert_eq!(network.seconds(AllToAll, 800.0, 2, 4), 4.0 + 0.5);
        assert_eq!(network.seconds(AllReduce, 800.0, 1, 4), 0.0);
    }

    #[test]
    fn ranks_that_do_not_divide_the_node_are_within_it_or_use_its_whole_link() {
        let network = Network { ranks_per_node: 8, ..network() };
        let close = |found: f64, wanted: f64, ranks: usize| {
            assert!((found / wanted - 1.0).abs() < 1e-12, "{ranks} ranks: {found} {wanted}");
        };
        // Up to 8 ranks are on one node: each sends (n - 1) / n of 800 bytes at 100 bytes/s, in n - 1 messages.
        for collective in [AllReduce, ReduceScatter, AllGather, AllToAll] {
            let times =
                [4, 5, 6, 7, 8].map(|ranks| network.seconds(collective, 800.0, ranks, ranks));
            assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{collective:?}: {times:?}");
        }
        close(network.seconds(ReduceScatter, 800.0, 5, 5), 6.4 + 4.0 * 0.5, 5);
        // Two groups of 3 on the node.
        close(network.seconds(AllToAll, 800.0, 3, 6), 1600.0 / 3.0 / 100.0 + 2.0 * 0.5, 6);
        // More ranks are one ring, which has the whole link of 40 bytes/s.
        for ranks in [9, 12, 16] {
            let others = (ranks - 1) as f64;
            let wanted = 800.0 * others / ranks as f64 / 40.0 + others * 2.0;
            close(network.seconds(ReduceScatter, 800.0, ranks, ranks), wanted, ranks);
            close(network.seconds(AllReduce, 800.0, ranks, ranks), 2.0 * wanted, ranks);
        }
        // 12 ranks: each of the 8 on the full node sends 4 of 12 parts of 800 bytes to the other node.
        let wanted = 8.0 * 800.0 * 4.0 / 12.0 / 40.0 + 11.0 * 2.0;
        close(network.seconds(AllToAll, 800.0, 12, 12), wanted, 12);
    }

    #[test]
    fn rings_over_nodes_use_the_slower_link_once_a_node() {
        let network = network();
        // 8 ranks on 2 nodes: 700 of 800 bytes at 40 bytes/s, 7 messages.
        assert_eq!(network.seconds(ReduceScatter, 800.0, 8, 8), 17.5 + 14.0);
        let fast = Link { bandwidth: 1000.0, latency: 2.0 };
        let network = Network { between: fast, ..network };
        // The ring within a node is the slower part.
        assert_eq!(network.seconds(ReduceScatter, 800.0, 8, 8), 7.0 + 14.0);
    }

    #[test]
    fn ranks_of_a_node_share_its_link_in_an_all_to_all() {
        let network = network();
        // 8 ranks on 2 nodes: of 800 bytes, 400 leave the node; 4 ranks share 40 bytes/s.
        assert_eq!(network.seconds(AllToAll, 800.0, 8, 8), 40.0 + 14.0);
        // One rank a node: 400 of 800 bytes at 40 bytes/s.
        let single = Network { ranks_per_node: 1, ..network };
        assert_eq!(single.seconds(AllToAll, 800.0, 2, 2), 10.0 + 2.0);
        // Groups of 3 do not divide nodes of 4, so that each rank may be on another node: 533 bytes leave, and 4
        // ranks share the link.
        let uneven = network.seconds(AllToAll, 800.0, 3, 12);
        assert!((uneven - (4.0 * 800.0 * 2.0 / 3.0 / 40.0 + 4.0)).abs() < 1e-9, "{uneven}");
    }

    #[test]
    fn buffers_are_copied_to_the_host_and_back() {
        let network = Network { staging: Some(10.0), ..network() };
        assert_eq!(network.staging_seconds(AllReduce, 800.0, 4), 160.0);
        assert_eq!(network.staging_seconds(AllToAll, 800.0, 4), 160.0);
        // A part is a quarter.
        assert_eq!(network.staging_seconds(AllGather, 800.0, 4), 100.0);
        assert_eq!(network.staging_seconds(AllReduce, 800.0, 1), 0.0);
        assert_eq!(Network { staging: None, ..network }.staging_seconds(AllReduce, 800.0, 4), 0.0);
    }

    #[test]
    fn a_link_of_200_gbits_moves_25_gigabytes_a_second() {
        let network = Network::of(&Processor::H100);
        assert_eq!(network.between.bandwidth, 25e9);
        assert_eq!((network.within.bandwidth, network.staging), (64e9, Some(64e9)));
        let direct = network.direct(&Processor::H100);
        assert_eq!((direct.within.bandwidth, direct.staging), (450e9, None));
        assert_eq!(Network::of(&Processor::CPU).staging, None);
    }
}
