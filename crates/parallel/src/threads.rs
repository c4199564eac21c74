//! Ranks that are threads of one process, for tests.
//!
//! [`run_ranks`] runs a function on several threads, each of which is a rank of one group. Collectives copy through
//! host memory and add in the order of ranks, as those of `Mpi` do, so that both return the same bits.
//!
//! A failure does not hang: if a rank panics, returns early, calls another collective than the others, or keeps
//! them waiting for [`PATIENCE`], all ranks panic.
//!
//! Ranks share no tensors that require gradients: burn keeps one graph, behind one lock, for all that descends from a
//! tensor, and backward passes of two ranks that wait for each other inside it would deadlock. Build or load the
//! model inside the function.

use crate::{Communicator, Group, Reduction, reduce::accumulate};
use std::{
    any::Any,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

/// How long a rank waits for the others in a collective before all panic.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How often a waiting rank looks whether another one failed.
const POLL: Duration = Duration::from_millis(5);

/// The stack of a rank, as large as that of a main thread.
const STACK: usize = 8 << 20;

/// Runs `body` on `size` threads, the ranks of one group, and returns their results in the order of ranks.
///
/// ```
/// use opensora_parallel::{Reduction, threads::run_ranks};
///
/// let sums = run_ranks(3, |group| {
///     let mut numbers = [group.rank() as f32, 1.0];
///     group.all_reduce(Reduction::Sum, &mut numbers);
///     numbers
/// });
/// assert_eq!(sums, [[3.0, 3.0]; 3]);
/// ```
///
/// # Panics
/// Panics with the panic of the rank that failed first.
pub fn run_ranks<R: Send>(size: usize, body: impl Fn(Group) -> R + Sync) -> Vec<R> {
    run_ranks_within(PATIENCE, size, body)
}

/// As [`run_ranks`], with a limit for the time that a rank waits in a collective.
///
/// # Panics
/// Panics with the panic of the rank that failed first.
pub fn run_ranks_within<R: Send>(
    patience: Duration,
    size: usize,
    body: impl Fn(Group) -> R + Sync,
) -> Vec<R> {
    let fates = Arc::new(Fates {
        patience,
        state: Mutex::new(FateState { failed: None, ended: vec![false; size] }),
    });
    let room = Arc::new(Room::new((0..size).collect(), fates.clone()));
    let run = |rank: usize| {
        let group = Arc::new(ThreadRank { rank, room: room.clone() });
        let result = catch_unwind(AssertUnwindSafe(|| body(group)));
        fates.end(rank, result.as_ref().err());
        result
    };
    let results: Vec<_> = thread::scope(|scope| {
        let run = &run;
        let start = |rank: usize| {
            let builder = thread::Builder::new().name(format!("rank {rank}")).stack_size(STACK);
            builder.spawn_scoped(scope, move || run(rank)).expect("a thread starts")
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().and_then(|result| result)).collect()
    });
    let first = lock(&fates.state).failed.as_ref().map(|(rank, _)| *rank);
    let mut values = Vec::with_capacity(size);
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => values.push(value),
            Err(panic) if first == Some(rank) => resume_unwind(panic),
            Err(_) => {}
        }
    }
    values
}

/// What became of the ranks of a run.
#[derive(Debug)]
struct Fates {
    patience: Duration,
    state: Mutex<FateState>,
}

#[derive(Debug)]
struct FateState {
    /// The rank that panicked first, and its message.
    failed: Option<(usize, String)>,
    /// Whether each rank returned or panicked.
    ended: Vec<bool>,
}

impl Fates {
    fn end(&self, rank: usize, panic: Option<&Box<dyn Any + Send>>) {
        let mut state = lock(&self.state);
        state.ended[rank] = true;
        if let Some(panic) = panic
            && state.failed.is_none()
        {
            let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            state.failed = Some((rank, text.unwrap_or_else(|| "panic".into())));
        }
    }

    /// Panics if waiting is in vain: a rank failed or one of `members` ended.
    fn check(&self, rank: usize, members: &[usize], call: Call) {
        let state = lock(&self.state);
        if let Some((failed, message)) = &state.failed {
            panic!("rank {rank} waits in {call:?} for rank {failed}, which panicked: {message}");
        }
        if let Some(ended) = members.iter().find(|&&member| state.ended[member]) {
            panic!("rank {rank} waits in {call:?} for rank {ended}, which has returned");
        }
    }
}

