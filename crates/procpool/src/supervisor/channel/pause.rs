//! For how long a worker was paused while it ran what it runs: that is no time of the job's.

use procpool_wire::block::Ticket;

use super::PoolChannel;

/// What the worker ran when it was last paused.
pub(super) struct Paused {
    ticket: Ticket,
    /// Tells the elements of a job from one another: each has its time limit to itself.
    started_ns: u64,
    /// For how long, in all.
    ns: u64,
}

impl PoolChannel {
    /// The worker goes on after a pause of this length.
    pub(crate) fn note_pause(&mut self, ns: u64) {
        self.paused = self.running().map(|(ticket, _, _, black_box)| {
            let started_ns = black_box.started_ns;
            Paused { ticket, started_ns, ns: ns + self.paused_ns(ticket, started_ns) }
        });
    }

    /// For how long the worker was paused since it began, at that time, what it runs for this ticket.
    pub(crate) fn paused_ns(&self, ticket: Ticket, started_ns: u64) -> u64 {
        let paused = self.paused.as_ref();
        let is_meant =
            |paused: &&Paused| (paused.ticket, paused.started_ns) == (ticket, started_ns);
        paused.filter(is_meant).map_or(0, |paused| paused.ns)
    }
}
