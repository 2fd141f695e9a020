//! The power goes: what was synced is there, and of all else any part may be, in any order.
//!
//! A program writes a journal under strace, which records each write with its bytes, each sync and each acknowledgement.
//! From that record come disks as they may be found after the power went at some moment: of each file the content
//! of its last sync, and of what was written since any of the writes, whole or in part, in any order of sectors; and of
//! the files whose names were not synced, any. Each such disk must have all that was acknowledged by that moment.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::process::Command;
use std::time::Duration;

use procpool_daemon::store::Store;

use super::journals::{self, FILES, Known};
use crate::life::fixture::is_installed;
use crate::support::{Random, TempDir, test_within};

/// Set it for another number of disks than the usual one.
const DISKS: &str = "PROCPOOL_POWER_DISKS";
/// What a disk writes whole.
const SECTOR: usize = 512;
const JOBS: u64 = 24;

/// What happened, in order.
#[derive(Debug, Clone)]
enum Event {
    Create(String),
    Write { file: String, at: usize, bytes: Vec<u8> },
    Truncate { file: String, len: usize },
    Remove(String),
    Rename(String, String),
    Sync(String),
    SyncDir,
    Acked(usize),
}

/// A file on the disk.
#[derive(Debug, Clone, Default)]
struct File {
    content: Vec<u8>,
    /// Writes and truncations since its last sync.
    since: Vec<Event>,
}

/// The disk as far as it is certain, and what is under way.
#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<String, File>,
    /// Those whose name, or whose absence, is not synced.
    unsure: Vec<String>,
    acked: usize,
}

impl Disk {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Create(file) => {
                if !self.files.contains_key(file) {
                    self.files.insert(file.clone(), File::default());
                    self.unsure.push(file.clone());
                }
            }
            Event::Write { file, .. } | Event::Truncate { file, .. } => {
                self.files.get_mut(file).unwrap().since.push(event.clone());
            }
            // It may be there still, and nobody has said that it must not.
            Event::Remove(file) => self.unsure.push(file.clone()),
            Event::Rename(from, to) => {
                let file = self.files.remove(from).unwrap();
                self.files.insert(to.clone(), file);
                self.unsure.push(to.clone());
            }
            Event::Sync(file) => {
                let file = self.files.get_mut(file).unwrap();
                let since = std::mem::take(&mut file.since);
                since.iter().for_each(|event| apply(&mut file.content, event, |_| true));
            }
            Event::SyncDir => self.unsure.clear(),
            Event::Acked(commits) => self.acked = *commits,
        }
    }

    /// What may be found.
    fn after_power_loss(&self, random: &mut Random) -> [Option<Vec<u8>>; 3] {
        // All, none, or of each write whether it was, or of each of its sectors.
        let kind = random.below(4);
        FILES.map(|name| {
            let file = self.files.get(name)?;
            if self.unsure.iter().any(|unsure| unsure == name) && random.below(2) == 0 {
                return None;
            }
            let mut content = file.content.clone();
            let mut since: Vec<&Event> = file.since.iter().collect();
            if kind == 3 && random.below(2) == 0 {
                since.reverse();
            }
            for event in since {
                let is_there = random.below(2) == 0;
                match kind {
                    0 => {}
                    1 => apply(&mut content, event, |_| true),
                    2 if !is_there => {}
                    2 => apply(&mut content, event, |_| true),
                    _ => apply(&mut content, event, |_| random.below(2) == 0),
                }
            }
            Some(content)
        })
    }
}

/// Does to a file what happened to it, as far as its sectors are said to have got there.
fn apply(content: &mut Vec<u8>, event: &Event, mut is_there: impl FnMut(usize) -> bool) {
    match event {
        Event::Write { at, bytes, .. } => {
            let mut start = *at;
            while start < at + bytes.len() {
                let end = ((start / SECTOR + 1) * SECTOR).min(at + bytes.len());
                if is_there(start) {
                    content.resize(content.len().max(end), 0);
                    content[start..end].copy_from_slice(&bytes[start - at..end - at]);
                }
                start = end;
            }
        }
        Event::Truncate { len, .. } if is_there(0) => content.resize(*len, 0),
        _ => {}
    }
}

