//! The program's own image: replaced or deleted while it runs, and functions that are not in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use procpool::{JobError, ProcessPool};

use super::fixture::{Fixture, HOST};
use crate::support::{TempDir, test};

/// Runs a copy of the host, does something to the file, and has a new worker started.
fn goes_on_after(change: impl FnOnce(&Path)) {
    let dir = TempDir::new();
    let program = dir.path().join("program");
    fs::copy(HOST, &program).unwrap();
    let mut host = Fixture::start(Command::new(&program).arg("respawn"));
    host.say("run");
    assert_eq!(host.hear(), "Ok(42)");
    change(&program);
    for _ in 0..2 {
        host.say("crash");
        assert_eq!(host.hear(), "Signal(6, false)");
        host.say("run");
        assert_eq!(host.hear(), "Ok(42)");
    }
    let left = host.end();
    assert!(left.status.success(), "{left:?}");
}

/// Goal: a new version installed over a running program does not mix with the old one.
/// Method: as an installer does it, by a rename. The new program could not be a worker.
/// Covers: F-96
#[test]
fn a_replaced_executable_does_not_matter() {
    test(|| {
        goes_on_after(|program| {
            let other = program.with_extension("new");
            fs::write(&other, "#!/bin/sh\nexit 13\n").unwrap();
            fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(&other, program).unwrap();
        });
    });
}

/// Goal: workers are started although the file is gone.
/// Covers: F-96
#[test]
fn a_deleted_executable_does_not_matter() {
    test(|| goes_on_after(|program| fs::remove_file(program).unwrap()));
}

/// Goal: a function of a shared library is refused by name, and costs nobody a worker.
#[test]
#[expect(unsafe_code, reason = "safe code has no `fn` of a shared library")]
fn a_function_outside_the_image_is_unregistered() {
    test(|| {
        type Foreign = unsafe extern "C" fn(libc::c_int) -> libc::c_int;
        let foreign: Foreign = libc::abs;
        // SAFETY: function pointers have one size, and nobody calls this one: it is to be refused.
        let foreign = unsafe { std::mem::transmute::<Foreign, fn(i32) -> i32>(foreign) };
        let pool = ProcessPool::builder().workers(1).build().unwrap();
        let pid = pool.submit(|()| std::process::id(), ()).result().unwrap();
        match pool.submit(foreign, -1).result() {
            Err(JobError::Unregistered(text)) => assert!(text.contains("fn(i32) -> i32"), "{text}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(pool.submit(|()| std::process::id(), ()).result().unwrap(), pid);
        assert_eq!(pool.stats().deaths, 0);
    });
}
