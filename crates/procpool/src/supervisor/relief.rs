//! The supervisor looks after jobs that wait behind others although workers are idle: [`dispatch::crew`](super::dispatch)
//! says why they do.

use procpool_sys::{clock, held};

use super::Supervisor;
use super::dispatch::Member;
use super::spin::NAP;

/// As far apart as naps: what waits behind a long job waits for two looks at most.
const LOOKS_APART_NS: u64 = NAP.as_nanos() as u64;
/// A worker that has used so much CPU time since the last look, and ended no job, is at a long one.
const LONG_CPU_NS: u64 = 30_000;

/// What was seen of the crew at the last look, with the CPU time that each had used.
#[derive(Default)]
pub(super) struct CrewWatch {
    last_ns: u64,
    seen: Vec<(Member, u64)>,
}

impl Supervisor {
    /// Before this thread sleeps: nobody is left waiting behind another while a worker is idle.
    pub(super) fn leave_crew(&mut self) {
        let inner = self.inner.clone();
        let mut dispatch = inner.dispatch();
        dispatch.leave_crew();
        self.after_dispatch(&mut dispatch);
    }

    /// Looks whether somebody waits behind a long job, and sees to it that others take what waits there.
    pub(super) fn look_after_crew(&mut self) {
        let now = clock::monotonic_ns();
        if now < self.crew.last_ns + LOOKS_APART_NS {
            return;
        }
        self.crew.last_ns = now;
        let members = {
            let dispatch = self.inner.dispatch();
            if dispatch.relies_on_crew() { dispatch.members() } else { Vec::new() }
        };
        let before = std::mem::take(&mut self.crew.seen);
        for member in members {
            let cpu_ns = clock::process_cpu_ns_of(member.pid).unwrap_or(0);
            let at_last_look = before.iter().find(|(other, _)| *other == member);
            // It has ended nothing since.
            let cpu_since = at_last_look.map(|(_, before)| cpu_ns.saturating_sub(*before));
            if is_at_a_long_job(member, now, cpu_since) {
                let inner = self.inner.clone();
                let mut dispatch = inner.dispatch();
                dispatch.relieve(member);
                self.after_dispatch(&mut dispatch);
            } else {
                self.crew.seen.push((member, cpu_ns));
            }
        }
    }
}

/// One that has computed since the last look, or for some time has waited for anything but a processor. Who has waited
/// for a processor is not: nobody else would have got it sooner.
fn is_at_a_long_job(member: Member, now: u64, cpu_since: Option<u64>) -> bool {
    let computes = cpu_since.is_some_and(|cpu_ns| cpu_ns >= LONG_CPU_NS);
    let began = member.began_ns.is_some_and(|at| at.saturating_add(LOOKS_APART_NS) <= now);
    computes || (began || cpu_since.is_some()) && !held::is_runnable(member.pid, member.thread)
}
