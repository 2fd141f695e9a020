//! Children of a worker, one for each of its jobs.
//!
//! Such a worker runs no code but ours, so each child begins as the one before it did. It has one thread, which is all
//! that a fork copies. The child stays in its worker's group and cgroup: whatever ends the worker ends both.

use std::io::{self, Write};
use std::process;

use crate::fork_server::Forker;
use crate::held::thread_count;
use crate::spawn::Exit;
use crate::worker::{self, raw};

/// What a worker makes its children with.
#[derive(Debug)]
pub struct Nursery {
    forker: Forker,
    id: u32,
    /// What a child is sent when this process dies.
    signal: i32,
}

/// On which side of a fork we are.
#[derive(Debug)]
pub enum Side {
    /// In the worker.
    Worker(Child),
    /// In the child, whose id this is.
    Child(u32),
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
        let signal = worker::leave_signals_to_children()?;
        // Each child writes out what it has printed, and would have to make the buffer first.
        let _ = io::stdout().flush();
        Ok(Nursery { forker: Forker::of_this_thread(), id: process::id(), signal })
    }

    /// Forks a child, which dies with this process, hears every signal, and adopts the orphans below it.
    ///
    /// # Errors
    /// With what the system says.
    pub fn fork(&self) -> io::Result<Side> {
        match self.forker.clone_child(libc::SIGCHLD)? {
            0 => {
                self.forker.mend_child();
                Ok(Side::Child(worker::become_child(self.id, self.signal)))
            }
            id => Ok(Side::Worker(Child { id: id as u32 })),
        }
    }
}

impl Child {
    /// Waits for its end.
    pub fn wait(self) -> Exit {
        let mut info = raw::no_info();
        loop {
            // The child is not waited for elsewhere, so its id is its own.
            if raw::wait(libc::P_PID, self.id, &mut info, libc::WEXITED) {
                return Exit::of(&info);
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return Exit::Unknown;
            }
        }
    }
}

/// Ends this child: writes what waits in the buffers of the standard output and of the C library's streams, and runs no
/// handlers of atexit(3) nor destructors, as is usual for forked processes (fork(3p), `os._exit` of CPython's
/// multiprocessing). They are a tenth of what a short life costs. Beside other threads, which could hold a buffer for ever, it
/// exits as any program does.
pub fn end(code: i32) -> ! {
    // A look at /proc would cost a tenth of the child's life: the kernel makes its entries there first.
    if !raw::is_alone() {
        process::exit(code)
    }
    // There is nobody to tell of an error any more.
    let _ = io::stdout().flush();
    // SAFETY: a null pointer stands for all streams. No other thread holds one.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    raw::exit(code)
}
