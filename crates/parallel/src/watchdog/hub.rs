//! The watchdog of rank 0.

use super::{ALIVE, Beat, Clock, END, MESSAGE, News, OnEnd, Pulse, Timing, Token, decode};
use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Instant,
};

/// Bytes of a greeting: token and rank.
const GREETING: usize = 20;

/// How many ranks a message about a deadlock lists.
const LISTED: usize = 8;

/// A handle of the watchdog of rank 0.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    orders: Arc<Orders>,
}

#[derive(Debug, Default)]
struct Orders {
    stop: AtomicBool,
    fail: AtomicBool,
}

impl Hub {
    /// Starts the watchdog. `names` are the ranks in messages.
    pub(crate) fn start(
        listener: TcpListener,
        token: Token,
        names: Vec<String>,
        timing: Timing,
        pulse: Arc<Pulse>,
        on_end: OnEnd,
    ) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let orders = Arc::new(Orders::default());
        let now = Instant::now();
        let ranks = names.iter().map(|_| Rank::new(now)).collect();
        let watch = Watch {
            listener,
            token,
            names,
            timing,
            pulse,
            orders: orders.clone(),
            ranks,
            unknown: Vec::new(),
            moved: now,
        };
        thread::Builder::new().name("watchdog".into()).spawn(move || watch.run(&on_end))?;
        Ok(Self { orders })
    }

    /// Stops the watchdog, after all ranks have arrived at their end. Its thread keeps their connections until all
    /// have said so, at most for [`Timing::limit`].
    pub(crate) fn stop(&self) {
        self.orders.stop.store(true, SeqCst);
    }

    /// Has all other ranks end without a message, because this one has reported an error. Returns when they know.
    pub(crate) fn fail(&self, timing: Timing) {
        self.orders.fail.store(true, SeqCst);
        thread::sleep(2 * timing.tick());
    }
}

/// A rank as rank 0 sees it. Rank 0 itself is the first, without connection.
#[derive(Debug)]
struct Rank {
    stream: Option<TcpStream>,
    /// The beginning of a message of which the rest has not arrived.
    partial: Vec<u8>,
    seen: Instant,
    beat: Beat,
    /// The rank has said that it is done, or its connection is closed.
    done: bool,
}

impl Rank {
    fn new(now: Instant) -> Self {
        Self { stream: None, partial: Vec::new(), seen: now, beat: Beat::default(), done: false }
    }
}

/// A connection that has not sent its whole greeting.
struct Unknown {
    stream: TcpStream,
    greeting: Vec<u8>,
    since: Instant,
}

/// Why all ranks must end.
enum End {
    Reported,
    Message(String),
}

struct Watch {
    listener: TcpListener,
    token: Token,
    names: Vec<String>,
    timing: Timing,
    pulse: Arc<Pulse>,
    orders: Arc<Orders>,
    ranks: Vec<Rank>,
    /// Connections that have not sent their greeting.
    unknown: Vec<Unknown>,
    /// When a rank last proceeded.
    moved: Instant,
}

impl Watch {
    fn run(mut self, on_end: &OnEnd) {
        let mut clock = Clock::new(self.timing);
        let mut beaten = Instant::now() - self.timing.beat;
        loop {
            let (now, paused) = clock.tick();
            if paused {
                self.ranks.iter_mut().for_each(|rank| rank.seen = now);
                self.moved = now;
            }
            if self.orders.stop.load(SeqCst) {
                return self.linger();
            }
            if self.orders.fail.load(SeqCst) {
                return self.end();
            }
            self.accept(now);
            let end = self.listen(now).or_else(|| self.silent(now)).or_else(|| self.stuck(now));
            if let Some(end) = end {
                // The ranks may have finished meanwhile.
                if self.orders.stop.load(SeqCst) {
                    return self.linger();
                }
                self.end();
                return on_end(match end {
                    End::Reported => None,
                    End::Message(message) => Some(message),
                });
            }
            if now - beaten >= self.timing.beat {
                self.send(ALIVE);
                beaten = now;
            }
            thread::sleep(self.timing.tick());
        }
    }

