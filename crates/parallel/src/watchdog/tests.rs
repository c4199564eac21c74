use super::*;
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
};

const TIMING: Timing = Timing {
    beat: Duration::from_millis(50),
    limit: Duration::from_millis(1000),
    stuck: Duration::from_millis(1500),
};
const TOKEN: Token = *b"a token of tests";

/// The end that a rank was told.
type Ends = Receiver<(usize, Option<String>)>;

struct Job {
    hub: Hub,
    spokes: Vec<Spoke>,
    pulses: Vec<Arc<Pulse>>,
    ends: Ends,
    address: SocketAddr,
}

fn job(size: usize) -> Job {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, ends) = channel();
    let on_end = |rank: usize| -> OnEnd {
        let send = send.clone();
        Arc::new(move |message| {
            let _ = send.send((rank, message));
        })
    };
    let pulses: Vec<_> = (0..size).map(|_| Arc::new(Pulse::default())).collect();
    let names = (0..size).map(|rank| format!("rank {rank}")).collect();
    let hub = Hub::start(listener, TOKEN, names, TIMING, pulses[0].clone(), on_end(0)).unwrap();
    let spokes = (1..size).map(|rank| {
        let (name, pulse) = ("rank 0".to_string(), pulses[rank].clone());
        Spoke::start(&[address], TOKEN, rank, name, TIMING, pulse, on_end(rank)).unwrap()
    });
    Job { hub, spokes: spokes.collect(), pulses, ends, address }
}

impl Job {
    /// Returns the ends of all of `ranks`, in the order of ranks.
    fn ends(&self, ranks: usize) -> Vec<(usize, Option<String>)> {
        let end = |_| self.ends.recv_timeout(Duration::from_secs(10)).unwrap();
        let mut ends: Vec<_> = (0..ranks).map(end).collect();
        ends.sort();
        ends
    }
}

/// Greets as rank 2, and then does nothing.
fn silent_rank(address: SocketAddr) -> TcpStream {
    use std::io::Write;
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&TOKEN).unwrap();
    stream.write_all(&2u32.to_le_bytes()).unwrap();
    stream
}

#[test]
fn ranks_that_compute_for_long_are_left_alone() {
    let job = job(3);
    job.pulses[1].enter(0);
    job.pulses[2].enter(0);
    // Rank 0 computes while the others wait for it.
    assert_eq!(job.ends.recv_timeout(Duration::from_secs(3)), Err(RecvTimeoutError::Timeout));
    job.pulses.iter().skip(1).for_each(|pulse| pulse.leave());
    job.spokes.iter().for_each(Spoke::stop);
    job.hub.stop();
    drop(job.spokes);
    assert!(job.ends.recv_timeout(Duration::from_secs(2)).is_err());
}

#[test]
fn rank_0_keeps_the_connections_of_ranks_that_are_late_at_their_end() {
    let job = job(3);
    job.spokes[0].stop();
    job.hub.stop();
    // Less than the limit, and more than a rank waits after the end of its connection.
    let late = job.ends.recv_timeout(6 * TIMING.beat);
    assert_eq!(late, Err(RecvTimeoutError::Timeout));
    job.spokes[1].stop();
    assert!(job.ends.recv_timeout(TIMING.limit).is_err());
}

#[test]
fn a_rank_that_ends_ends_all_with_one_message() {
    let mut job = job(3);
    let ended = job.spokes.pop().unwrap();
    // First, or the rank itself reports the end of its connection.
    job.pulses[2].ending.store(true, SeqCst);
    ended.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let message = Some("rank 2 ended before the others".to_string());
    assert_eq!(job.ends(2), [(0, message), (1, None)]);
}

#[test]
fn a_rank_that_stops_ends_all() {
    let mut job = job(3);
    let began = Instant::now();
    job.pulses[2].ending.store(true, SeqCst);
    let _replaced = job.spokes.pop();
    let _stopped = silent_rank(job.address);
    let (_, message) = job.ends(2).remove(0);
    let message = message.unwrap();
    assert!(message.starts_with("rank 2 has not answered for 1 s: it is stopped"), "{message}");
    assert!(began.elapsed() >= TIMING.limit);
}

#[test]
fn rank_1_reports_the_end_of_rank_0() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, ends) = channel();
    let _spokes: Vec<_> = [1, 2]
        .map(|rank| {
            let send = send.clone();
            let on_end: OnEnd = Arc::new(move |message| {
                let _ = send.send((rank, message));
            });
            let (name, pulse) = ("rank 0".to_string(), Arc::default());
            Spoke::start(&[address], TOKEN, rank, name, TIMING, pulse, on_end).unwrap()
        })
        .into();
    drop([listener.accept().unwrap(), listener.accept().unwrap()]);
    let end = || ends.recv_timeout(Duration::from_secs(10)).unwrap();
    let mut found = [end(), end()];
    found.sort();
    assert_eq!(found, [(1, Some("rank 0 ended before the others".into())), (2, None)]);
}

#[test]
fn a_failure_that_is_reported_is_reported_once() {
    let job = job(3);
    job.spokes[1].fail();
    assert_eq!(job.ends(2), [(0, None), (1, None)]);
    let job = self::job(3);
    job.hub.fail(TIMING);
    assert_eq!(job.ends(2), [(1, None), (2, None)]);
}

#[test]
fn ranks_in_collectives_that_do_not_match_are_named() {
    let job = job(2);
    job.pulses[0].enter(4);
    job.pulses[1].enter(2);
    for _ in 0..4 {
        // A slow transfer proceeds.
        thread::sleep(Duration::from_millis(500));
        job.pulses[0].proceed();
    }
    assert!(job.ends.try_recv().is_err());
    let (_, message) = job.ends(2).remove(0);
    let expected = "all ranks have waited for 1 s in collectives that do not match: rank 0 in \
                    all_gather, rank 1 in all_reduce";
    assert_eq!(message.unwrap(), expected);
}

#[test]
fn strangers_are_ignored() {
    use std::io::Write;
    let job = job(2);
    let mut stranger = TcpStream::connect(job.address).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    drop(stranger);
    assert_eq!(job.ends.recv_timeout(Duration::from_secs(1)), Err(RecvTimeoutError::Timeout));
}
