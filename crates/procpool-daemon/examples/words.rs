//! A worker program for a daemon, and the client that gives it work, in one.
//!
//! The daemon runs this program as the worker of a queue, as its configuration says:
//!
//! ```toml
//! [queue.words]
//! worker = "/the/whole/path/of/words"
//! slots = 4
//! ```
//!
//! Run by hand it submits a job for each file that it is given, prints their numbers, and then what came of them:
//! `words SOCKET FILE...`. If it is killed meanwhile, the jobs go on, and `procpool result` has what came of each.

use std::{env, fs, path};

use procpool::{Executor, JobFuture};
use procpool_daemon::Daemon;

/// How many words a file has. The daemon knows it as `words::count`.
#[procpool::task]
fn count(file: String) -> Result<usize, String> {
    let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    Ok(text.split_whitespace().count())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // In a worker this never returns.
    procpool::init();
    let mut arguments = env::args().skip(1);
    let socket = arguments.next().ok_or("usage: words SOCKET FILE...")?;
    let daemon = Daemon::connect_to(socket, "words")?;
    let mut jobs: Vec<(String, JobFuture<Result<usize, String>>)> = Vec::new();
    for file in arguments {
        // A worker has another current directory.
        let whole = path::absolute(&file)?.display().to_string();
        let job = daemon.job(count, whole).retries(2).name(format!("words of {file}")).submit();
        jobs.push((file, job));
    }
    for (file, job) in &jobs {
        if let Some(id) = daemon.id(job) {
            println!("{file}: job {id}");
        }
    }
    for (file, job) in jobs {
        match job.result()? {
            Ok(words) => println!("{file}: {words} words"),
            Err(why) => println!("{file}: {why}"),
        }
    }
    Ok(())
}
