//! Connections: how many there may be, and how long each may take to say what it wants. `axum::serve` can't be told either.

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

/// Connections that are open at a time; whoever comes then waits. Some systems let a program open no more than 256 files.
const CONNECTIONS: usize = 200;
/// Longest time from the start of a connection, or from the last answer, to the end of the next request's header.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// What is still open this long after the signal is dropped.
const SHUTDOWN: Duration = Duration::from_millis(1000);

/// Serves until the signal, then for a moment what is open already.
pub async fn serve(mut listener: TcpListener, router: Router, signal: impl Future<Output = ()>) {
    let mut server = Builder::new(TokioExecutor::new()).http1_only();
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
    let (stop, stopping) = watch::channel(());
    let mut open = JoinSet::<()>::new();
    let mut signal = pin!(signal);
    loop {
        tokio::select! {
            // axum's `accept`, which goes on after errors, such as too many open files.
            (stream, _) = Listener::accept(&mut listener), if open.len() < CONNECTIONS => {
                open.spawn(talk(stream, server.clone(), router.clone(), stopping.clone()));
            }
            // Makes room for another.
            Some(_) = open.join_next() => {}
            () = &mut signal => break,
        }
    }
    drop(listener);
    drop(stop);
    let _ = tokio::time::timeout(SHUTDOWN, async { while open.join_next().await.is_some() {} }).await;
}

/// One connection to its end; once the server stops, to the end of the answer that it is at.
async fn talk(stream: TcpStream, server: Builder<TokioExecutor>, router: Router, mut stopping: watch::Receiver<()>) {
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    // An error, such as a client that is too slow, has ended the connection: there is nobody to tell.
    tokio::select! {
        _ = &mut connection => return,
        // The sender is gone.
        _ = stopping.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