/// What strace has recorded: `-xx` has all bytes in hexadecimal, `-y` the files of descriptors.
fn parse(log: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut offsets: HashMap<String, usize> = HashMap::new();
    for line in log.lines() {
        let Some((call, rest)) = line.split_once('(') else {
            continue;
        };
        let call = call.rsplit(' ').next().unwrap();
        let result = line.rsplit_once(" = ").map(|(_, result)| result).unwrap_or_default();
        if result.starts_with('-') || line.contains("unfinished") {
            assert!(!line.contains("unfinished"), "one thread writes: {line}");
            continue;
        }
        let descriptor = rest.split(['<', ',']).next().unwrap().to_owned();
        let path = rest.split_once('<').and_then(|(_, path)| path.split_once('>'));
        let path = path.map(|(path, _)| String::from_utf8(bytes(path)).unwrap());
        let text = rest.split_once('"').and_then(|(_, text)| text.split_once('"'));
        let text = text.map(|(text, _)| bytes(text));
        let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
        let file = path.as_deref().map(name).unwrap_or_default();
        let is_ours = is_journal(&file);
        let number = |text: &str| text.trim().parse::<usize>().unwrap();
        let last = || number(rest.rsplit_once(')').unwrap().0.rsplit_once(", ").unwrap().1);
        match call {
            "openat" => {
                let file = name(&String::from_utf8(text.unwrap()).unwrap());
                if is_journal(&file) && rest.contains("O_CREAT") {
                    if rest.contains("O_TRUNC") {
                        events.push(Event::Create(file.clone()));
                        events.push(Event::Truncate { file, len: 0 });
                    } else {
                        events.push(Event::Create(file));
                    }
                }
            }
            "unlink" => {
                let file = name(&String::from_utf8(text.unwrap()).unwrap());
                if is_journal(&file) {
                    events.push(Event::Remove(file));
                }
            }
            "rename" => {
                let mut texts = rest.split('"').skip(1).step_by(2).map(bytes);
                let mut next = || name(&String::from_utf8(texts.next().unwrap()).unwrap());
                events.push(Event::Rename(next(), next()));
            }
            "lseek" => {
                offsets.insert(descriptor, number(result));
            }
            "write" if descriptor == "1" => {
                let said = String::from_utf8(text.unwrap()).unwrap();
                if let Some(commits) = said.strip_prefix("acked ") {
                    events.push(Event::Acked(number(commits)));
                }
            }
            "write" if is_ours => {
                let bytes = text.unwrap();
                let at = offsets.get(&descriptor).copied().unwrap_or(0);
                offsets.insert(descriptor, at + bytes.len());
                events.push(Event::Write { file, at, bytes });
            }
            "pwrite64" if is_ours => {
                events.push(Event::Write { file, at: last(), bytes: text.unwrap() });
            }
            "ftruncate" if is_ours => events.push(Event::Truncate { file, len: last() }),
            "fdatasync" | "fsync" if is_ours => events.push(Event::Sync(file)),
            "fsync" if file == "state" => events.push(Event::SyncDir),
            _ => {}
        }
    }
    events
}

/// The files of a journal, and what it is called before it is whole.
fn is_journal(file: &str) -> bool {
    FILES.contains(&file) || ["journal.new", "journal.new-wal"].contains(&file)
}

/// `\x61\x62` as bytes.
fn bytes(text: &str) -> Vec<u8> {
    let digits = text.split("\\x").skip(1);
    digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect()
}

/// The journal after each number of commits.
fn states() -> Vec<Vec<Known>> {
    let dir = TempDir::new();
    let mut store = journals::open(dir.path()).unwrap();
    let mut states = vec![Vec::new()];
    for changes in journals::commits(JOBS) {
        store.commit(&changes).unwrap();
        states.push(journals::read_from(&mut store).unwrap());
    }
    states
}

/// Goal: what was acknowledged outlives the loss of power at any moment, on a disk that drops, reorders and tears
/// what is not synced; and what was under way is there as a whole or not at all.
/// Covers: F-90, F-119, F-123
#[test]
fn what_is_acknowledged_outlives_the_power() {
    test_within(Duration::from_secs(1800), || {
        if !is_installed("strace") {
            println!("skipped: strace is not installed");
            return;
        }
        let dir = TempDir::new();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        let log = dir.path().join("strace");
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-xx", "-y", "-s", "1000000", "-o"]).arg(&log);
        strace.args([
            "-e",
            "trace=openat,write,pwrite64,lseek,fdatasync,fsync,ftruncate,unlink,rename",
        ]);
        strace.arg(env!("CARGO_BIN_EXE_journal-writer")).arg(&state).arg(JOBS.to_string());
        let output = strace.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let events = parse(&fs::read_to_string(&log).unwrap());
        let states = states();
        let acks = events.iter().filter(|event| matches!(event, Event::Acked(_))).count();
        assert_eq!(acks, states.len() - 1);
        let syncs = events.iter().filter(|event| matches!(event, Event::Sync(_))).count();
        assert!(syncs > acks, "each is synced, and checkpoints come in between: {syncs}");
        assert!(events.iter().any(|event| matches!(event, Event::SyncDir)));
        // The record is whole: it leads to what the program has left.
        let mut disk = Disk::default();
        events.iter().for_each(|event| disk.take(event));
        for name in FILES {
            let file = disk.files.get_mut(name).unwrap();
            let since = std::mem::take(&mut file.since);
            since.iter().for_each(|event| apply(&mut file.content, event, |_| true));
            assert!(file.content == fs::read(state.join(name)).unwrap(), "{name} differs");
        }
        let disks = std::env::var(DISKS).map_or(300, |disks| disks.parse().unwrap());
        let mut random = Random::new();
        let mut seen = [0_u32; 2];
        let place = TempDir::new();
        for _ in 0..disks {
            let moment = random.below(events.len() as u64 + 1) as usize;
            let mut disk = Disk::default();
            events[..moment].iter().for_each(|event| disk.take(event));
            let found = disk.after_power_loss(&mut random);
            journals::lay(place.path(), &found);
            let jobs = journals::read(place.path());
            let jobs = jobs.unwrap_or_else(|error| panic!("event {moment}: {error}"));
            // What was being written may have been finished.
            let more = states[disk.acked..].iter().take(2).position(|state| *state == jobs);
            let more = more.unwrap_or_else(|| {
                panic!("event {moment}, {} commits acknowledged: {jobs:#?}", disk.acked)
            });
            seen[more] += 1;
        }
        println!("{} events, {disks} disks: as acknowledged, or one more: {seen:?}", events.len());
        assert!(seen[1] > 0);
    });
}
