//! The watchdog of the ranks other than 0.

use super::{ALIVE, Clock, END, News, OnEnd, Pulse, Timing, Token, encode};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

/// How long a connection to one address is tried.
const CONNECT: Duration = Duration::from_secs(5);

/// A handle of the watchdog of a rank.
#[derive(Debug)]
pub(crate) struct Spoke {
    pub(super) stream: TcpStream,
    pulse: Arc<Pulse>,
}

impl Spoke {
    /// Connects to rank 0 at the first of `addresses` that answers, and starts the watchdog of rank `rank`. `hub` is rank 0
    /// in messages.
    pub(crate) fn start(
        addresses: &[SocketAddr],
        token: Token,
        rank: usize,
        hub: String,
        timing: Timing,
        pulse: Arc<Pulse>,
        on_end: OnEnd,
    ) -> std::io::Result<Self> {
        let mut stream = connect(addresses)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timing.tick()))?;
        stream.set_write_timeout(Some(timing.limit))?;
        stream.write_all(&token)?;
        stream.write_all(&(rank as u32).to_le_bytes())?;
        let handle = Self { stream: stream.try_clone()?, pulse: pulse.clone() };
        let watch = Watch { stream, rank, hub, timing, pulse };
        thread::Builder::new().name("watchdog".into()).spawn(move || watch.run(&on_end))?;
        Ok(handle)
    }

    /// Stops the watchdog, after all ranks have arrived at their end.
    pub(crate) fn stop(&self) {
        self.tell(News::Done);
    }

    /// Tells rank 0 that this rank has reported an error.
    pub(crate) fn fail(&self) {
        self.tell(News::Failed);
    }

    fn tell(&self, news: News) {
        self.pulse.ending.store(true, SeqCst);
        // If rank 0 is gone, so is the need to tell it.
        let _ = (&self.stream).write_all(&encode(news, self.pulse.beat()));
    }
}

fn connect(addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = std::io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

struct Watch {
    stream: TcpStream,
    rank: usize,
    /// Rank 0 in messages.
    hub: String,
    timing: Timing,
    pulse: Arc<Pulse>,
}

impl Watch {
    fn run(mut self, on_end: &OnEnd) {
        let mut clock = Clock::new(self.timing);
        let mut seen = Instant::now();
        let mut beaten = seen - self.timing.beat;
        loop {
            let (now, paused) = clock.tick();
            if paused {
                seen = now;
            }
            if self.pulse.ending.load(SeqCst) {
                return;
            }
            if now - beaten >= self.timing.beat {
                // The end of the connection is noticed below.
                let _ = self.stream.write_all(&encode(News::Alive, self.pulse.beat()));
                beaten = now;
            }
            let mut news = [0; 16];
            match self.stream.read(&mut news) {
                Ok(count) if news[..count].contains(&END) => return self.end(None, on_end),
                Ok(count) if news[..count].contains(&ALIVE) => seen = Instant::now(),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                _ => return self.end(Some("ended before the others".into()), on_end),
            }
            // By the time of the tick: a process that was stopped in between is not at fault, and the next tick
            // notices the pause.
            if now.saturating_duration_since(seen) > self.timing.limit {
                let silence = format!(
                    "has not answered for {} s: it is stopped, or its node is lost",
                    self.timing.limit.as_secs()
                );
                return self.end(Some(silence), on_end);
            }
        }
    }

    /// Ends this rank, unless it is ending by itself. Rank 1 reports what happened to rank 0.
    fn end(&self, what: Option<String>, on_end: &OnEnd) {
        if what.is_none() || self.rank > 1 {
            // Time for the rank that reports.
            thread::sleep(self.timing.beat);
        } else {
            // Rank 0 leaves first at a planned end.
            thread::sleep(self.timing.beat / 2);
        }
        if !self.pulse.ending.load(SeqCst) {
            let message = what.filter(|_| self.rank == 1);
            on_end(message.map(|what| format!("{} {what}", self.hub)));
        }
    }
}
