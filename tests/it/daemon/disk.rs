//! Full disks, and journals that stay small.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use procpool_daemon::job::{JobId, Life, Moment, State, Step, Who};
use procpool_daemon::store::{Change, Store};

use super::fixture::Home;
use super::journals::{FRAMES, ended, insert, open, read_from, started};
use crate::support::{Meeting, TempDir, test, wait_until};

const GUEST: &str = env!("CARGO_BIN_EXE_guest");

/// Goal: on a full disk jobs are refused, those that run are ended well, and when there is room again all goes on.
/// Method: a daemon in a mount namespace of its own, with its state on a file system of 40 MiB, which a file fills: there is
/// room for the ballast, and not for all of the log's length.
/// Covers: F-116
#[test]
fn a_full_disk_refuses_jobs_and_records_ends() {
    test(|| {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root mounts a file system");
            return;
        }
        let home = Home::new("");
        let state = home.state();
        fs::create_dir(&state).unwrap();
        let socket = home.path().join("socket");
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c"]);
        unshare.arg("mount -t tmpfs -o size=40m,mode=700 tmpfs \"$0\" && exec \"$@\"").arg(&state);
        let daemon = home.command();
        unshare.arg(daemon.get_program()).args(daemon.get_args()).arg("--socket").arg(&socket);
        unshare.env_remove("PROCPOOL_SOCKET").stdin(Stdio::null()).stdout(Stdio::null());
        let mut daemon = home.spawn(unshare);
        daemon.wait_to_say("listening at");
        let run = |words: &[&str]| {
            let mut command = Command::new(super::fixture::PROCPOOL);
            let output = command.args(words).env("PROCPOOL_SOCKET", &socket).output().unwrap();
            (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let meeting = Meeting::new();
        assert_eq!(run(&["submit", "--", GUEST, &meeting.path(), "here"]).0, 0);
        let guest = meeting.next();
        // The daemon's view of its directory.
        let inside = PathBuf::from(format!("/proc/{}/root{}", daemon.pid(), state.display()));
        let (filler, ballast) = (inside.join("filler"), inside.join("ballast"));
        assert!(ballast.exists());
        let mut file = fs::File::create(&filler).unwrap();
        while file.write(&[7; 1 << 16]).is_ok() {}
        while file.write(&[7]).is_ok() {}
        drop(file);
        // What was free a moment ago is believed for a moment.
        let full = "procpool: the daemon is busy: the disk is full\n";
        wait_until("the disk is full", || run(&["submit", "--", "true"]) == (111, full.to_owned()));
        guest.go();
        // It may have failed for want of room itself; its end is told, and was recorded before.
        let (code, said) = run(&["wait", "1"]);
        assert!(code <= 1, "{said}");
        assert!(!ballast.exists(), "it made room for the end of the job");
        assert_eq!(run(&["submit", "--", "true"]), (111, full.to_owned()));
        fs::remove_file(&filler).unwrap();
        wait_until("a job is taken again", || run(&["submit", "--wait", "--", "true"]).0 == 0);
        wait_until("the ballast is back", || {
            run(&["submit", "--wait", "--", "true"]).0 == 0 && ballast.exists()
        });
        assert_eq!(run(&["stop"]).0, 0);
        assert_eq!(daemon.finish().code, 0);
    });
}

/// Goal: a journal is as large as what is in it, however much went through it, with one old job in it all the time.
/// Covers: F-122
#[test]
fn a_journal_does_not_grow_with_what_went_through_it() {
    test(|| {
        let dir = TempDir::new();
        let mut store = open(dir.path()).unwrap().checkpoint_after(FRAMES);
        store.commit(&[insert(1, 100)]).unwrap();
        let mut sizes = Vec::new();
        let mut id = 1;
        for _ in 0..40 {
            for _ in 0..10 {
                let ids: Vec<u64> = (id + 1..=id + 20).collect();
                id += 20;
                let all = |change: fn(u64) -> Change| ids.iter().map(move |id| change(*id));
                let new: Vec<Change> = ids.iter().map(|id| insert(*id, 1000)).collect();
                store.commit(&new).unwrap();
                store.commit(&all(started).chain(all(ended)).collect::<Vec<_>>()).unwrap();
                // Half by age, half because somebody wants it.
                let stale = store.stale(Moment(u64::MAX), u64::MAX, 10).unwrap();
                assert_eq!(stale.len(), 10);
                let expired: Vec<Change> = stale
                    .into_iter()
                    .map(|record| Change::Expire { id: record.id, life: expired(record.life) })
                    .collect();
                store.commit(&expired).unwrap();
                let gone: Vec<Change> =
                    ids.iter().map(|id| Change::Forget { id: JobId(*id) }).collect();
                store.commit(&gone).unwrap();
            }
            let len = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len();
            sizes.push(len("journal.sqlite") + len("journal.sqlite-wal"));
        }
        println!("{} jobs went through: {sizes:?}", id - 1);
        assert!(sizes[39] <= sizes[4], "it grows: {sizes:?}");
        assert!(sizes[39] < 2 << 20, "it is large: {sizes:?}");
        let left = read_from(&mut store).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(store.next_id().unwrap(), JobId(id + 1));
    });
}

fn expired(mut life: Life) -> Life {
    let step = Step { at: Moment(0), state: State::Expired, who: Who::Daemon, why: None };
    life.history.push(step);
    life
}

/// Goal: what was kept long enough goes: results, logs and what was to do; that it was there is still known.
/// Covers: F-126
#[test]
fn a_result_is_kept_until_it_expires() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let kept = home.submit(&["--key=k", "--", "echo", "kept"]);
        home.out(&["wait", &kept.to_string()]);
        daemon.stop();
        // Whoever comes later and knows the number finds it.
        let daemon = home.start();
        assert_eq!(home.out(&["result", &kept.to_string()]), "kept\n");
        daemon.stop();
        fs::write(home.path().join("config.toml"), "[retention]\ndays = 0\n").unwrap();
        let daemon = home.start();
        wait_until("it has expired", || home.status(kept)["state"] == "expired");
        assert_eq!(home.history(kept), ["queued", "running", "succeeded", "expired"]);
        let late = home.run(&["result", &kept.to_string()]);
        assert_ne!(late.code, 0, "{late:?}");
        assert!(late.err.contains("expired"), "{late:?}");
        let logs = walk(&home.state().join("logs"));
        assert!(logs.is_empty(), "{logs:?}");
        // The key is free again.
        assert_ne!(home.submit(&["--key=k", "--", "echo", "again"]), kept);
        daemon.stop();
    });
}

/// The files below a directory.
fn walk(dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let below = |path: PathBuf| if path.is_dir() { walk(&path) } else { vec![path] };
    entries.flat_map(|entry| below(entry.path())).collect()
}
