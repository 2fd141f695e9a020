//! What workers write to standard error, line by line.

use std::io::{self, Write};
use std::process;

use procpool::events::Event;
use procpool::{JobId, Output, ProcessPool};

use super::{is_death, now, words};
use crate::support::{Meeting, meet, test};

fn capturing() -> ProcessPool {
    let pool = ProcessPool::builder().workers(1).stderr(Output::Capture).build().unwrap();
    pool.warm_up().unwrap();
    pool
}

fn write(bytes: &[u8]) {
    io::stderr().write_all(bytes).unwrap();
}

/// The lines among events: text, job, whole.
fn lines(events: &[Event]) -> Vec<(&str, Option<JobId>, bool)> {
    let lines = events.iter().filter_map(|event| match event {
        Event::WorkerLine { line, job, whole, .. } => Some((line.as_str(), *job, *whole)),
        _ => None,
    });
    lines.collect()
}

/// Goal: a line is told with the worker, its process and the job that runs, while it runs.
/// Method: the job waits after its line until the test has it, so that "the job that ran as the line was read"
/// is that job.
#[test]
fn a_line_is_told_with_its_job() {
    test(|| {
        let (pool, meeting) = (capturing(), Meeting::new());
        let events = pool.events();
        let job = |path: String| {
            write(b"half a ");
            write(b"line\nand \xff\x1b[1m another\r\n");
            meet(&path, "");
        };
        let future = pool.submit(job, meeting.path());
        let guest = meeting.next();
        let told = [events.recv().unwrap(), events.recv().unwrap()];
        let id = Some(future.id());
        let expected = [("half a line", id, true), ("and \u{fffd}\u{1b}[1m another", id, true)];
        assert_eq!(lines(&told), expected);
        let worker = &pool.workers()[0];
        assert!(matches!(told[0], Event::WorkerLine { worker: 0, pid, .. } if pid == worker.pid));
        assert!(told[1].to_string().ends_with(": and \u{fffd}\\u{1b}[1m another"), "{}", told[1]);
        guest.go();
        future.result().unwrap();
    });
}

/// Goal: the last words of a worker that dies are told before its death is, with the job that died, also those
/// that it did not end.
#[test]
fn last_words_are_told_before_the_death() {
    test(|| {
        let pool = capturing();
        let events = pool.events();
        let job = |()| {
            write(b"first\nlast words");
            process::abort();
        };
        let future = pool.submit::<_, ()>(job, ());
        let id = future.id();
        future.result().unwrap_err();
        let told = now(&events);
        assert_eq!(words(&told)[..3], ["0 says first", "0 says last words", "0 Died with job"]);
        let said = lines(&told);
        assert_eq!((said[0].2, said[1]), (true, ("last words", Some(id), false)));
        assert!(is_death(&told[2]));
    });
}

/// Goal: a flood of lines, and a line without end, is bounded for a receiver that takes nothing: lines in length,
/// events in number; the worker is not held up, and what is lost is counted.
/// Method: 16 MiB, half of it in short lines. Without losses that would be half a million events.
#[test]
fn a_flood_of_lines_is_bounded_and_counted() {
    test(|| {
        let pool = capturing();
        let events = pool.events();
        let flood = |()| {
            write(&[b'x'; 8 << 20]);
            let lines = b"sixteen letters\n".repeat(4096);
            for _ in 0..128 {
                write(&lines);
            }
        };
        pool.submit(flood, ()).result().unwrap();
        drop(pool);
        let told: Vec<Event> = events.collect();
        assert!(told.len() <= 4096 + 10, "{}", told.len());
        let missed: u64 = told
            .iter()
            .map(|event| if let Event::Missed(missed) = event { *missed } else { 0 })
            .sum();
        let said = lines(&told);
        assert!(said.iter().all(|(line, ..)| line.len() <= 4096));
        assert_eq!(said[..2048].iter().map(|(line, ..)| line.len()).sum::<usize>(), 8 << 20);
        // The lines, the pieces of the long one, and what the pool tells besides.
        let all = 128 * 4096 + 2048;
        let got = missed + said.len() as u64;
        assert!((all..all + 10).contains(&got), "{got} of {all}");
    });
}

/// Goal: what goes to the host's standard error is not told as well.
#[test]
fn lines_that_are_passed_on_are_not_told() {
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let events = pool.events();
        pool.submit(|()| write(b"\n"), ()).result().unwrap();
        drop(pool);
        assert_eq!(lines(&events.collect::<Vec<_>>()), []);
    });
}
