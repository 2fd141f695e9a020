//! The limits that the kernel enforces.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use procpool::{Death, JobError, Phase, ProcessPool, Status};

use super::limit_of;
use crate::support::{TempDir, test};

fn limits_of(resources: Vec<String>) -> Vec<(String, String)> {
    resources.iter().map(|resource| limit_of(resource)).collect()
}

fn died<R: std::fmt::Debug>(result: Result<R, JobError>) -> Death {
    match result {
        Err(JobError::Died(death)) => death,
        other => panic!("it did not die: {other:?}"),
    }
}

fn both(value: &str) -> (String, String) {
    (value.to_owned(), value.to_owned())
}

/// Goal: each limit that was asked for is there, soft and hard, before the first job.
#[test]
fn workers_have_the_limits_that_were_asked_for() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .open_files_limit(100)
            .file_size_limit(1 << 20)
            .core_size_limit(4096)
            .stack_limit(1 << 20)
            .oom_score_adj(1000)
            .build()
            .unwrap();
        let names = ["Max open files", "Max file size", "Max stack size", "Max core file size"];
        let limits = pool.submit(limits_of, names.map(str::to_owned).to_vec()).result().unwrap();
        assert_eq!(limits[..3], [both("100"), both("1048576"), both("1048576")]);
        assert_eq!(limits[3].0, "4096", "a job may raise it again, so the hard limit stays");
        let score = |()| fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_eq!(pool.submit(score, ()).result().unwrap().trim(), "1000");
    });
}

/// Goal: the limits are there when the initializer runs, which is user code.
#[test]
fn limits_hold_for_the_initializer_too() {
    fn look((): ()) -> Result<(), String> {
        let (soft, _) = limit_of("Max open files");
        if soft == "64" { Ok(()) } else { Err(soft) }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).open_files_limit(64).initializer(look, ());
        pool.build().unwrap().warm_up().unwrap();
    });
}

/// Goal: a job that runs out of descriptors sees EMFILE, and is none the worse for it.
#[test]
fn a_job_that_opens_too_much_is_told_so() {
    fn open_many((): ()) -> i32 {
        let mut open: Vec<OwnedFd> = Vec::new();
        loop {
            match File::open("/dev/null") {
                Ok(file) => open.push(file.into()),
                Err(error) => return error.raw_os_error().unwrap(),
            }
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).open_files_limit(64).build().unwrap();
        for _ in 0..3 {
            assert_eq!(pool.submit(open_many, ()).result().unwrap(), Errno::EMFILE as i32);
        }
        assert_eq!(pool.stats().spawned, 1, "{:?}", pool.stats());
    });
}

/// Goal: a file that grows beyond the limit ends the job, and the verdict names signal and limit.
///
/// Covers: F-102
#[test]
fn a_file_beyond_its_limit_is_named() {
    fn write(path: String) {
        let mut file = File::create(path).unwrap();
        // The first write stops at the limit; the second would begin there.
        for _ in 0..3 {
            file.write_all(&[7; 100_000]).unwrap();
        }
    }
    test(|| {
        let dir = TempDir::new();
        let path = dir.path().join("long").to_str().unwrap().to_owned();
        let pool = ProcessPool::builder().workers(1).file_size_limit(150_000).build().unwrap();
        let death = died(pool.submit(write, path.clone()).result());
        assert_eq!(death.status, Status::Signal(libc::SIGXFSZ, false));
        assert_eq!(death.phase, Phase::Run);
        let text = JobError::Died(death).to_string();
        assert!(text.contains("SIGXFSZ") && text.contains("file_size_limit"), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 150_000);
        pool.submit(|()| (), ()).result().unwrap();
    });
}

/// Goal: a job that reaches a limit on CPU time that it set itself is reported by name.
///
/// Covers: F-102
#[test]
fn a_cpu_limit_of_the_jobs_own_is_named() {
    fn burn((): ()) {
        setrlimit(Resource::RLIMIT_CPU, 1, 10).unwrap();
        let mut n = 0u64;
        loop {
            n = std::hint::black_box(n.wrapping_add(1));
        }
    }
    test(|| {
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let death = died(pool.submit(burn, ()).result());
        assert_eq!(death.status, Status::Signal(libc::SIGXCPU, false));
        let text = JobError::Died(death).to_string();
        assert!(text.contains("SIGXCPU") && text.contains("RLIMIT_CPU"), "{text}");
        pool.submit(|()| (), ()).result().unwrap();
    });
}

/// Goal: a limit that the kernel refuses breaks the start, and the cause names the setting and its value.
#[test]
fn a_limit_that_cannot_be_set_is_named() {
    test(|| {
        // More than fs.nr_open is refused, whoever asks.
        let descriptors = u64::MAX / 2;
        let pool = ProcessPool::builder().workers(1).open_files_limit(descriptors).build().unwrap();
        let error = pool.warm_up().unwrap_err();
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains(&format!("open_files_limit({descriptors})")), "{text}");
    });
}

/// Goal: values that make no sense are errors, before any worker is started.
#[test]
fn limits_that_make_no_sense_are_errors() {
    let builder = ProcessPool::builder;
    let refused = [
        (builder().open_files_limit(15), "open_files_limit(15)"),
        (builder().stack_limit(1000), "stack_limit(1000)"),
        (builder().oom_score_adj(1001), "oom_score_adj(1001)"),
        (builder().oom_score_adj(-1001), "oom_score_adj(-1001)"),
    ];
    for (builder, name) in refused {
        let error = builder.build().unwrap_err();
        assert!(error.is_setting() && error.to_string().starts_with(name), "{error}");
    }
}
