//! Initialization of MPI, and connection of the watchdogs.

use super::{
    MpiError, MpiOptions,
    group::{MpiGroup, Session, Watchdog},
};
use crate::{
    Communicator as _,
    exchange::{first_error, gather_bytes},
    watchdog::{Hub, OnEnd, Spoke, Timing, Token},
};
use mpi::{
    Threading,
    environment::{initialize_with_threading, processor_name},
};
use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket},
    process,
    sync::Arc,
};

/// Bytes that rank 0 sends to all: port, token, address.
const OFFER: usize = 2 + 16 + 4;

/// Initializes MPI and returns it with the group of all ranks.
pub(super) fn init(options: &MpiOptions) -> Result<(Arc<Session>, MpiGroup), MpiError> {
    // Multiple, so that the watchdog may call MPI_Abort while a collective waits.
    let (universe, threading) =
        initialize_with_threading(Threading::Multiple).ok_or(MpiError::Twice)?;
    if threading < Threading::Serialized {
        return Err(MpiError::Threads { found: format!("{threading:?}") });
    }
    let (session, world) = Session::new(universe, threading, options.report);
    if let (Some(timing), true) = (options.timing(), world.size() > 1) {
        watch(&session, &world, timing).inspect_err(|_| session.finish(&world))?;
    }
    Ok((session, world))
}

/// Starts the watchdogs of all ranks.
fn watch(session: &Arc<Session>, world: &MpiGroup, timing: Timing) -> Result<(), MpiError> {
    let own_host = processor_name().unwrap_or_default();
    let hosts = gather_texts(world, &own_host);
    let processes = gather_texts(world, &process::id().to_string());
    let ranks = hosts.iter().zip(&processes).enumerate();
    let names: Vec<String> =
        ranks.map(|(rank, (host, id))| format!("rank {rank} ({host}, process {id})")).collect();
    let on_end: OnEnd = {
        let session = session.clone();
        Arc::new(move |message| session.end_with(message))
    };
    let pulse = session.pulse.clone();
    let mut offer = [0; OFFER];
    let started = if world.rank() == 0 {
        let listener = listen().map(|(listener, made)| {
            offer = made;
            listener
        });
        world.broadcast(0, &mut offer);
        listener.and_then(|listener| {
            let token = token_of(&offer);
            let hub = Hub::start(listener, token, names.clone(), timing, pulse, on_end)?;
            Ok(Watchdog::Hub(hub, timing))
        })
    } else {
        world.broadcast(0, &mut offer);
        let addresses = addresses_of(&offer, &hosts[0], own_host == hosts[0]);
        let (token, rank, hub) = (token_of(&offer), world.rank(), names[0].clone());
        Spoke::start(&addresses, token, rank, hub, timing, pulse, on_end).map(Watchdog::Spoke)
    };
    let problem = started.as_ref().err().map(|error| match world.rank() {
        0 => format!("{} cannot listen: {error}", names[0]),
        rank => format!("{} cannot connect to {}: {error}", names[rank], names[0]),
    });
    if let Ok(watchdog) = started {
        let _ = session.watchdog.set(watchdog);
    }
    match first_error(world, problem.as_deref()) {
        Some((_, reason)) => Err(MpiError::Watchdog { reason }),
        None => Ok(()),
    }
}

/// Returns a listener on all interfaces, and how to reach it.
fn listen() -> std::io::Result<(TcpListener, [u8; OFFER])> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let mut offer = [0; OFFER];
    offer[..2].copy_from_slice(&port.to_le_bytes());
    for half in offer[2..18].chunks_mut(8) {
        // Hash keys are random.
        half.copy_from_slice(&RandomState::new().hash_one(process::id()).to_le_bytes());
    }
    // The address of the interface of the default route; connecting a UDP socket sends nothing.
    let route = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect(("192.0.2.1", 9)).and_then(|()| socket.local_addr()));
    if let Ok(SocketAddr::V4(address)) = route {
        offer[18..].copy_from_slice(&address.ip().octets());
    }
    Ok((listener, offer))
}

fn token_of(offer: &[u8; OFFER]) -> Token {
    offer[2..18].try_into().expect("sixteen bytes")
}

/// Returns the addresses of rank 0, the most likely first.
fn addresses_of(offer: &[u8; OFFER], host: &str, same_node: bool) -> Vec<SocketAddr> {
    let port = u16::from_le_bytes([offer[0], offer[1]]);
    let route: [u8; 4] = offer[18..].try_into().expect("four bytes");
    let mut addresses = Vec::new();
    if same_node {
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let named = (host, port).to_socket_addrs().into_iter().flatten();
    // Rank 0 listens on IPv4 only. A host may know itself as 127.0.1.1, which is another host elsewhere.
    addresses.extend(
        named.filter(|address| address.is_ipv4() && (same_node || !address.ip().is_loopback())),
    );
    if route != [0; 4] {
        addresses.push(SocketAddr::new(IpAddr::from(route), port));
    }
    addresses
}

/// Returns the texts of all ranks.
fn gather_texts(world: &MpiGroup, text: &str) -> Vec<String> {
    let texts = gather_bytes(world, text.as_bytes());
    texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}
