//! What this process holds: threads, children, descriptors, memory. Cheap questions first, since a worker
//! asks them after each job that is not short.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::process;

use crate::clock;
use crate::worker::raw;

/// How many threads there are. One system call: /proc/self/task has a link for each (proc_pid_task(5)).
pub fn thread_count() -> io::Result<u64> {
    // A directory has two links of its own, and one for each thread (proc_task_getattr in fs/proc/base.c).
    Ok(fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

/// The threads, by number.
pub fn threads() -> io::Result<BTreeSet<u32>> {
    let surely = BTreeSet::from([process::id(), clock::thread_id() as u32]);
    // To list them costs ten times as much as to count them.
    if thread_count()? == surely.len() as u64 { Ok(surely) } else { numbers("/proc/self/task") }
}

/// True if this thread of ours waits for something, or is gone.
pub fn is_resting(thread: u32) -> bool {
    !matches!(state_of("self", thread), Some('R' | 'D'))
}

/// True if this thread of another process runs, or waits for nothing but a processor.
pub fn is_runnable(pid: u32, thread: u32) -> bool {
    state_of(pid, thread) == Some('R')
}

fn state_of(process: impl Display, thread: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{process}/task/{thread}/stat")).ok()?;
    // The state is the first letter behind the name, which can hold anything (proc_pid_stat(5)).
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// How many descriptors are open. One system call where the kernel tells (Linux 6.2 and later: the size of
/// /proc/self/fd), else they are counted.
pub fn descriptor_count() -> io::Result<u64> {
    const FILE: &str = "/proc/self/fd";
    match fs::metadata(FILE)?.size() {
        // The one that reads the directory is among them.
        0 => Ok((fs::read_dir(FILE)?.count() as u64).saturating_sub(1)),
        count => Ok(count),
    }
}

/// True if this process has a child, dead or alive, for which it has not waited. Waits for none.
pub fn has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // The only error is ECHILD: there are none.
    raw::wait(libc::P_ALL, 0, &mut raw::no_info(), options)
}

/// The children of all threads, by process id, where the kernel tells (CONFIG_PROC_CHILDREN).
pub fn children() -> io::Result<BTreeSet<u32>> {
    let mut children = BTreeSet::new();
    if !has_children() {
        return Ok(children);
    }
    for thread in threads()? {
        // A thread may end meanwhile; its children are another's then.
        let list = fs::read_to_string(format!("/proc/self/task/{thread}/children"));
        children.extend(list.unwrap_or_default().split_whitespace().flat_map(str::parse::<u32>));
    }
    Ok(children)
}

/// What a process is called: the name that `ps` shows, at most 15 bytes of it.
pub fn name_of(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// The resident set, in bytes (proc_pid_statm(5)).
pub fn resident_bytes() -> io::Result<u64> {
    const FILE: &str = "/proc/self/statm";
    let statm = fs::read_to_string(FILE)?;
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other(format!("{FILE} reads {statm:?}")))?;
    Ok(pages * page_bytes())
}

/// How many bytes a page of memory has.
pub fn page_bytes() -> u64 {
    // SAFETY: the call takes an integer and touches no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

fn numbers(dir: &str) -> io::Result<BTreeSet<u32>> {
    let entries = fs::read_dir(dir)?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.flatten().filter_map(number).collect())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_is_counted_and_listed() {
        let (send, receive) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let waiting = thread::spawn(move || {
            tell.send(crate::clock::thread_id() as u32).unwrap();
            let _ = receive.recv();
        });
        let id = told.recv().unwrap();
        assert!(threads().unwrap().contains(&id));
        // Other tests come and go, so only the least is known: it, us, and the main thread.
        assert!(thread_count().unwrap() >= 3);
        while !is_resting(id) {
            thread::yield_now();
        }
        assert!(!is_resting(crate::clock::thread_id() as u32));
        drop(send);
        waiting.join().unwrap();
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a child that is no worker")]
    fn a_child_is_seen_until_it_is_waited_for() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(has_children());
        assert!(children().unwrap().contains(&child.id()));
        drop(child.stdin.take());
        // Dead, it still is our child.
        while crate::held::name_of(child.id()) == "cat" && is_alive(child.id()) {
            thread::yield_now();
        }
        assert!(children().unwrap().contains(&child.id()));
        child.wait().unwrap();
        assert!(!children().unwrap().contains(&child.id()));
    }

    fn is_alive(pid: u32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
    }

    #[test]
    fn descriptors_and_memory_are_counted() {
        let counted = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let told = descriptor_count().unwrap();
        // Other tests open and close some.
        assert!(told.abs_diff(counted) < 50, "{told} told, {counted} counted");
        assert!(resident_bytes().unwrap() > 100_000);
    }
}
