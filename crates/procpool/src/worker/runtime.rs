//! The loop that takes jobs out of the shared memory and runs their elements.

mod children;
mod outcomes;

use std::any::type_name;
use std::hint;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use procpool_sys::child::Nursery;
use procpool_sys::clock::{self, Counter};
use procpool_sys::image::{Image, SameBuild};
use procpool_sys::limits::current_cpu;
use procpool_sys::mapping::Mapping;
use procpool_wire::block::{Block, Body, JobHeader, Phase, WorkerEnd};
use procpool_wire::codec::CodecFault;
use procpool_wire::elements::{self, Kind, WORD};
use procpool_wire::handshake::{Form, Runs, Setup};

use super::channel::{Place, Word, WorkerChannel};
use super::upkeep::Upkeep;
use super::{
    RUN_BINARY_APART, RUN_JSON, SharedBlock, TASK_LIST, Unresolved, contained, fault, hook,
    resolve_named,
};
use crate::attachments::List;
use crate::attachments::session::{self, Collected};
use crate::context::Context;
use crate::job_id::JobId;
use crate::task;
use children::Being;

/// How long a worker without a job looks for one before it sleeps: about what it costs to be woken.
const SPIN_NS: u64 = 20_000;
/// After so many looks in vain, some microseconds, the processor is offered to others between them: whoever sends the next
/// job may need it.
const LOOKS_ALONE: u32 = 100;

/// What a trampoline gets to work with: one job after another.
pub(crate) struct Running {
    end: WorkerEnd<Mapping>,
    block: Arc<SharedBlock>,
    channel: WorkerChannel,
    seat: Seat,
    /// How many jobs it shall run yet, if not any number.
    jobs_left: Option<u64>,
    payload_limit: Option<u64>,
    header: JobHeader,
    /// Name and elements of the job.
    body: Vec<u8>,
    /// Where the elements begin in `body`.
    elements_at: usize,
    /// Where they are if they did not fit into the shared memory.
    streamed: Option<Place>,
    /// What the arguments refer to.
    attachments: Option<List>,
    /// The encoded result.
    scratch: Vec<u8>,
    element: u32,
    step: Step,
    /// When the first element of the record in the making was begun.
    record_started_ns: u64,
    record_first: u32,
    /// CPU time of the process when it was last looked at.
    cpu_ns: u64,
    /// When the current element was begun.
    element_started_ns: u64,
    upkeep: Upkeep,
    /// Between jobs.
    context: Option<Context>,
    /// The current record says of an element that it left something behind.
    noted: Noted,
    /// Whether the pool was told of the last record.
    bell_rung: bool,
    /// The clock when it was last looked at. A job begins when the one before it has ended, so one look
    /// for each job is enough.
    now_ns: u64,
    clock: Counter,
    being: Being,
}

/// What the functions of jobs are looked up in.
#[derive(Clone, Copy)]
struct Code<'a> {
    image: &'a Image,
    same_build: Option<SameBuild>,
}

/// Whether something was left behind that the next record shall tell of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noted {
    Nothing,
    Leak,
}

/// Whether the worker knows which slot it fills.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seat {
    Known,
    /// It was a spare until it got its first job.
    Untold,
}

/// Whether the current element has an outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Recorded,
}

/// Serves jobs until the pool says that there are no more.
pub(super) fn serve(
    image: &Image,
    same_build: Option<SameBuild>,
    setup: &Setup,
    block: &Arc<SharedBlock>,
    channel: WorkerChannel,
) -> ! {
    let header = JobHeader {
        ticket: block.block.black_box().ticket,
        job: 0,
        attempt: 0,
        first: 0,
        count: 0,
        name_len: 0,
        note_cpu: false,
        run: 0,
        function: 0,
    };
    let mut running = Running {
        end: WorkerEnd::new(Block::clone(&block.block)),
        block: Arc::clone(block),
        channel,
        seat: if setup.slot.is_some() { Seat::Known } else { Seat::Untold },
        jobs_left: setup.jobs,
        payload_limit: setup.payload_limit,
        header,
        body: Vec::new(),
        elements_at: 0,
        streamed: None,
        attachments: None,
        scratch: Vec::new(),
        element: 0,
        step: Step::Open,
        record_started_ns: 0,
        record_first: 0,
        cpu_ns: clock::process_cpu_ns(),
        now_ns: clock::monotonic_ns(),
        clock: Counter::new(setup.counts),
        element_started_ns: 0,
        upkeep: Upkeep::new(&setup.limits),
        context: None,
        noted: Noted::Nothing,
        bell_rung: true,
        being: Being::Worker,
    };
    let code = Code { image, same_build };
    let nursery = match setup.runs {
        Runs::Here => None,
        // Without one each job is its worker's last.
        Runs::InChildren => Nursery::new().ok(),
    };
    let spin_ns = if setup.spins { SPIN_NS } else { 0 };
    block.block.set_thread(clock::thread_id() as u32);
    loop {
        let mut body = mem::take(&mut running.body);
        let next = running.end.next_job(&mut body);
        running.body = body;
        match next {
            Ok(Some((header, body))) => {
                running.fetch(body);
                match setup.runs {
                    Runs::Here => running.run_job(code, header),
                    Runs::InChildren => running.run_in_child(nursery.as_ref(), code, header),
                }
                if running.jobs_left == Some(0) {
                    // The pool counts them too, and sends no more.
                    contained::end_tree();
                    std::process::exit(0);
                }
                if running.upkeep.leaves() {
                    running.leave();
                }
            }
            Ok(None) => {
                if running.wait_for_job(spin_ns) == Word::Bye {
                    contained::end_tree();
                    std::process::exit(0);
                }
            }
            Err(_corrupt) => contained::kill_self(),
        }
    }
}

