//! Faults at each place where the journal is written: what was acknowledged is kept, nothing runs twice that must not.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use procpool_daemon::Client;
use procpool_daemon::job::{self, JobId, JobSpec, State, Terms, Work};
use procpool_daemon::protocol::{Refusal, Request, Response};

use super::fixture::{Finished, Home};
use super::journals::FILES;
use crate::life::fixture::is_installed;
use crate::support::{Random, is_alive, test_within};

/// Set it to try each place instead of some that a seed chooses.
const FULL: &str = "PROCPOOL_SWEEP_FULL";
/// How many random kills there are, if not the usual few.
const KILLS: &str = "PROCPOOL_SWEEP_KILLS";

/// The system calls by which a journal is written.
const CALLS: [&str; 3] = ["write,pwrite64", "fdatasync,fsync", "ftruncate,fallocate,unlink"];

/// What clients of one home were told.
#[derive(Debug, Default)]
struct Told {
    /// The line that each acknowledged job writes, and whether it may be run again.
    kept: BTreeMap<JobId, (String, Again)>,
    ended: BTreeMap<JobId, State>,
    /// Whether one more was asked for, and not answered.
    unanswered: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    Once,
}

/// A home and what was told of it, over several daemons.
struct Watched<'a> {
    home: &'a Home,
    told: Told,
    next: u64,
}

fn home() -> Home {
    Home::new("[queue.default]\nslots = 2\n")
}

impl Watched<'_> {
    fn new(home: &Home) -> Watched<'_> {
        Watched { home, told: Told::default(), next: 0 }
    }

    /// Where each job leaves a line.
    fn ledger(&self) -> PathBuf {
        self.home.path().join("ledger")
    }

    /// Submits a job. False if the daemon does not answer any more.
    fn submit(&mut self, client: &Client, again: Again) -> bool {
        let word = format!("job-{}", self.next);
        self.next += 1;
        let script = format!("echo {word} >> {}", self.ledger().display());
        let work = job::Command::here(["sh", "-c", &script]).unwrap();
        let retries = u32::from(again == Again::Once);
        let terms = Terms { retries: Some(retries), ..Terms::new(word.clone()) };
        let spec = JobSpec { terms, work: Work::Command(work) };
        match client.request(&Request::Submit(spec)) {
            Ok(Response::Submitted(id)) => {
                assert!(self.told.kept.insert(id, (word, again)).is_none(), "job {id} twice");
                true
            }
            Ok(other) => panic!("{other:?}"),
            // For a moment, after a write for which there was no room.
            Err(error) if matches!(error.refusal(), Some(Refusal::Busy(why)) if why == "the disk is full") => {
                true
            }
            Err(error) if error.refusal().is_some() => panic!("{error}"),
            Err(_) => {
                self.told.unanswered += 1;
                false
            }
        }
    }

    /// Waits until all that is kept has ended, or nobody answers.
    fn wait(&mut self, client: &Client) {
        let ids: Vec<JobId> = self.told.kept.keys().copied().collect();
        for id in ids {
            match client.request(&Request::Wait(id)) {
                Ok(Response::Ended(_, state)) => {
                    let before = self.told.ended.insert(id, state);
                    assert!(
                        before.is_none_or(|before| before == state),
                        "{id}: {before:?} {state:?}"
                    );
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    assert!(error.refusal().is_none(), "job {id} was acknowledged: {error}");
                    return;
                }
            }
        }
    }

    /// Some jobs, to their ends or the daemon's.
    fn work(&mut self) {
        let Ok(client) = Client::connect(&self.home.socket()) else {
            return;
        };
        for again in [Again::Never, Again::Once, Again::Never] {
            if !self.submit(&client, again) {
                return;
            }
        }
        self.wait(&client);
    }

    /// Starts a daemon that meets no faults, and sees that all is as it was told.
    fn check(&mut self, what: &str) {
        let home = self.home;
        let old = home.workers();
        let daemon = home.start();
        // They are gone before it takes up anything.
        assert!(
            !old.iter().any(|pid| is_alive(*pid)),
            "{what}: workers of the old daemon are left"
        );
        let client = daemon.client();
        self.wait(&client);
        let lines = fs::read_to_string(self.ledger()).unwrap_or_default();
        let count = |word: &str| lines.lines().filter(|line| *line == word).count();
        let known = match client.request(&Request::Page { after: JobId(0), limit: 1000 }) {
            Ok(Response::Page(records)) => records,
            other => panic!("{other:?}"),
        };
        for (id, (word, again)) in &self.told.kept {
            let found: Vec<_> = known.iter().filter(|record| record.terms.title == *word).collect();
            assert_eq!(found.len(), 1, "{what}: {word} is there {} times", found.len());
            assert_eq!(found[0].id, *id);
            let starts = found[0].life.attempts;
            let (state, runs) = (self.told.ended[id], count(word));
            match again {
                Again::Never => {
                    assert!(starts <= 1 && runs <= 1, "{what}: {word} ran {runs} times")
                }
                Again::Once => assert!(starts <= 2 && runs <= 2, "{what}: {word} ran {runs} times"),
            }
            match state {
                State::Succeeded => assert!(runs >= 1, "{what}: {word} succeeded and never ran"),
                State::Interrupted { .. } => assert_eq!(*again, Again::Never, "{what}: {word}"),
                other => panic!("{what}: {word} ended as {other:?}"),
            }
        }
        let most = self.told.kept.len() as u64 + self.told.unanswered;
        assert!(known.len() as u64 <= most, "{what}: {} jobs instead of {most}", known.len());
        daemon.stop();
    }
}

