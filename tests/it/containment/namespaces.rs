//! Hosts on machines that are built otherwise: process 1 of a container, ids that come around, file systems that are
//! not there or cannot be written. Only root can build them here.

use std::process::Command;

use nix::unistd::geteuid;

use super::HOST;
use crate::life::fixture::{Fixture, Left};
use crate::support::test;

/// A host's story in namespaces of its own, after a shell's script has built them. `None` where that is not allowed.
fn apart(unshare: &[&str], script: &str, story: &str) -> Option<Left> {
    let may = Command::new("unshare").args(unshare).arg("true").output();
    if !geteuid().is_root() || !may.is_ok_and(|output| output.status.success()) {
        println!("skipped: no namespaces can be made here (unshare {})", unshare.join(" "));
        return None;
    }
    let mut command = Command::new("unshare");
    let script = format!("set -e\n{script}\nexec \"$0\" {story}");
    command.args(unshare).args(["sh", "-c", &script, HOST]);
    Some(Fixture::start(&mut command).end())
}

/// Process ids of its own, and a /proc that shows them; all of them end with whoever started them.
const PROCESSES: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];

/// Goal: a host that is process 1, as in a container, has a pool like any other; the orphans that come to it are not
/// taken for workers, nor workers for orphans, and nothing of the jobs' own is left alive.
/// Covers: F-80
#[test]
fn a_host_that_is_process_1_has_a_pool_like_any_other() {
    test(|| {
        let Some(left) = apart(&PROCESSES, "", "first") else { return };
        assert!(left.status.success(), "{left:?}");
        let lines: Vec<&str> = left.output.lines().collect();
        let [first, crash, timeout, last, others] = lines[..] else { panic!("{left:?}") };
        assert_eq!((first, last, others), ("Ok(42)", "Ok(43)", "[]"));
        assert!(crash.contains("died: SIGABRT"), "{crash}");
        assert!(timeout.contains("time limit"), "{timeout}");
    });
}

/// Goal: a worker that somebody else has reaped, and whose id a stranger has by now, is not signalled any more: the
/// stranger and its group are unharmed, and the death is noticed all the same.
/// Method: a namespace in which the next id can be chosen (ns_last_pid, proc_sys_kernel(5)).
/// Covers: F-94, F-95
#[test]
fn a_stranger_with_the_id_of_a_dead_worker_is_unharmed() {
    test(|| {
        let Some(left) = apart(&PROCESSES, "", "reuse") else { return };
        assert!(left.status.success(), "{left:?}");
        assert_eq!(left.output, "Ok(42)\ndeaths: 1\nunharmed\n", "{left:?}");
    });
}

/// Goal: without /proc there is no way to one's own image, and the error says so: nothing hangs.
/// Covers: F-98
#[test]
fn without_proc_a_pool_says_what_it_lacks() {
    test(|| {
        let Some(left) = apart(&["--mount"], "umount -l /proc", "say") else { return };
        assert!(left.status.success(), "{left:?}");
        assert!(left.output.contains("no pool: "), "{left:?}");
        assert!(left.output.contains("/proc/self/exe"), "{left:?}");
    });
}

/// Goal: nothing is written to any file system, and nothing executed from /tmp: read-only ones, and one from which
/// nothing is executed, cost a pool its cgroups at most, and it says why.
/// Covers: F-98
#[test]
fn read_only_file_systems_cost_the_cgroups_at_most() {
    test(|| {
        // The program may be in /tmp itself, which is covered.
        let script = "mount -t tmpfs none /mnt
            cp \"$0\" /mnt/host
            mount -o remount,ro /mnt
            mount -t tmpfs -o ro,noexec none /tmp
            mount -t tmpfs -o ro none /dev/shm
            for root in / $(cut -d ' ' -f 2 /proc/mounts | grep ^/sys/fs/cgroup); do
                mount -o remount,bind,ro \"$root\"
            done
            cd /
            exec /mnt/host say";
        let Some(left) = apart(&["--mount"], script, "say") else { return };
        assert!(left.status.success(), "{left:?}");
        assert!(left.output.contains("\nOk(42)\n"), "{left:?}");
        assert!(left.output.contains("cgroup: no: "), "{left:?}");
        assert!(left.output.contains("Read-only file system"), "{left:?}");
        assert!(left.output.contains("tree: ProcessGroup"), "{left:?}");
    });
}

/// Goal: large data does not go through /dev/shm, which containers have 64 MiB of.
/// Covers: F-98
#[test]
fn a_tiny_dev_shm_limits_nothing() {
    test(|| {
        let script = "mount -t tmpfs -o size=64k none /dev/shm";
        let Some(left) = apart(&["--mount"], script, "large") else { return };
        assert_eq!(left.output, "Ok(8388608)\n".repeat(3), "{left:?}");
    });
}

/// Goal: a /proc that shows a user its own processes only is enough.
/// Covers: F-98
#[test]
fn a_proc_that_hides_others_is_enough() {
    test(|| {
        let script = "mount -o remount,hidepid=2 /proc
            cp \"$0\" /dev/shm/host-$$
            trap 'rm -f /dev/shm/host-$$' EXIT
            chmod 755 /dev/shm/host-$$
            cd /
            setpriv --reuid 54321 --regid 54321 --clear-groups /dev/shm/host-$$ say
            exit";
        let Some(left) = apart(&["--mount"], script, "say") else { return };
        assert!(left.status.success(), "{left:?}");
        assert!(left.output.contains("list of children: yes"), "{left:?}");
        assert!(left.output.contains("\nOk(42)\n"), "{left:?}");
    });
}
