//! A worker that runs none of its jobs itself: each has a child of its own, forked for it, which ends with it.
//!
//! The worker takes a job out of the shared memory, with all that came for it over the control channel, and forks. The
//! child claims the job, runs it, hands over its outcome and exits; the worker has waited for that, and takes the next
//! job. Nothing but the outcome and the stream of progress passes through hands that a job has had: the worker runs no
//! code but ours.
//!
//! A child that ends in any other way than with its outcome ends its worker, which tells the pool how. What is left of the
//! child the pool ends, as after any worker: the worker leaves its cgroup as it is, since no process can be born into one
//! that was killed (seen with Linux 6.18), and the next shall be. Who leaves processes behind says so with its outcome, and
//! its worker takes no further job. Where no child can be had the worker runs the job itself, as its last.

use std::process::exit;

use procpool_sys::child::{self, Child, Nursery, Side};
use procpool_sys::spawn::Exit;
use procpool_sys::{held, worker};
use procpool_wire::block::{ChildEnd, Claim, INLINE_WORDS_MAX, JobHeader, Phase};

use crate::context::Context;

use super::{Code, Place, Running, Seat};

/// The exit code of a child whose job has its outcome, and nothing is left of it.
const EXIT_DONE: i32 = 0;
/// The same, where something is left.
const EXIT_LEFT: i32 = 1;
/// The exit code of a worker whose child has ended otherwise. The pool says of it how the child did.
const EXIT_BEREFT: i32 = 71;

/// A result that is no longer has its place before its child is born.
const SCRATCH_LEN: usize = 1024;

/// Whether this process is a worker or, as a job runs, its child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Being {
    Worker,
    /// Its id.
    Child(u32),
}

impl Running {
    /// Has a job run by a child, or runs it as the last.
    pub(super) fn run_in_child(
        &mut self,
        nursery: Option<&Nursery>,
        code: Code<'_>,
        header: JobHeader,
    ) {
        if self.seat == Seat::Untold {
            self.take_seat();
        }
        if self.block.block.claim(header.ticket) == Some(Claim::Revoked) {
            return self.drop_arguments();
        }
        // What a child reads from the channel the worker would miss: so it gets what it can need before.
        let has_all = !matches!(self.streamed, Some(Place::Lost)) && header.count == 1;
        if let Some(nursery) = nursery.filter(|_| has_all) {
            self.make_room(INLINE_WORDS_MAX);
            self.furnish();
            match nursery.fork() {
                Ok(Side::Worker(child)) => {
                    self.wait_for(child);
                    return self.drop_arguments();
                }
                Ok(Side::Child(id)) => self.live_for(code, header, id),
                Err(_) => {}
            }
        }
        self.run_last(code, header);
    }

    /// Makes what each child would otherwise have to make for itself.
    fn furnish(&mut self) {
        if self.context.is_none() {
            self.set_context();
            self.context = Context::take_away();
            self.scratch.reserve(SCRATCH_LEN);
        }
    }

    /// Runs a job as this worker's last.
    fn run_last(&mut self, code: Code<'_>, header: JobHeader) {
        if self.claim(&header) {
            worker::hear_all_signals();
            self.block.block.set_child(0);
            self.upkeep.leave();
            self.run_claimed(code, header);
        }
    }

    /// In a child, to its end.
    fn live_for(&mut self, code: Code<'_>, header: JobHeader, id: u32) -> ! {
        self.being = Being::Child(id);
        self.cpu_ns = 0;
        // Its thread has the same.
        self.block.block.set_thread(id);
        self.block.block.set_child(id);
        self.look_at_clock();
        self.run_job(code, header);
        child::end(if self.upkeep.leaves() { EXIT_LEFT } else { EXIT_DONE })
    }

    fn wait_for(&mut self, child: Child) {
        let end = child.wait();
        let has_outcome = self.block.block.black_box().phase == Phase::Idle;
        match end {
            // Whoever was below the child has come to this process.
            Exit::Code(EXIT_DONE) if has_outcome && !held::has_children() => {}
            Exit::Code(EXIT_LEFT) if has_outcome => self.upkeep.leave(),
            Exit::Code(code) if !has_outcome => self.end_as(ChildEnd::Code(code)),
            Exit::Signal(signal, core) => self.end_as(ChildEnd::Signal(signal, core)),
            Exit::Code(_) | Exit::Unknown => exit(EXIT_BEREFT),
        }
        self.end.resume_results();
        self.bell_rung = false;
        self.look_at_clock();
    }

    fn end_as(&self, end: ChildEnd) -> ! {
        self.block.block.set_child_end(end);
        exit(EXIT_BEREFT)
    }

    /// Whether the worker takes no job after this one, which is about to hand over its last outcome.
    pub(super) fn leaves(&mut self) -> bool {
        if matches!(self.being, Being::Child(_)) && held::has_children() {
            self.upkeep.leave();
        }
        self.upkeep.leaves()
    }

    /// Who has run the job.
    pub(super) fn child(&self) -> u32 {
        match self.being {
            Being::Worker => 0,
            Being::Child(id) => id,
        }
    }
}