/// A collective with all that must agree between the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Barrier,
    Broadcast { root: usize, bytes: usize },
    AllReduce { reduction: Reduction, numbers: usize },
    AllReduceF64 { reduction: Reduction, numbers: usize },
    ReduceScatter { numbers: usize },
    AllGather { bytes: usize },
    AllToAll { bytes: usize },
    Split,
}

/// The contribution of a rank.
#[derive(Debug)]
enum Data {
    Nothing,
    Bytes(Vec<u8>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Place { color: usize, key: usize },
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            _ => unreachable!("the calls are equal"),
        }
    }

    fn f32(&self) -> &[f32] {
        match self {
            Self::F32(numbers) => numbers,
            _ => unreachable!("the calls are equal"),
        }
    }

    fn f64(&self) -> &[f64] {
        match self {
            Self::F64(numbers) => numbers,
            _ => unreachable!("the calls are equal"),
        }
    }
}

/// Where the ranks of a group meet.
#[derive(Debug)]
struct Room {
    /// Numbers of the ranks in the whole run.
    members: Vec<usize>,
    fates: Arc<Fates>,
    state: Mutex<Round>,
    changed: Condvar,
    /// Groups made by a round of `split`, by color, until all their ranks have taken them.
    children: Mutex<HashMap<(u64, usize), Child>>,
}

/// A group made by `split`, and how many of its ranks have not taken it.
#[derive(Debug)]
struct Child {
    room: Arc<Room>,
    untaken: usize,
}

#[derive(Debug)]
struct Round {
    number: u64,
    contributions: Vec<Option<(Call, Data)>>,
    /// The contributions of the previous round, until all ranks have taken them.
    complete: Option<Arc<Vec<Data>>>,
    unread: usize,
}

impl Room {
    fn new(members: Vec<usize>, fates: Arc<Fates>) -> Self {
        let contributions = members.iter().map(|_| None).collect();
        Self {
            members,
            fates,
            state: Mutex::new(Round { number: 0, contributions, complete: None, unread: 0 }),
            changed: Condvar::new(),
            children: Mutex::default(),
        }
    }

    /// Waits for the contributions of all ranks; returns them and the number of the round.
    fn exchange(&self, rank: usize, call: Call, data: Data) -> (u64, Arc<Vec<Data>>) {
        let began = Instant::now();
        let mut round = lock(&self.state);
        let number = round.number;
        let previous = round.contributions[rank].replace((call, data));
        assert!(previous.is_none(), "rank {rank} calls two collectives at a time");
        if round.contributions.iter().all(Option::is_some) {
            round.complete(&self.members);
            self.changed.notify_all();
        }
        while round.number == number {
            self.fates.check(self.members[rank], &self.members, call);
            let patience = self.fates.patience;
            assert!(
                began.elapsed() < patience,
                "rank {} has waited {patience:?} in {call:?}",
                self.members[rank]
            );
            let waited = self.changed.wait_timeout(round, POLL);
            round = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        round.unread -= 1;
        let complete =
            if round.unread == 0 { round.complete.take() } else { round.complete.clone() };
        (number, complete.expect("kept until the last rank has read it"))
    }
}

impl Round {
    fn complete(&mut self, members: &[usize]) {
        let contributions: Vec<_> =
            self.contributions.iter_mut().filter_map(|contribution| contribution.take()).collect();
        let (first, _) = contributions[0];
        for ((call, _), member) in contributions.iter().zip(members) {
            let root = members[0];
            assert!(
                *call == first,
                "rank {member} calls {call:?} while rank {root} calls {first:?}"
            );
        }
        let data = contributions.into_iter().map(|(_, data)| data).collect::<Vec<_>>();
        self.unread = data.len();
        self.complete = Some(Arc::new(data));
        self.number += 1;
    }
}

/// A rank that is a thread.
#[derive(Debug)]
struct ThreadRank {
    /// Number in the group.
    rank: usize,
    room: Arc<Room>,
}

impl ThreadRank {
    fn exchange(&self, call: Call, data: Data) -> Arc<Vec<Data>> {
        self.room.exchange(self.rank, call, data).1
    }
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.room.members.len()
    }

