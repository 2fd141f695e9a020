//! Fetches 42 pages with 20 threads: the work waits rather than computes, so threads do.
//!
//! A [`ThreadPool`] is used like a `ProcessPool`. The pages come from a small HTTP server that the program
//! starts; some of them do not exist, and one kind breaks the server.
//! Run it with `cargo run -p procpool --example fetch`.

use std::collections::HashMap;
use std::error::Error;
use std::sync::LazyLock;
use std::thread;

use procpool::{ThreadPool, as_completed};
use tiny_http::{Response, Server};
use ureq::Agent;

/// One agent for all threads: it keeps their connections. The server is on this machine, and no proxy
/// that the environment names would find it.
static AGENT: LazyLock<Agent> =
    LazyLock::new(|| Agent::config_builder().proxy(None).build().into());

/// The length of the page. A failure that is part of the work is a value like any other.
fn fetch(url: String) -> Result<usize, String> {
    let page = AGENT.get(&url).call().and_then(|mut response| response.body_mut().read_to_string());
    page.map(|text| text.len()).map_err(|error| error.to_string())
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let base = start_server()?;
    let urls: Vec<String> = (0..42)
        .map(|n| match n % 14 {
            5 => format!("{base}/missing/{n}"),
            9 => format!("{base}/broken/{n}"),
            _ => format!("{base}/page/{n}"),
        })
        .collect();
    let threads = ThreadPool::builder().workers(20).name("fetch").build()?;

    println!("submit and as_completed: as they arrive");
    let mut urls_by_job = HashMap::new();
    let mut futures = Vec::new();
    for url in &urls {
        let future = threads.submit(fetch, url.clone());
        urls_by_job.insert(future.id(), url);
        futures.push(future);
    }
    for future in as_completed(futures) {
        let url = urls_by_job[&future.id()];
        report(url, future.result()?);
    }

    println!("map: in the order of the list");
    for (url, page) in urls.iter().zip(threads.map(fetch, urls.clone())) {
        report(url, page?);
    }
    Ok(())
}

fn report(url: &str, page: Result<usize, String>) {
    match page {
        Ok(len) => println!("{url} has {len} bytes"),
        Err(error) => println!("{url} failed: {error}"),
    }
}

/// Serves pages on a free port until the program ends, and returns the address.
fn start_server() -> Result<String, Box<dyn Error + Send + Sync>> {
    let server = Server::http("127.0.0.1:0")?;
    let base = format!("http://{}", server.server_addr());
    thread::spawn(move || {
        for request in server.incoming_requests() {
            let path = request.url().to_owned();
            let (status, text) = match path.split('/').nth(1) {
                Some("page") => (200, format!("This is {path}.\n").repeat(100)),
                Some("broken") => (500, "The server is at fault.\n".to_owned()),
                _ => (404, "There is no such page.\n".to_owned()),
            };
            // A client that has gone away needs no answer.
            let _ = request.respond(Response::from_string(text).with_status_code(status));
        }
    });
    Ok(base)
}
