//! Outcomes of elements go into the ring of results, or over the control channel.

use procpool_sys::clock;
use procpool_wire::block::{INLINE_WORDS_MAX, Phase, ResultHeader, Usage};
use procpool_wire::codec::CodecFault;
use procpool_wire::elements::{self, Kind, WORD};
use procpool_wire::frame::FrameKind;

use super::{Noted, Running, Step};
use crate::attachments::session::Collected;
use crate::worker::upkeep::Finding;
use crate::worker::{contained, fault};

/// A job that ran so long is worth two system calls to measure.
const USAGE_FROM_NS: u64 = 50_000_000;
/// Results of a chunk are published together, but none waits longer than this for the next.
const PUBLISH_AFTER_NS: u64 = 500_000;

impl Running {
    /// Gives the current element its outcome. From here on it survives the worker.
    pub(super) fn record(&mut self, kind: Kind, bytes: &[u8]) {
        self.end.set_phase(self.element, Phase::Send);
        let last = self.element + 1 == self.header.first + self.header.count;
        self.look_at_clock();
        if !self.upkeep.is_due(self.now_ns) {
            return self.record_now(kind, bytes, last);
        }
        let finding = self.upkeep.look(self.element_started_ns, self.now_ns);
        let ticket = self.header.ticket;
        self.look_at_clock();
        match finding {
            Finding::Clean => self.record_now(kind, bytes, last),
            Finding::Noted(leak) => {
                self.block.block.set_leak(ticket, &leak);
                self.noted = Noted::Leak;
                self.record_now(kind, bytes, last);
            }
            Finding::Fault(leak) => {
                self.block.block.set_leak(ticket, &leak);
                self.noted = Noted::Leak;
                match kind {
                    Kind::Value => self.record_now(Kind::Leaked, &leak, last),
                    // It has failed already, which says more.
                    kind => self.record_now(kind, bytes, last),
                }
            }
        }
    }

    fn record_now(&mut self, kind: Kind, bytes: &[u8], last: bool) {
        if elements::padded(bytes.len()) / WORD > INLINE_WORDS_MAX {
            return self.record_streamed(kind, bytes);
        }
        while !self.end.append(kind, bytes) {
            if self.end.pending_count() > 0 {
                self.publish(false);
                self.record_first = self.element;
            } else {
                self.wait_for_room(elements::padded(bytes.len()) / WORD);
            }
        }
        self.step = Step::Recorded;
        if last || self.now_ns - self.record_started_ns > PUBLISH_AFTER_NS {
            self.publish(last);
        }
    }

    /// Gives the current element a codec's fault with a value of the named type.
    #[cold]
    pub(super) fn record_fault(&mut self, kind: Kind, type_name: &str, fault: CodecFault) {
        let (kind, bytes) = fault::codec_fault(kind, type_name, fault);
        self.record(kind, &bytes);
    }

    /// Gives the current element what has come of encoding its result, of the named type, into `scratch`.
    pub(super) fn record_encoded(
        &mut self,
        encoded: Result<(), Box<CodecFault>>,
        scratch: Vec<u8>,
        attached: Collected,
        type_name: &'static str,
    ) {
        match encoded {
            Ok(()) if attached.is_empty() => self.record(Kind::Value, &scratch),
            Ok(()) => self.record_attached(&scratch, attached, type_name),
            Err(fault) => self.record_fault(Kind::EncodeFault, type_name, *fault),
        }
        // One huge result does not make this worker huge for good.
        if scratch.capacity() <= INLINE_WORDS_MAX * WORD {
            self.scratch = scratch;
        }
    }

    /// Gives the current element a result that refers to attachments.
    fn record_attached(&mut self, bytes: &[u8], attached: Collected, type_name: &'static str) {
        self.end.set_phase(self.element, Phase::Send);
        let list = attached.into_list();
        let theirs = self.attachments.clone();
        match self.channel.send_attachments(&list, theirs.as_ref()) {
            Ok(()) => {
                self.look_at_clock();
                self.record_streamed(Kind::Value, bytes);
            }
            Err(error) => {
                let message = format!("the result's descriptors cannot be passed on: {error}");
                self.record_fault(Kind::EncodeFault, type_name, CodecFault::Message(message));
            }
        }
    }

    /// Gives the current element its outcome over the control channel.
    fn record_streamed(&mut self, kind: Kind, bytes: &[u8]) {
        let last = self.element + 1 == self.header.first + self.header.count;
        if self.end.pending_count() > 0 {
            self.publish(false);
            self.record_first = self.element;
        }
        let header = self.result_header(last);
        while !self.end.announce(&header, kind, bytes.len()) {
            self.wait_for_room(1);
        }
        self.ring_bell();
        self.channel.send(FrameKind::Payload, bytes);
        self.step = Step::Recorded;
    }

    /// Ends a job that was asked to stop before its last element.
    pub(super) fn give_back(&mut self) {
        if self.end.pending_count() == 0 {
            self.record_first = self.element + 1;
        }
        let leaving = self.leaves();
        let header = ResultHeader { given_back: true, leaving, ..self.result_header(false) };
        self.make_room(0);
        self.end.publish(&header);
        self.ring_bell();
    }

    fn publish(&mut self, last: bool) {
        let header = self.result_header(last);
        self.end.publish(&header);
        self.ring_bell();
    }

    fn result_header(&mut self, last: bool) -> ResultHeader {
        let now = self.now_ns;
        let ran_ns = now - self.record_started_ns;
        let usage = (ran_ns >= USAGE_FROM_NS).then(|| {
            let cpu_ns = clock::process_cpu_ns();
            let used = cpu_ns - self.cpu_ns;
            self.cpu_ns = cpu_ns;
            Usage { cpu_ns: used, peak_rss: clock::peak_rss() }
        });
        let started_ns = self.record_started_ns;
        self.record_started_ns = now;
        ResultHeader {
            ticket: self.header.ticket,
            first: self.record_first,
            count: 0,
            started_ns,
            ran_ns,
            last,
            given_back: false,
            leaked: std::mem::replace(&mut self.noted, Noted::Nothing) == Noted::Leak,
            leaving: last && self.leaves(),
            child: self.child(),
            usage,
        }
    }

    fn ring_bell(&mut self) {
        self.bell_rung = self.end.must_wake_pool();
        if self.bell_rung {
            self.channel.send(FrameKind::Bell, &[]);
        }
    }

    /// Before this worker sleeps. A job may have scribbled over the word that says whether the pool sleeps,
    /// and two that sleep would never wake: rather a bell too many.
    pub(super) fn tell_of_results(&mut self) {
        if !self.bell_rung && self.end.has_unread_results() {
            self.bell_rung = true;
            self.channel.send(FrameKind::Bell, &[]);
        }
    }

    /// Waits until a record with so many words of elements fits.
    pub(super) fn make_room(&mut self, words: usize) {
        while !self.end.has_room(words) {
            self.wait_for_room(words);
        }
    }

    /// The pool has not read our results yet: waits until it has made room.
    fn wait_for_room(&mut self, words: usize) {
        loop {
            if self.end.is_corrupt() {
                // A job has scribbled over the shared memory.
                contained::kill_self();
            }
            self.end.want_bell(true);
            if self.end.has_room(words) {
                self.look_at_clock();
                return self.end.want_bell(false);
            }
            self.tell_of_results();
            self.channel.next_word();
        }
    }
}
