//! The accept loop. It limits the number of connections and the time that a request header may take; `axum::serve` can do neither.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Maximum number of open connections; further clients wait. Some systems limit a process to 256 open files.
const MAX_CONNECTIONS: usize = 200;
/// Time limit for a request header, measured from the start of the connection or from the last response.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that open connections have to finish after the shutdown signal.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(1000);

/// Accepts connections until `signal` completes, then gives the open ones a short time to finish.
pub async fn serve(mut listener: TcpListener, router: Router, signal: impl Future<Output = ()>) {
    let mut server = Builder::new(TokioExecutor::new()).http1_only();
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let (stop, stopping) = watch::channel(());
    let mut open = JoinSet::<()>::new();
    let mut signal = pin!(signal);
    loop {
        tokio::select! {
            // axum's `accept` continues after errors such as too many open files.
            (stream, _) = Listener::accept(&mut listener), if open.len() < MAX_CONNECTIONS => {
                open.spawn(serve_connection(stream, server.clone(), router.clone(), stopping.clone()));
            }
            // A connection has closed: there is room for another.
            Some(_) = open.join_next() => {}
            () = &mut signal => break,
        }
    }
    drop(listener);
    drop(stop);
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, async { while open.join_next().await.is_some() {} }).await;
}

/// Serves one connection until it closes. Once the server stops, only the current response is finished.
async fn serve_connection(stream: TcpStream, server: Builder<TokioExecutor>, router: Router, mut stopping: watch::Receiver<()>) {
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    tokio::select! {
        // An error, such as a timeout, has closed the connection; no client is left to report it to.
        _ = &mut connection => return,
        // The sender was dropped: the server is stopping.
        _ = stopping.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
