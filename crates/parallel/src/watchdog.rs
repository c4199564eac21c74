//! Notices ranks that end or stop while the others wait for them.
//!
//! A thread of every rank sends a beat to rank 0 each second, however long the rank computes; rank 0 answers with its own.
//! A rank whose connection closes has ended; one that sends nothing for [`Timing::limit`] is stopped, or its node is
//! lost. Then rank 0 has every rank end itself. A beat also says in which collective the rank is: if all ranks are in
//! collectives and none proceeds for [`Timing::stuck`], they disagree about the next one.
//!
//! The beats go over TCP, not MPI: MPI calls of a second thread would need an MPI library that supports and
//! serves several threads, and would stop with it; with TCP every rank ends itself, also where the launcher
//! does not end it.

mod hub;
mod spoke;

pub(crate) use hub::Hub;
pub(crate) use spoke::Spoke;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// Times of the watchdog.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Time between beats.
    pub(crate) beat: Duration,
    /// After this time without a beat a rank counts as stopped.
    pub(crate) limit: Duration,
    /// After this time in collectives without progress, the ranks count as deadlocked.
    pub(crate) stuck: Duration,
}

impl Timing {
    /// How often the threads look for news.
    fn tick(&self) -> Duration {
        self.beat / 5
    }
}

/// What a rank is doing, written by its collectives and read by its watchdog.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    collective: AtomicU8,
    /// Odd in a collective; grows with every piece of data.
    count: AtomicU64,
    /// The rank is about to finish or fail, so that the end of a connection is no news.
    ending: AtomicBool,
}

impl Pulse {
    /// Enters a collective, number `collective` of [`NAMES`].
    pub(crate) fn enter(&self, collective: u8) {
        self.collective.store(collective, SeqCst);
        self.count.fetch_add(1, SeqCst);
    }

    /// Says that a collective has moved data.
    pub(crate) fn proceed(&self) {
        self.count.fetch_add(2, SeqCst);
    }

    /// Leaves the collective.
    pub(crate) fn leave(&self) {
        self.count.fetch_add(1, SeqCst);
    }

    fn beat(&self) -> Beat {
        Beat { collective: self.collective.load(SeqCst), count: self.count.load(SeqCst) }
    }
}

/// Names of the collectives in messages.
pub(crate) const NAMES: [&str; 7] =
    ["barrier", "broadcast", "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "split"];

/// The state of a rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Beat {
    collective: u8,
    count: u64,
}

impl Beat {
    fn is_waiting(self) -> bool {
        self.count % 2 == 1
    }

    fn name(self) -> &'static str {
        NAMES.get(usize::from(self.collective)).unwrap_or(&"a collective")
    }
}

/// What a rank sends with a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Alive,
    /// The rank ends as planned.
    Done,
    /// The rank ends with an error, which it has reported.
    Failed,
}

/// Bytes of a message to rank 0: news, collective, count.
const MESSAGE: usize = 10;

fn encode(news: News, beat: Beat) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    message[0] = match news {
        News::Alive => 1,
        News::Done => 2,
        News::Failed => 3,
    };
    message[1] = beat.collective;
    message[2..].copy_from_slice(&beat.count.to_le_bytes());
    message
}

fn decode(message: [u8; MESSAGE]) -> (News, Beat) {
    let [news, collective, count @ ..] = message;
    let news = match news {
        2 => News::Done,
        3 => News::Failed,
        _ => News::Alive,
    };
    (news, Beat { collective, count: u64::from_le_bytes(count) })
}

/// A message of rank 0: it is alive.
const ALIVE: u8 = 1;
/// A message of rank 0: all ranks end.
const END: u8 = 2;

/// A secret of the job, so that connections of other programs are ignored.
pub(crate) type Token = [u8; 16];

/// Called when the ranks must end, with the message if this rank is to report it.
pub(crate) type OnEnd = Arc<dyn Fn(Option<String>) + Send + Sync>;

/// Notices that this process itself did not run for a while, so that the silence of others means nothing.
#[derive(Debug)]
struct Clock {
    last: Instant,
    gap: Duration,
}

impl Clock {
    fn new(timing: Timing) -> Self {
        Self { last: Instant::now(), gap: timing.limit / 4 }
    }

    /// Returns the time, and true if the previous call is longer ago than a quarter of the limit.
    fn tick(&mut self) -> (Instant, bool) {
        let now = Instant::now();
        let paused = now - self.last > self.gap;
        self.last = now;
        (now, paused)
    }
}

#[cfg(test)]
mod tests;
