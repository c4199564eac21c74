//! The listener and its connections.

use crate::{
    http::{Security, router},
    queue::Queue,
    stall::Stalling,
};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

/// Longest head of a request in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Time for open requests to finish when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two looks whether the worker still runs.
const WORKER_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest token of a server that other machines reach, in characters.
const MIN_TOKEN: usize = 16;

/// Response to connections beyond the limit.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 for any free port.
    pub port: u16,
    /// Requests that are accepted.
    pub security: Security,
    /// Maximum number of open connections; further ones are answered with 503.
    pub max_connections: usize,
    /// Time limit for sending the head of a request, which is also the keep-alive timeout of an idle
    /// connection.
    pub head_timeout: Duration,
    /// Time after which a connection is closed if the client reads none of a response.
    pub write_timeout: Duration,
}

impl Default for ServerOptions {
    /// Returns the defaults: `127.0.0.1:8080` without a token, 256 connections, 15 and 30 seconds.
    fn default() -> Self {
        Self {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 8080,
            security: Security::default(),
            max_connections: 256,
            head_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl ServerOptions {
    /// Checks the options without listening, so that wrong ones are found before a model is loaded.
    ///
    /// # Errors
    /// Returns an error if others could use the server without a token (from other machines, or through a
    /// proxy that has a name in `security`), the token cannot be sent in a header, or it is short and other
    /// machines reach the server.
    pub fn validate(&self) -> Result<(), ServeError> {
        let (host, security) = (self.host, &self.security);
        let Some(token) = &security.token else {
            if !host.is_loopback() {
                return Err(ServeError::NoToken { host });
            }
            return match security.hosts.first() {
                Some(name) => Err(ServeError::NoTokenForName { name: name.clone() }),
                None => Ok(()),
            };
        };
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ServeError::Token);
        }
        if !host.is_loopback() && token.len() < MIN_TOKEN {
            return Err(ServeError::ShortToken { host });
        }
        Ok(())
    }
}

/// Error of a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is not a loopback address and there is no token.
    #[error("{host} can be reached from other machines: a token is required")]
    NoToken {
        /// The address.
        host: IpAddr,
    },
    /// The token could be guessed.
    #[error(
        "{host} can be reached from other machines: the token needs at least {} characters",
        MIN_TOKEN
    )]
    ShortToken {
        /// The address.
        host: IpAddr,
    },
    /// A host name is accepted without a token: clients of a proxy would need none.
    #[error("the host name '{name}' is accepted: a token is required")]
    NoTokenForName {
        /// The host name.
        name: String,
    },
    /// The token cannot be sent in a header.
    #[error("the token is empty or has other characters than visible ASCII ones")]
    Token,
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The worker has ended, because the engine failed several times in a row or by a panic.
    #[error("the worker has ended: no videos can be made")]
    WorkerEnded,
    /// The threads for network input and output cannot be started.
    #[error("cannot start the network threads")]
    Runtime(#[source] io::Error),
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: ServerOptions,
    stopper: Stopper,
}

/// Stops a server, from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Makes [`Server::run`] return soon.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Listens at the address of the options; connections wait until [`run`](Self::run) is called.
    ///
    /// Call this before [`Queue::open`], whose worker begins at once: an address that is in use is then an
    /// error before any model is loaded.
    ///
    /// # Errors
    /// Returns an error if the options are [not valid](ServerOptions::validate) or the address is in use.
    pub fn bind(options: ServerOptions) -> Result<Self, ServeError> {
        options.validate()?;
        let address = SocketAddr::new(options.host, options.port);
        let bind = |source| ServeError::Bind { address, source };
        let listener = TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, address, options, stopper: Stopper(watch::Sender::new(false)) })
    }

    /// Returns the address and the port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a handle that stops the server.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Answers requests until the server is stopped, then stops the queue: the running job returns to
    /// the queue after the current step.
    ///
    /// # Errors
    /// Returns an error if no threads can be started or the worker has ended by itself.
    pub fn run(self, queue: Arc<Queue>) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(16)
            .thread_name("http")
            .enable_io()
            .enable_time()
            .build()
            .map_err(ServeError::Runtime)?;
        let served = runtime.block_on(self.accept(Arc::clone(&queue)));
        runtime.shutdown_timeout(STOP_TIMEOUT);
        queue.stop();
        served
    }

    async fn accept(self, queue: Arc<Queue>) -> Result<(), ServeError> {
        let Self { listener, options, stopper, .. } = self;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Runtime)?;
        let max_connections = options.max_connections.min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(max_connections));
        let app = router(Arc::clone(&queue), options.security.clone());
        let mut stop = stopper.0.subscribe();
        let mut looks = tokio::time::interval(WORKER_INTERVAL);
        let served = loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    // No file descriptors are left, or the client has disconnected.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                _ = stop.wait_for(|stop| *stop) => break Ok(()),
                _ = looks.tick() => match queue.is_alive() {
                    true => continue,
                    false => break Err(ServeError::WorkerEnded),
                },
            };
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let connection = Connection {
                        stream,
                        app: app.clone(),
                        queue: Arc::clone(&queue),
                        stop: stop.clone(),
                        _place: place,
                    };
                    tokio::spawn(connection.serve(options.head_timeout, options.write_timeout));
                }
                Err(_) => {
                    queue.metrics.rejected_connection();
                    // A non-blocking write: the response fits into the socket's buffer or is dropped.
                    let _ = stream.try_write(BUSY);
                }
            }
        };
        stopper.stop();
        drop(listener);
        queue.begin_stop();
        // All permits are free when all connections have ended.
        let all = u32::try_from(max_connections).unwrap_or(u32::MAX);
        let _ = timeout(STOP_TIMEOUT, places.acquire_many(all)).await;
        served
    }
}

struct Connection {
    stream: TcpStream,
    app: Router,
    queue: Arc<Queue>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, head_timeout: Duration, write_timeout: Duration) {
        let Self { stream, app, queue, mut stop, _place } = self;
        queue.metrics.connected();
        // Small events are sent at once.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(Stalling::new(stream, write_timeout));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(io, TowerToHyperService::new(app));
        tokio::pin!(connection);
        // Errors are those of the client or of its network.
        let stopped = async { stop.wait_for(|stop| *stop).await.map(drop) };
        tokio::select! {
            _ = connection.as_mut() => {}
            _ = stopped => {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(STOP_TIMEOUT, connection).await;
            }
        }
        queue.metrics.disconnected();
    }
}
