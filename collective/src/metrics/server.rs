//! The server of metrics and probes: plain HTTP, on a thread of its own, within narrow limits. It
//! shares nothing with the ranks' threads but counters.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

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
    let mut conversations = Conversations::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let has_asked = Arc::new(AtomicBool::new(false));
                let talk = converse(stream, board.clone(), has_asked.clone());
                let task = tokio::spawn(async {
                    let _ = tokio::time::timeout(DEADLINE, talk).await;
                });
                conversations.add(Conversation { task: task.abort_handle(), has_asked });
            }
            // Out of descriptors, say: it passes, and must not be waited for in a busy loop.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Those under way, the oldest first.
#[derive(Default)]
struct Conversations(VecDeque<Conversation>);

struct Conversation {
    task: AbortHandle,
    /// Its request's headers are here.
    has_asked: Arc<AtomicBool>,
}

impl Conversations {
    /// Whoever comes is let in: where there are too many, one that has said nothing goes, so that
    /// connections left open keep no probe waiting.
    fn add(&mut self, newest: Conversation) {
        self.0.retain(|conversation| !conversation.task.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            let is_silent = |conversation: &Conversation| !conversation.has_asked.load(Relaxed);
            let place = self.0.iter().position(is_silent).unwrap_or(0);
            if let Some(oldest) = self.0.remove(place) {
                oldest.task.abort();
            }
        }
        self.0.push_back(newest);
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, board: Arc<Board>, has_asked: Arc<AtomicBool>) {
    let service = service_fn(move |request| {
        has_asked.store(true, Relaxed);
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

/// Far more than a Prometheus or two, the probes of Kubernetes and a curious person at once, and
/// a quarter of the descriptors that a process usually may have.
const MAX_CONNECTIONS: usize = 256;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_the_oldest_that_has_not_asked_goes() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut conversations = Conversations::default();
            let mut tasks = Vec::new();
            let mut come = |has_asked| {
                let task = tokio::spawn(std::future::pending::<()>());
                let has_asked = Arc::new(AtomicBool::new(has_asked));
                conversations.add(Conversation { task: task.abort_handle(), has_asked });
                tasks.push(task);
            };
            // The first two are being answered.
            (0..MAX_CONNECTIONS).for_each(|number| come(number < 2));
            // Two too many, though they say nothing either.
            come(false);
            come(false);
            assert_eq!(conversations.0.len(), MAX_CONNECTIONS);
            for gone in [3, 2] {
                assert!(tasks.remove(gone).await.unwrap_err().is_cancelled());
            }
            assert!(tasks.iter().all(|task| !task.is_finished()));
            // Whoever has ended makes room.
            let ended = tasks.remove(0);
            ended.abort();
            assert!(ended.await.unwrap_err().is_cancelled());
            let task = tokio::spawn(std::future::pending::<()>());
            let has_asked = Arc::default();
            conversations.add(Conversation { task: task.abort_handle(), has_asked });
            assert_eq!(conversations.0.len(), MAX_CONNECTIONS);
            tokio::task::yield_now().await;
            assert!(tasks.iter().chain([&task]).all(|task| !task.is_finished()));
        });
    }
}
