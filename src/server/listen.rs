//! Sockets, signals and an orderly end.
//!
//! The socket is open before the model is loaded, so that `/health` and `/ready` answer meanwhile.
//! SIGTERM or Ctrl-C closes it to new connections; answers under way may end by themselves until
//! shortly before `--drain-timeout` is over, then each is given an error as its last event. A second signal ends the program at once.

pub use super::tls::Tls;

use super::{App, router, state::Phase};
use anyhow::{Context, Result};
use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    response::Response,
};
use axum_server::{
    Handle,
    accept::NoDelayAcceptor,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use std::{
    convert::Infallible,
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    task::{Context as Task, Poll},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// At the end of the drain, from when answers are told to end until their connections are cut.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(5);

/// An open socket.
pub struct Listener {
    socket: TcpListener,
    tls: Option<RustlsConfig>,
}

impl Listener {
    /// Opens the socket; what connects waits until [`serve`] is called.
    ///
    /// # Errors
    /// When the address is taken, not this machine's, or not to be had; when the certificate or its
    /// key can't be read.
    pub fn bind(address: &[SocketAddr], tls: Option<Tls>) -> Result<Listener> {
        let tls = tls.as_ref().map(Tls::config).transpose()?;
        let socket = TcpListener::bind(address).with_context(|| {
            let all: Vec<String> = address.iter().map(SocketAddr::to_string).collect();
            format!("listening on {} (--host, --port)", all.join(", "))
        })?;
        Ok(Listener { socket, tls })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system doesn't say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.socket.local_addr().context("the socket's address")
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }
}

/// Serves `app` until `end` is there, then drains.
///
/// # Errors
/// When the socket fails.
pub async fn serve(
    app: Arc<App>,
    listener: Listener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let handle = Handle::new();
    let connections = Connections {
        router: router(app.clone()),
        permits: Arc::new(Semaphore::new(app.settings.max_connections)),
    };
    let draining = tokio::spawn(drain(app.clone(), handle.clone(), end));
    let upkeep = tokio::spawn(upkeep(app.clone()));
    let timeout = app.settings.header_timeout;
    let Listener { socket, tls } = listener;
    let server = axum_server::from_tcp(socket)?
        .handle(handle)
        .first_request_timeout(timeout);
    // Events are small, and must not wait for each other.
    let acceptor = NoDelayAcceptor::new();
    let served = match tls {
        None => {
            let mut server = server.acceptor(acceptor);
            limit(&mut server, timeout);
            server.serve(connections).await
        }
        Some(tls) => {
            let mut server = server.acceptor(RustlsAcceptor::new(tls).acceptor(acceptor));
            limit(&mut server, timeout);
            server.serve(connections).await
        }
    };
    upkeep.abort();
    draining.abort();
    served.context("serving")
}

fn limit<A>(server: &mut axum_server::Server<SocketAddr, A>, timeout: Duration) {
    let http = server.http_builder();
    http.http1()
        .header_read_timeout(timeout)
        .max_buf_size(64 << 10);
    http.http2()
        .max_concurrent_streams(64)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(timeout)
        .keep_alive_timeout(timeout);
}

async fn drain(app: Arc<App>, handle: Handle<SocketAddr>, end: impl Future<Output = ()>) {
    end.await;
    app.life.enter(Phase::Draining);
    // All of it within the drain's time, unless that is too short to say anything.
    let drain = app.settings.drain_timeout;
    let patience = drain - LAST_WORDS.min(drain / 2);
    handle.graceful_shutdown(Some(patience + LAST_WORDS));
    tokio::time::sleep(patience).await;
    tracing::warn!("answers still under way are ended");
    app.life.stop_answers();
}

async fn upkeep(app: Arc<App>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        app.metrics.upkeep();
    }
}

/// Makes the service of each connection, while there are not too many.
#[derive(Clone)]
struct Connections {
    router: Router,
    permits: Arc<Semaphore>,
}

impl Service<SocketAddr> for Connections {
    type Response = Connection;
    type Error = TooMany;
    type Future = std::future::Ready<Result<Connection, TooMany>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), TooMany>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, peer: SocketAddr) -> Self::Future {
        let permit = self.permits.clone().try_acquire_owned();
        std::future::ready(match permit {
            Err(_) => {
                tracing::warn!(%peer, "too many connections: this one is closed (--max-connections)");
                Err(TooMany)
            }
            Ok(permit) => Ok(Connection {
                router: self.router.clone(),
                peer,
                _permit: Arc::new(permit),
            }),
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("too many connections")]
struct TooMany;

/// One connection's service; its place is free again when it is dropped.
#[derive(Clone)]
struct Connection {
    router: Router,
    peer: SocketAddr,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl<B> Service<Request<B>> for Connection
where
    B: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = <Router as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.router, task)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.router.call(request)
    }
}
