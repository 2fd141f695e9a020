//! What commands write, and where it goes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::{GUEST, procpool, start, start_to};
use crate::support::{Meeting, TempDir, test};

/// Goal: output comes as jobs end; with `-k` as the inputs stand.
/// Method: two guests run at the same time, and the second is let go first. The first is let go only when
/// the other's output has been read, or with `-k`, when the other has gone.
#[test]
fn output_comes_in_order_of_completion_or_with_k_of_inputs() {
    test(|| {
        for (flag, expected) in [("-j2", "second first"), ("-kj2", "first second")] {
            let meeting = Meeting::new();
            let path = meeting.path();
            let args = ["run", flag, GUEST, &path, ":::", "first", "second"];
            let mut started = start(&args, Stdio::null());
            let mut guests = [meeting.next(), meeting.next()];
            guests.sort_by(|a, b| a.word.cmp(&b.word));
            let [first, second] = guests;
            let pid = second.word.split(' ').nth(1).unwrap().parse().unwrap();
            second.go();
            let mut out = BufReader::new(started.child.stdout.take().unwrap());
            let mut text = String::new();
            if flag == "-j2" {
                out.read_line(&mut text).unwrap();
            } else {
                crate::support::wait_gone(pid);
            }
            first.go();
            while out.read_line(&mut text).unwrap() > 0 {}
            assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected);
            assert_eq!(started.finish().code, 0);
        }
    });
}

/// Goal: the outputs of jobs are never mixed, and each stream goes where it belongs.
#[test]
fn the_output_of_a_job_stays_together() {
    test(|| {
        let script = "for i in 1 2 3 4 5 6 7 8 9; do echo $0; echo e$0 >&2; done";
        let inputs: String = (10..40).map(|n| format!("{n}\n")).collect();
        let ran = procpool(&["run", "-j4", "sh", "-c", script], inputs.as_bytes());
        assert_eq!(ran.code, 0, "{ran:#?}");
        for (text, mark) in [(ran.out(), ""), (&ran.stderr[..], "e")] {
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 30 * 9);
            for group in lines.chunks(9) {
                assert!(group.iter().all(|line| line == &group[0]), "{group:?}");
                assert_eq!(group[0].starts_with('e'), mark == "e");
            }
        }
    });
}

/// Goal: bytes pass through as they are, in any number: in memory, and beyond what is kept there.
/// Method: sizes around the limit, on both streams; the program's directory for long output is gone at the
/// end, which `finish` checks.
#[test]
fn bytes_pass_through_exactly_however_many() {
    test(|| {
        let dir = TempDir::new();
        for len in [0, 1, 256, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000] {
            let bytes: Vec<u8> = (0..len).map(|n: u32| (n ^ (n >> 8)) as u8).collect();
            let file = dir.path().join("bytes");
            fs::write(&file, &bytes).unwrap();
            let file = file.to_str().unwrap();
            let ran = procpool(&["run", "cat", ":::", file], b"");
            assert!(ran.code == 0 && ran.stdout == bytes, "{len}: {:?}", ran.stderr);
            let errors = dir.path().join("errors");
            let args = ["run", "sh", "-c", "cat \"$0\" >&2", ":::", file];
            let mut started = start(&args, Stdio::null());
            let copied = std::io::copy(&mut started.stderr, &mut File::create(&errors).unwrap());
            assert_eq!(copied.unwrap(), u64::from(len));
            assert!(fs::read(&errors).unwrap() == bytes, "{len} on standard error");
            assert_eq!(started.finish().code, 0);
        }
    });
}

/// Goal: long outputs keep their order and their jobs, and failed attempts leave nothing of theirs.
#[test]
fn long_outputs_of_many_jobs_do_not_meet() {
    test(|| {
        let script = "yes $0 | head -c 2000000; exit $(($0 % 2))";
        let args = ["run", "-k", "-j3", "--retries", "1", "sh", "-c", script, ":::"];
        let args: Vec<&str> = args.into_iter().chain(["1", "2", "3", "4"]).collect();
        let ran = procpool(&args, b"");
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert_eq!(ran.stdout.len(), 8_000_000);
        for (output, digit) in ran.stdout.chunks(2_000_000).zip(b'1'..) {
            let lines = output.chunks(2);
            assert!(lines.into_iter().all(|line| line == [digit, b'\n']), "{digit}");
        }
    });
}

/// Goal: output that can be kept nowhere is told, the command is ended, and the others go on.
/// Method: the command removes the directory for long output before it writes without end.
/// Covers: F-87
#[test]
fn output_that_cannot_be_kept_is_said() {
    test(|| {
        let script = "[ $0 = b ] || exec echo $0; rm -r \"$TMPDIR\"/procpool-*; exec yes";
        let ran = procpool(&["run", "-k", "sh", "-c", script, ":::", "a", "b", "c"], b"");
        assert_eq!((ran.code, ran.out()), (1, "a\nc\n"), "{}", ran.stderr);
        ran.complains("procpool: job 2 (input `b`): its output cannot be kept: ", "No such file");
    });
}

/// Goal: a reader who has seen enough ends the batch, quietly.
#[test]
fn a_closed_standard_output_ends_the_batch_quietly() {
    test(|| {
        let inputs: String = (0..100_000).map(|n| format!("{n}\n")).collect();
        let dir = TempDir::new();
        let file = dir.path().join("inputs");
        fs::write(&file, inputs).unwrap();
        let mut started = start(&["run", "echo"], File::open(&file).unwrap().into());
        let mut line = String::new();
        let mut out = BufReader::new(started.child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        drop(out);
        let ran = started.finish();
        assert_eq!((ran.code, &ran.stderr[..]), (141, ""));
    });
}

/// Goal: output that cannot be written is no success.
/// Covers: F-87
#[test]
fn a_full_standard_output_is_said() {
    test(|| {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let args = ["run", "echo", ":::", "a", "b"];
        let ran = start_to(&args, Stdio::null(), full.into()).finish();
        assert_eq!(ran.code, 105, "{ran:#?}");
        ran.complains("procpool: cannot write to standard output: ", "No space left");
    });
}