/// Runs a daemon under strace, which injects a fault at the `nth` of these calls on the journal's files, has it work,
/// and gives what is left, and whether the fault happened.
fn under_strace(
    watched: &mut Watched<'_>,
    calls: &str,
    inject: &str,
    nth: u32,
) -> (Finished, bool) {
    let home = watched.home;
    let log = home.path().join("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-b", "execve", "-o"]).arg(&log);
    strace.arg("-e").arg(format!("trace={calls}"));
    strace.arg("-e").arg(format!("inject={calls}:{inject}:when={nth}"));
    for name in FILES.into_iter().chain(["begun", "begun.new"]) {
        strace.arg("-P").arg(watched.home.state().join(name));
    }
    let daemon = watched.home.command();
    strace.arg(daemon.get_program()).args(daemon.get_args());
    strace.env_remove("PROCPOOL_SOCKET").stdin(Stdio::null()).stdout(Stdio::null());
    let mut daemon = home.spawn(strace);
    let finished = if daemon.listens() {
        watched.work();
        // The daemon; strace itself would go on.
        if let Ok(client) = Client::connect(&watched.home.socket()) {
            let _ = client.request(&Request::Stop);
        }
        daemon.finish()
    } else {
        daemon.finish()
    };
    let injected = fs::read_to_string(&log).unwrap().contains("(INJECTED)")
        || finished.code == 128 + Signal::SIGKILL as i32;
    (finished, injected)
}

/// Where a daemon begins. A fault strikes whatever thread makes the call of its number first: in a new directory the
/// one that makes the journal, in one with a journal the one that writes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    New,
    Used,
}

/// Tries a fault at each of the calls until there are no more of them.
fn sweep(inject: &str, is_expected: impl Fn(&Finished) -> bool) {
    if !is_installed("strace") {
        println!("skipped: strace is not installed");
        return;
    }
    let mut random = Random::new();
    for place in [Place::New, Place::Used] {
        for calls in CALLS {
            sweep_calls(place, calls, inject, &is_expected, &mut random);
        }
    }
}

fn sweep_calls(
    place: Place,
    calls: &str,
    inject: &str,
    is_expected: &impl Fn(&Finished) -> bool,
    random: &mut Random,
) {
    let is_full = std::env::var_os(FULL).is_some();
    let mut nth = if is_full { 1 } else { 1 + random.below(8) as u32 };
    let mut faults = 0;
    loop {
        let home = home();
        let mut watched = Watched::new(&home);
        if place == Place::Used {
            home.start().stop();
        }
        let (finished, injected) = under_strace(&mut watched, calls, inject, nth);
        let what = format!("{place:?}: {inject} at number {nth} of {calls}");
        if !injected {
            assert_eq!(finished.code, 0, "{what}: {finished:?}");
            assert_eq!(
                watched.told.ended.len(),
                3,
                "{what}: all has happened that there is to hit"
            );
            watched.check(&what);
            break;
        }
        faults += 1;
        assert!(is_expected(&finished), "{what}: {finished:?}");
        watched.check(&what);
        nth += if is_full { 1 } else { 1 + random.below(24) as u32 };
    }
    println!("{place:?}: {inject} at {calls}: {faults} faults, the last before number {nth}");
    assert!(faults > 0 || calls.starts_with("ftruncate") || !is_full, "{calls}: nothing happened");
}

