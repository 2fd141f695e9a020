//! Children of a worker, one for each of its jobs.
//!
//! Such a worker runs no code but ours, so each child begins as the one before it did. It has one thread, which is all
//! that a fork copies. The child stays in its worker's group and cgroup: whatever ends the worker ends both.

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::process;

use crate::fork_server::Forker;
use crate::held::thread_count;
use crate::spawn::Exit;
use crate::worker;

/// What a worker makes its children with.
#[derive(Debug)]
pub struct Nursery {
    forker: Forker,
}

/// On which side of a fork we are.
#[derive(Debug)]
pub enum Side {
    /// In the worker.
    Worker(Child),
    /// In the child.
    Child,
}

/// A child that has not been waited for.
#[derive(Debug)]
pub struct Child {
    id: u32,
}

impl Nursery {
    /// For the calling thread, which must be the only one. From here on this process hears no signal that is not its
    /// host's death, or SIGCONT: a signal for its group is for the child that runs the job.
    ///
    /// # Errors
    /// If there are other threads, or with what the system says.
    pub fn new() -> io::Result<Nursery> {
        if thread_count()? > 1 {
            return Err(io::Error::new(io::ErrorKind::Deadlock, "only one thread can be forked"));
        }
        worker::leave_signals_to_children()?;
        Ok(Nursery { forker: Forker::of_this_thread() })
    }

    /// Forks a child, which dies with this process, hears every signal, and adopts the orphans below it.
    ///
    /// # Errors
    /// With what the system says.
    pub fn fork(&self) -> io::Result<Side> {
        let worker = process::id();
        match self.forker.clone_child(libc::SIGCHLD)? {
            0 => {
                self.forker.mend_child();
                worker::become_child(worker);
                Ok(Side::Child)
            }
            id => Ok(Side::Worker(Child { id: id as u32 })),
        }
    }
}

impl Child {
    /// Waits for its end.
    pub fn wait(self) -> Exit {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        loop {
            let (place, options) = (info.as_mut_ptr(), libc::WEXITED);
            // SAFETY: `info` is a valid place for one siginfo_t. The child is not waited for elsewhere, so its id is its own.
            let result = unsafe { libc::waitid(libc::P_PID, self.id, place, options) };
            if result == 0 {
                // SAFETY: all zeroes is a valid value of this structure of numbers, and waitid has filled it.
                return Exit::of(unsafe { info.assume_init_ref() });
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return Exit::Unknown;
            }
        }
    }
}

/// Whether this process surely has one thread. A look at /proc costs a new process a tenth of its life: the kernel makes
/// its entries there first.
fn is_alone() -> bool {
    // SAFETY: in a process with one thread the call has no effect, in others it is an error (unshare(2), CLONE_THREAD).
    unsafe { libc::unshare(libc::CLONE_THREAD) == 0 }
}

/// Ends this child: writes what waits in the buffers of the standard output and of the C library's streams, and runs no
/// handlers of atexit(3) nor destructors, as is usual for forked processes (fork(3p), `os._exit` of CPython's
/// multiprocessing). They are a tenth of what a short life costs. Beside other threads, which could hold a buffer for ever, it
/// exits as any program does.
pub fn end(code: i32) -> ! {
    if !is_alone() {
        process::exit(code)
    }
    // There is nobody to tell of an error any more.
    let _ = io::stdout().flush();
    // SAFETY: a null pointer stands for all streams. No other thread holds one.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    // SAFETY: it takes an integer, and ends the process.
    unsafe { libc::_exit(code) }
}