impl Running {
    fn wait_for_job(&mut self, spin_ns: u64) -> Word {
        // A spare's first job can be long in coming, and other processes are being started meanwhile.
        let spin_ns = if self.seat == Seat::Known { spin_ns } else { 0 };
        let until = self.now_ns + spin_ns;
        let mut looks = 0;
        while self.look_at_clock() < until {
            if self.end.has_job() {
                return Word::Look;
            }
            looks += 1;
            let beside = current_cpu().is_some_and(|cpu| self.end.shares_cpu(cpu));
            if looks < LOOKS_ALONE && !beside {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        self.end.want_bell(true);
        if self.end.has_job() {
            self.end.want_bell(false);
            return Word::Look;
        }
        self.tell_of_results();
        let word = self.channel.next_word();
        self.cpu_ns = clock::process_cpu_ns();
        self.look_at_clock();
        word
    }

    /// The pool knows that this worker leaves, takes back what it has sent meanwhile, and says when.
    fn leave(&mut self) -> ! {
        self.tell_of_results();
        while self.channel.next_word() != Word::Bye {}
        contained::end_tree();
        std::process::exit(0)
    }

    fn look_at_clock(&mut self) -> u64 {
        self.now_ns = self.clock.now_ns();
        self.now_ns
    }

    /// Takes what of a job did not fit into the shared memory.
    fn fetch(&mut self, body: Body) {
        if let Body::Streamed(_) = body {
            let payload = self.channel.next_payload();
            self.streamed = Some(payload.place);
            self.attachments = payload.attachments;
            self.look_at_clock();
        }
    }

    fn drop_arguments(&mut self) {
        (self.streamed, self.attachments) = (None, None);
    }

    /// Starts a job, unless it was taken back.
    fn claim(&mut self, header: &JobHeader) -> bool {
        if !self.end.claim(header.ticket, self.now_ns) {
            if !self.end.was_revoked(header.ticket) {
                // A job has scribbled over the claim table. To skip this one would be to lose it.
                contained::kill_self();
            }
            self.drop_arguments();
            return false;
        }
        if let Some(Place::Lost) = self.streamed {
            self.streamed = Some(Place::Here(self.channel.payload_again(header.ticket)));
            self.look_at_clock();
        }
        true
    }

    fn run_job(&mut self, code: Code<'_>, header: JobHeader) {
        if self.claim(&header) {
            self.run_claimed(code, header);
        }
    }

    fn run_claimed(&mut self, code: Code<'_>, header: JobHeader) {
        self.elements_at = (header.name_len as usize).next_multiple_of(WORD);
        if let Some(jobs) = &mut self.jobs_left {
            *jobs = jobs.saturating_sub(1);
        }
        if self.seat == Seat::Untold {
            self.take_seat();
        }
        self.header = header;
        self.record_first = header.first;
        self.set_context();
        if header.name_len == 0 {
            let receive = |proof| code.image.receive(proof, header.run, header.function);
            match code.same_build.and_then(receive) {
                Some(function) => function.run(self),
                None => self.record_all(Kind::Unregistered, b"a function outside the main image"),
            }
        } else {
            let name = String::from_utf8_lossy(&self.body[..header.name_len as usize]).into_owned();
            self.run_named(&name);
        }
        self.context = Context::take_away();
        self.end.set_phase(0, Phase::Idle);
        self.drop_arguments();
    }

    /// The job knows itself by the same context as the one before: a new one would cost a count in shared memory.
    fn set_context(&mut self) {
        let JobHeader { job, attempt, ticket, .. } = self.header;
        let job = JobId::from_number(job);
        let context = match self.context.take() {
            Some(mut context) => {
                context.reuse(job, attempt, ticket);
                context
            }
            None => Context::in_worker(job, attempt, self.slot(), &self.block, ticket),
        };
        context.put();
    }

    /// A spare has become the worker of a slot.
    fn take_seat(&mut self) {
        self.seat = Seat::Known;
        procpool_sys::worker::set_thread_name(&format!("procpool-w{}", self.slot()));
        if let Some(cpu) = self.block.block.cpu() {
            // The job is worth more than the CPU that it runs on: the host's may have changed since.
            let _ = procpool_sys::limits::pin_to(cpu);
        }
    }

    fn slot(&self) -> usize {
        self.block.block.slot() as usize
    }

    fn run_named(&mut self, name: &str) {
        if name == TASK_LIST {
            let list = task::list_as_json();
            return self.record_all(Kind::Value, list.as_bytes());
        }
        let form = match self.header.run {
            RUN_JSON => Form::Json,
            _ => Form::Binary { fingerprint: self.header.function },
        };
        match resolve_named(name, form) {
            Ok(function) => function.run(self),
            Err(Unresolved::Unknown) => self.record_all(Kind::Unregistered, name.as_bytes()),
            Err(Unresolved::OtherSignature(here)) => {
                let message = format!("the worker's task `{name}` is {here}, the caller's is not");
                let (kind, bytes) =
                    fault::codec_fault(Kind::DecodeFault, "()", CodecFault::Message(message));
                self.record_all(kind, &bytes);
            }
        }
    }

    /// Gives every element the same outcome.
    fn record_all(&mut self, kind: Kind, bytes: &[u8]) {
        for element in self.header.first..self.header.first + self.header.count {
            self.begin(element);
            self.record(kind, bytes);
        }
    }

    /// Runs the elements of the job, each by `run_one`. What does not depend on types is compiled once, not with each of the
    /// program's functions.
    pub(super) fn run_elements(&mut self, run_one: &dyn Fn(&mut Running, &[u8])) {
        let body = mem::take(&mut self.body);
        let streamed = self.streamed.take();
        let mut rest = streamed.as_ref().map_or(&body[self.elements_at..], Place::bytes);
        let end = self.header.first + self.header.count;
        let mut next = self.header.first;
        while next < end {
            // As many as go well, so that short ones do not each pay for being watched.
            let result = catch_unwind(AssertUnwindSafe(|| {
                while next < end {
                    let Some((_, argument, others)) = elements::split_first(rest) else {
                        // The pool has written these elements itself.
                        contained::kill_self()
                    };
                    rest = others;
                    self.begin(next);
                    next += 1;
                    run_one(self, argument);
                    if self.block.is_asked_to_stop(self.header.ticket) {
                        break;
                    }
                }
            }));
            if let Err(payload) = result {
                let record = hook::record_of(payload, &self.block);
                // A panic in the Drop of a result that is already recorded changes nothing.
                if self.step == Step::Open {
                    self.record(Kind::Panicked, &fault::panic(&record));
                }
                hook::clear();
            }
            if next < end && self.block.is_asked_to_stop(self.header.ticket) {
                self.give_back();
                break;
            }
        }
        self.body = body;
    }

    /// Runs `f` over one element of the job.
    pub(super) fn run_one<A, R>(
        &mut self,
        argument: &[u8],
        decode: impl Fn(&[u8]) -> Result<A, CodecFault>,
        f: fn(A) -> R,
        encode: impl Fn(&R, Option<u64>, &mut Vec<u8>) -> Result<(), CodecFault>,
    ) {
        let decoded = session::with_source(self.attachments.as_ref(), || decode(argument));
        let argument = match decoded {
            Ok(argument) => {
                // For the jobs that follow, even if this one drops it at once.
                self.keep_values();
                argument
            }
            Err(fault) => {
                return self.record_fault(Kind::DecodeFault, type_name::<A>(), fault);
            }
        };
        self.end.set_phase(self.element, Phase::Run);
        let result = f(argument);
        self.end.set_phase(self.element, Phase::Encode);
        let mut scratch = mem::take(&mut self.scratch);
        scratch.clear();
        let mut attached = Collected::default();
        let limit = self.payload_limit;
        // Boxed, so that what is returned for each of a million results fits into a register.
        let encode = || encode(&result, limit, &mut scratch).map_err(Box::new);
        // What the job was given can go back as what it is.
        let encode = || session::with_source(self.attachments.as_ref(), encode);
        let encoded = match self.is_apart() {
            true => encode(),
            false => session::collect(&mut attached, encode),
        };
        self.record_encoded(encoded, scratch, attached, type_name::<R>());
        if mem::needs_drop::<R>() {
            self.end.set_phase(self.element, Phase::Drop);
            drop(result);
            self.look_at_clock();
        }
    }

    /// True if the result goes to somebody who has no part in what this pool shares with its workers.
    fn is_apart(&self) -> bool {
        self.header.name_len > 0 && self.header.run == RUN_BINARY_APART
    }

    fn keep_values(&self) {
        if let Some(list) = &self.attachments {
            list.iter().flatten().for_each(|attachment| attachment.keep_value());
        }
    }

    fn begin(&mut self, element: u32) {
        if self.end.pending_count() == 0 {
            self.record_started_ns = self.now_ns;
            self.record_first = element;
        }
        self.element = element;
        self.step = Step::Open;
        self.element_started_ns = self.now_ns;
        self.upkeep.begin(self.now_ns);
        if self.header.note_cpu {
            self.block.block.set_cpu_at_start(self.header.ticket, clock::tree_cpu_ns());
        }
        self.end.begin_element(element, self.now_ns);
    }
}
