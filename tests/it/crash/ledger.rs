//! What jobs really did: each writes a line when it runs, and no crash takes a line back.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;

use crate::support::TempDir;

/// A file to which jobs append: number and attempt.
pub(super) struct Ledger {
    dir: TempDir,
}

impl Ledger {
    pub(super) fn new() -> Ledger {
        Ledger { dir: TempDir::new() }
    }

    /// What to give to jobs.
    pub(super) fn path(&self) -> String {
        let path = self.dir.path().join("ledger");
        path.to_str().unwrap().to_owned()
    }

    /// For each job that ran, the attempts that it was told, in the order in which they ran.
    pub(super) fn attempts(&self) -> BTreeMap<u64, Vec<u32>> {
        let mut attempts = BTreeMap::<_, Vec<_>>::new();
        for line in fs::read_to_string(self.path()).unwrap_or_default().lines() {
            let (number, attempt) = line.split_once(' ').unwrap();
            attempts.entry(number.parse().unwrap()).or_default().push(attempt.parse().unwrap());
        }
        attempts
    }
}

/// For a job: writes that it runs. One write is one line, whoever else writes.
pub(super) fn note(path: &str, number: u64) {
    let attempt = procpool::context().expect("called by a job").attempt();
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(format!("{number} {attempt}\n").as_bytes()).unwrap();
}
