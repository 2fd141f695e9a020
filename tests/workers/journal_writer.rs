//! Writes a journal and says how far it has come, for a test that has its system calls recorded.

#![expect(clippy::unwrap_used, reason = "the test hears of it")]

#[path = "../it/daemon/journals.rs"]
#[expect(dead_code, reason = "the tests read what this program writes")]
mod journals;

use std::io::Write;
use std::path::Path;

use procpool_daemon::store::Store;

fn main() {
    let dir = std::env::args().nth(1).expect("usage: journal-writer DIR JOBS");
    let jobs = std::env::args().nth(2).and_then(|jobs| jobs.parse().ok()).expect("a number");
    let mut store = journals::open(Path::new(&dir)).unwrap().checkpoint_after(journals::FRAMES);
    let mut stdout = std::io::stdout().lock();
    for (number, changes) in journals::commits(jobs).iter().enumerate() {
        store.commit(changes).unwrap();
        writeln!(stdout, "acked {}", number + 1).unwrap();
    }
    Box::new(store).close().unwrap();
    writeln!(stdout, "closed").unwrap();
}
