//! The server of metrics and probes: plain HTTP, on a thread of its own, within narrow limits. It
//! shares nothing with the ranks' threads but counters.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::address::Address;
use super::board::{Board, Health};
use super::exposition::{Format, expose};
use crate::error::{Error, Result};

/// A socket that listens at `asked`, and where that is.
pub(super) fn listen(asked: Address) -> Result<(TcpListener, SocketAddr)> {
    let listener = asked.listen()?;
    let failed = |error| Error::system("listen for scrapes", error);
    let address = listener.local_addr().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((listener, address))
}

/// Starts the thread, which ends with the process.
pub(super) fn start(listener: TcpListener, board: Arc<Board>) -> Result<()> {
    let failed = |error| Error::system("start the metrics thread", error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(failed)?
    };
    std::thread::Builder::new()
        .name("allfold-metrics".into())
        .spawn(move || runtime.block_on(serve(listener, board)))
        .map_err(failed)?;
    Ok(())
}

async fn serve(listener: tokio::net::TcpListener, board: Arc<Board>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Whoever comes beyond the limit waits in the system's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let board = board.clone();
                tokio::spawn(async move {
                    let _place = place;
                    let _ = tokio::time::timeout(DEADLINE, converse(stream, board)).await;
                });
            }
            // Out of descriptors, say: it passes, and must not be waited for in a busy loop.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, board: Arc<Board>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &board);
        async { Ok::<_, Infallible>(response) }
    });
    // What goes wrong with a scrape is the scraper's to say.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .keep_alive(false)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn answer(request: &Request<Incoming>, board: &Arc<Board>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !["/metrics", "/healthz", "/readyz"].contains(&path) {
        let there = "there is /metrics, /healthz and /readyz\n";
        return plain(StatusCode::NOT_FOUND, there.into());
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/healthz" => probe(board.health()),
        "/readyz" => probe(board.readiness()),
        _ => {
            let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
            scrape(board, Format::accepted(accept))
        }
    }
}

fn scrape(board: &Arc<Board>, format: Format) -> Response<Full<Bytes>> {
    match expose(board, format) {
        Ok(text) => with_type(StatusCode::OK, text, format.content_type()),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot write the metrics\n".into()),
    }
}

fn probe(health: Health) -> Response<Full<Bytes>> {
    match health {
        Health::Well => plain(StatusCode::OK, "ok\n".into()),
        Health::Ill(words) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n")),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    with_type(status, text, "text/plain; charset=utf-8")
}

fn with_type(status: StatusCode, text: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A Prometheus or two, the probes of Kubernetes and a curious person at once.
const MAX_CONNECTIONS: usize = 16;
/// Prometheus sends about ten.
const MAX_HEADERS: usize = 64;
/// The least that hyper takes; a scrape's headers have some 400 bytes.
const MAX_HEADER_BYTES: usize = 8192;
/// A scraper sends its request in one packet. Below the second that Kubernetes gives a probe would
/// be better still, but not on a host whose processors are all taken.
const HEADER_DEADLINE: Duration = Duration::from_secs(1);
/// From a connection's beginning to its end. A scrape takes a millisecond; whoever reads more slowly
/// than this gives up its place.
const DEADLINE: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
