//! What a job changes in its worker's process.

use std::env;
use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::{Mode, umask};
use procpool::ProcessPool;

use crate::support::test;

/// Changes everything about its process that the next job could see.
#[expect(unsafe_code, reason = "jobs do such things")]
fn change_all((): ()) {
    env::set_current_dir("/proc").unwrap();
    umask(Mode::from_bits_truncate(0o123));
    // SAFETY: a job of this test is the only one that looks at the environment.
    unsafe { env::set_var("CHANGED_BY_A_JOB", "yes") };
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { signal(Signal::SIGUSR1, SigHandler::SigIgn) }.unwrap();
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR2);
    blocked.thread_block().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 123, hard).unwrap();
    // SAFETY: the call takes an integer and touches no memory of ours.
    unsafe { libc::nice(7) };
    // SAFETY: the pointer is to a constant that ends in a zero.
    assert!(!unsafe { libc::setlocale(libc::LC_ALL, c"C.UTF-8".as_ptr()) }.is_null());
}

/// All of it, as a job sees it.
#[expect(unsafe_code, reason = "std has no word for the locale")]
fn look((): ()) -> Vec<String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().to_owned();
    // SAFETY: without a second argument it only asks, and nobody changes the locale meanwhile.
    let locale = unsafe { libc::setlocale(libc::LC_ALL, std::ptr::null()) };
    // SAFETY: the C library answers a string that ends in a zero.
    let locale = unsafe { std::ffi::CStr::from_ptr(locale) };
    vec![
        env::current_dir().unwrap().display().to_string(),
        line("Umask"),
        format!("{:?}", env::var_os("CHANGED_BY_A_JOB")),
        line("SigIgn"),
        line("SigBlk"),
        format!("descriptors {}", getrlimit(Resource::RLIMIT_NOFILE).unwrap().0),
        format!("nice {nice}"),
        locale.to_str().unwrap().to_owned(),
    ]
}

/// Goal: what a job changes in its process is there for the next job of the same worker, which is what the
/// documentation says, and never for one in another.
///
/// Covers: F-27
#[test]
fn a_jobs_changes_stay_in_its_process() {
    test(|| {
        let reusing = ProcessPool::builder().workers(1).build().unwrap();
        let before = reusing.submit(look, ()).result().unwrap();
        reusing.submit(change_all, ()).result().unwrap();
        let after = reusing.submit(look, ()).result().unwrap();
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(before, after, "the change did not happen, or did not stay");
        }
        let fresh = ProcessPool::builder().workers(1).max_jobs_per_worker(1).build().unwrap();
        for _ in 0..2 {
            assert_eq!(fresh.submit(look, ()).result().unwrap(), before);
            fresh.submit(change_all, ()).result().unwrap();
        }
    });
}