    fn barrier(&self) {
        self.exchange(Call::Barrier, Data::Nothing);
    }

    fn broadcast(&self, root: usize, buffer: &mut [u8]) {
        assert!(root < self.size(), "rank {root} of a group of {}", self.size());
        let is_root = root == self.rank;
        let data = if is_root { Data::Bytes(buffer.to_vec()) } else { Data::Nothing };
        let all = self.exchange(Call::Broadcast { root, bytes: buffer.len() }, data);
        if !is_root {
            buffer.copy_from_slice(all[root].bytes());
        }
    }

    fn all_reduce(&self, reduction: Reduction, buffer: &mut [f32]) {
        let call = Call::AllReduce { reduction, numbers: buffer.len() };
        let all = self.exchange(call, Data::F32(buffer.to_vec()));
        buffer.copy_from_slice(all[0].f32());
        all[1..].iter().for_each(|part| accumulate(reduction, buffer, part.f32()));
    }

    fn all_reduce_f64(&self, reduction: Reduction, buffer: &mut [f64]) {
        let call = Call::AllReduceF64 { reduction, numbers: buffer.len() };
        let all = self.exchange(call, Data::F64(buffer.to_vec()));
        buffer.copy_from_slice(all[0].f64());
        all[1..].iter().for_each(|part| accumulate(reduction, buffer, part.f64()));
    }

    fn reduce_scatter(&self, input: &[f32], output: &mut [f32]) {
        assert_eq!(input.len(), output.len() * self.size(), "one part per rank");
        let call = Call::ReduceScatter { numbers: input.len() };
        let all = self.exchange(call, Data::F32(input.to_vec()));
        let mine = self.rank * output.len()..(self.rank + 1) * output.len();
        output.copy_from_slice(&all[0].f32()[mine.clone()]);
        for part in &all[1..] {
            accumulate(Reduction::Sum, output, &part.f32()[mine.clone()]);
        }
    }

    fn all_gather(&self, input: &[u8], output: &mut [u8]) {
        assert_eq!(output.len(), input.len() * self.size(), "one part per rank");
        let call = Call::AllGather { bytes: input.len() };
        let all = self.exchange(call, Data::Bytes(input.to_vec()));
        for (rank, part) in all.iter().enumerate() {
            output[rank * input.len()..][..input.len()].copy_from_slice(part.bytes());
        }
    }

    fn all_to_all(&self, input: &[u8], output: &mut [u8]) {
        assert_eq!(input.len(), output.len(), "as much is received as sent");
        assert!(input.len().is_multiple_of(self.size()), "one part per rank");
        let part = input.len() / self.size();
        let call = Call::AllToAll { bytes: input.len() };
        let all = self.exchange(call, Data::Bytes(input.to_vec()));
        for (rank, sent) in all.iter().enumerate() {
            let mine = &sent.bytes()[self.rank * part..][..part];
            output[rank * part..][..part].copy_from_slice(mine);
        }
    }

    fn split(&self, color: usize, key: usize) -> Group {
        let place = Data::Place { color, key };
        let (round, all) = self.room.exchange(self.rank, Call::Split, place);
        let places = all.iter().enumerate().filter_map(|(rank, data)| match data {
            Data::Place { color: its, key } if *its == color => Some((*key, rank)),
            _ => None,
        });
        let mut places: Vec<_> = places.collect();
        places.sort_unstable();
        let members = places.iter().map(|&(_, rank)| self.room.members[rank]).collect::<Vec<_>>();
        let rank = places.iter().position(|&(_, rank)| rank == self.rank);
        let rank = rank.expect("its own color");
        let mut children = lock(&self.room.children);
        let child = children.entry((round, color)).or_insert_with(|| {
            let untaken = members.len();
            Child { room: Arc::new(Room::new(members, self.room.fates.clone())), untaken }
        });
        let room = child.room.clone();
        child.untaken -= 1;
        if child.untaken == 0 {
            children.remove(&(round, color));
        }
        Arc::new(Self { rank, room })
    }

    fn abort(&self, message: &str) -> ! {
        panic!("{message}");
    }
}

/// Locks; a rank that panicked has changed nothing halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests;