    /// Accepts connections, and assigns those that have sent their greeting to their ranks.
    fn accept(&mut self, now: Instant) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.unknown.push(Unknown { stream, greeting: Vec::new(), since: now });
            }
        }
        for mut unknown in std::mem::take(&mut self.unknown) {
            let mut rest = [0; GREETING];
            let missing = &mut rest[unknown.greeting.len()..];
            match unknown.stream.read(missing) {
                Ok(count) if count > 0 => unknown.greeting.extend_from_slice(&missing[..count]),
                Err(error) if is_pause(&error) => {}
                _ => continue,
            }
            if unknown.greeting.len() < GREETING {
                if now.saturating_duration_since(unknown.since) < self.timing.limit {
                    self.unknown.push(unknown);
                }
                continue;
            }
            let (token, number) = unknown.greeting.split_at(self.token.len());
            let number = u32::from_le_bytes(number.try_into().expect("four bytes"));
            if let (true, Some(rank)) = (token == self.token, self.ranks.get_mut(number as usize)) {
                rank.stream = Some(unknown.stream);
                rank.seen = now;
            }
        }
    }

    /// Reads what has arrived; returns an end if a rank has ended.
    fn listen(&mut self, now: Instant) -> Option<End> {
        for (index, rank) in self.ranks.iter_mut().enumerate() {
            let Some(stream) = &mut rank.stream else { continue };
            let mut buffer = [0; 64 * MESSAGE];
            match stream.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    rank.seen = now;
                    rank.partial.extend_from_slice(&buffer[..count]);
                }
                Err(error) if is_pause(&error) => {}
                _ if rank.done => rank.stream = None,
                _ => {
                    rank.done = true;
                    let name = &self.names[index];
                    return Some(End::Message(format!("{name} ended before the others")));
                }
            }
            let whole = rank.partial.len() / MESSAGE * MESSAGE;
            for message in rank.partial.drain(..whole).collect::<Vec<_>>().chunks(MESSAGE) {
                let (news, beat) = decode(message.try_into().expect("a whole message"));
                match news {
                    News::Alive => {}
                    News::Done => rank.done = true,
                    News::Failed => return Some(End::Reported),
                }
                if beat != rank.beat {
                    rank.beat = beat;
                    self.moved = now;
                }
            }
        }
        None
    }

    /// Returns an end if a rank has been silent for too long.
    fn silent(&self, now: Instant) -> Option<End> {
        let limit = self.timing.limit;
        let (_, name) = self
            .ranks
            .iter()
            .zip(&self.names)
            .skip(1)
            .find(|(rank, _)| !rank.done && now.saturating_duration_since(rank.seen) > limit)?;
        Some(End::Message(format!(
            "{name} has not answered for {} s: it is stopped, or its node is lost",
            limit.as_secs()
        )))
    }

    /// Returns an end if all ranks wait for each other.
    fn stuck(&mut self, now: Instant) -> Option<End> {
        let own = self.pulse.beat();
        if own != self.ranks[0].beat {
            self.ranks[0].beat = own;
            self.moved = now;
        }
        let all_wait = self.ranks.iter().all(|rank| rank.beat.is_waiting());
        if !all_wait || now.saturating_duration_since(self.moved) < self.timing.stuck {
            return None;
        }
        let places = self.ranks.iter().take(LISTED).enumerate();
        let places: Vec<_> =
            places.map(|(rank, at)| format!("rank {rank} in {}", at.beat.name())).collect();
        let more = if self.ranks.len() > LISTED { ", ..." } else { "" };
        Some(End::Message(format!(
            "all ranks have waited for {} s in collectives that do not match: {}{more}",
            self.timing.stuck.as_secs(),
            places.join(", ")
        )))
    }

    /// Waits until the other ranks have said that they are done, or are gone. A rank that is slow between the last
    /// barrier and its end would take a connection that closes before for the failure of rank 0.
    fn linger(mut self) {
        let until = Instant::now() + self.timing.limit;
        while self.ranks.iter().skip(1).any(|rank| !rank.done) {
            let now = Instant::now();
            if now >= until {
                return;
            }
            self.accept(now);
            // How they end is no news any more.
            let _ = self.listen(now);
            thread::sleep(self.timing.tick());
        }
    }

    /// Has all other ranks end.
    fn end(&mut self) {
        self.accept(Instant::now());
        self.send(END);
        // A connection that closes before they have read loses the message.
        thread::sleep(self.timing.beat);
    }

    /// Sends `message` to all other ranks. A full buffer of a stopped rank is no error.
    fn send(&mut self, message: u8) {
        for rank in &mut self.ranks {
            if let Some(stream) = &mut rank.stream {
                let _ = stream.write(&[message]);
            }
        }
    }
}

/// Returns true if a stream that does not block has nothing to read.
fn is_pause(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