const LIMIT: Duration = Duration::from_secs(1800);

/// Goal: whenever the daemon is killed, the next one goes on from what was acknowledged.
/// Covers: F-114, F-120, F-121, F-124
#[test]
fn a_daemon_killed_at_any_write_loses_nothing() {
    test_within(LIMIT, || sweep("signal=SIGKILL", |finished| finished.code == 137));
}

/// Goal: a write or a sync that fails ends the daemon with its own exit code, and nothing is acknowledged that is lost.
/// Covers: F-89, F-117
#[test]
fn a_daemon_whose_disk_fails_ends() {
    test_within(LIMIT, || {
        // 106: it had not started yet.
        sweep("error=EIO", |finished| matches!(finished.code, 106 | 107));
    });
}

/// Goal: so does a read that fails, of whatever file of the journal; it is not tried without end, and the journal is left
/// as it was.
/// Covers: F-88
#[test]
fn a_daemon_that_cannot_read_its_journal_ends() {
    if !is_installed("strace") {
        println!("skipped: strace is not installed");
        return;
    }
    test_within(LIMIT, || {
        let is_expected = |finished: &Finished| {
            let names_it = finished.err.contains("journal");
            matches!(finished.code, 106 | 107 | 109) && names_it
        };
        let mut random = Random::new();
        sweep_calls(Place::Used, "read,pread64", "error=EIO", &is_expected, &mut random);
    });
}

/// Goal: a disk without room, for a moment, at any write: the ballast makes room for it. At a sync nobody knows
/// what is on the disk, and the daemon ends.
/// Covers: F-117
#[test]
fn a_daemon_whose_disk_is_full_for_a_moment_loses_nothing() {
    test_within(LIMIT, || {
        sweep("error=ENOSPC", |finished| matches!(finished.code, 0 | 106 | 107));
    });
}

/// Goal: the same at random moments under load, over and over in one state directory.
/// Covers: F-114
#[test]
fn a_daemon_killed_at_random_loses_nothing() {
    let kills = std::env::var(KILLS).map_or(6, |kills| kills.parse().unwrap());
    test_within(LIMIT, || {
        let mut random = Random::new();
        let mut homes = Vec::new();
        let mut rounds = 0;
        while rounds < kills {
            // A new one before lists get longer than a page.
            homes.push(home());
            let mut watched = Watched::new(homes.last().unwrap());
            while rounds < kills && watched.told.kept.len() < 600 {
                rounds += 1;
                kill_at_random(&mut watched, &mut random, rounds);
            }
            let Told { kept, ended, .. } = &watched.told;
            assert!(!kept.is_empty(), "nothing was killed at its work");
            println!("{rounds} kills, {} jobs kept, {} ended", kept.len(), ended.len());
        }
    });
}

fn kill_at_random(watched: &mut Watched<'_>, random: &mut Random, round: u32) {
    let home = watched.home;
    let daemon = home.start();
    let client = daemon.client();
    let pid = nix::unistd::Pid::from_raw(daemon.pid() as i32);
    // Any moment will do; a late one means more work before it.
    let pause = Duration::from_micros(random.below(60_000));
    let killer = thread::spawn(move || {
        thread::sleep(pause);
        nix::sys::signal::kill(pid, Signal::SIGKILL)
    });
    let mut again = [Again::Never, Again::Once].into_iter().cycle();
    while watched.told.kept.len() < 900 && watched.submit(&client, again.next().unwrap()) {}
    killer.join().unwrap().unwrap();
    drop(client);
    assert_eq!(daemon.finish().code, 137);
    watched.check(&format!("kill {round}"));
}
