//! The supervisor: one thread for each pool that starts workers, reads their results and notices their
//! deaths. It is the only place that waits.
//!
//! * [`machine`] decides about workers: pure.
//! * [`dispatch`] decides about jobs, under the one lock that it shares with callers of `submit`.
//! * [`retry`] holds the jobs that killed their worker and wait to be tried again: pure.
//! * [`channel`] is the pool's end of one worker, [`entry`] one job, [`obituary`] what a death means.
//! * [`inner`] is what it shares with handles, [`token`] what epoll tells it of; [`spin`] is how it looks for results unasked.
//! * [`pause`] stops workers in their tracks, and lets them go on.
//! * [`relief`] looks after those who wait behind others, [`helping`] is what callers do for the supervisor while they wait or submit.
//! * [`start`] and [`burial`] are the two ends of a worker's life as the loop carries them out, [`abandoned`] is the
//!   fate of those that do not end.
//! * [`memories`] keeps what workers have shared with the pool for the next ones.
//! * [`notes`] is what all of them have to tell of, for receivers and logs.
//! * [`stderr`] and [`callbacks`] have threads of their own, because both can block for long.
//! * [`wake`] makes the loop look, and notes attachments that nobody holds any more.
//!
//! README.md beside this file draws the states and tells the races.

mod abandoned;
mod burial;
pub(crate) mod callbacks;
pub(crate) mod cgroup;
pub(crate) mod channel;
mod containment;
mod cpu_limit;
pub(crate) mod dispatch;
pub(crate) mod entry;
mod fork_server;
mod helping;
mod idle;
mod index_set;
mod inner;
mod lines;
pub(crate) mod machine;
mod memories;
mod memory;
mod notes;
mod obituary;
mod pause;
pub(crate) mod queue;
mod relief;
pub(crate) mod retry;
mod slot;
mod spares;
mod spin;
mod start;
mod stderr;
mod token;
mod wake;

use std::num::NonZero;
use std::sync::{Arc, OnceLock};
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use procpool_sys::clock;
use procpool_sys::image::Image;
use procpool_sys::spawn::Process;
use procpool_wire::frame::FrameKind;

use crate::Error;
use crate::attachments::regions::Keeper;
use crate::builder::{Isolation, Settings, Shutdown};
use crate::events::{self, StopStage};
use crate::tree::{self, Census, Stopped};
use abandoned::Abandoned;
use cgroup::{Cgroups, Limits, Turnover};
use channel::{Link, PoolChannel};
use containment::Hold;
use dispatch::{Dispatch, Pace, Request};
use fork_server::ForkServer;
use idle::IdleWatch;
pub(crate) use inner::Inner;
use machine::{Action, Event, Machine, Policy};
use memories::{Memories, Memory};
use notes::Notes;
use relief::CrewWatch;
use retry::Backoff;
use slot::Place;
use spares::{Spare, spares_of};
use spin::SPIN_NS;
use start::trouble_of;
use stderr::{StderrReader, Tap};
use token::Token;
use wake::Wake;

/// A dying worker's channel closes a moment before its process is seen to end. One that lives on longer
/// than this has closed it itself.
const HANGUP_GRACE_NS: u64 = 200_000_000;
/// As many processes that do not end as a pool has workers are replaced, so that it has twice as many processes at
/// most; in a small pool so many, since one file system that does not answer must not end it.
const ABANDONED_MIN: usize = 4;
/// Bytes read at a time from a control channel.
const READ_MAX: usize = 256 * 1024;
/// Events taken at a time.
const EVENTS_MAX: usize = 64;

/// A worker process, as the supervisor's thread keeps it.
struct Worker {
    process: Process,
    tap: Arc<Tap>,
    hold: Hold,
    /// What it shares with the pool, if that can be used again.
    memory: Option<Memory>,
    /// What was below it when it was sent SIGTERM, where no cgroup holds it.
    census: Census,
    /// Processes below it that could not be killed.
    survivors: Vec<tree::Found>,
    /// What of it a pause has stopped.
    stopped: Stopped,
    /// Since when its channel is closed although it lives.
    hung_up_at: Option<u64>,
    /// What epoll was told.
    writing: bool,
    started_ns: u64,
}

impl Worker {
    fn new(process: Process, tap: Arc<Tap>, hold: Hold, memory: Option<Memory>) -> Worker {
        Worker {
            process,
            tap,
            hold,
            memory,
            census: Census::default(),
            survivors: Vec::new(),
            stopped: Stopped::default(),
            hung_up_at: None,
            writing: false,
            started_ns: clock::monotonic_ns(),
        }
    }
}

pub(crate) struct Supervisor {
    inner: Arc<Inner>,
    machine: Machine,
    epoll: Epoll,
    stderr: StderrReader,
    workers: Vec<Option<Worker>>,
    /// If idle workers leave.
    idle: Option<IdleWatch>,
    server: Option<ForkServer>,
    /// Of the memory that is lent to workers.
    keeper: Keeper,
    spares: Vec<Option<Spare>>,
    memories: Memories,
    /// Processes that were killed and do not end.
    abandoned: Vec<Option<Abandoned>>,
    /// When the memory of workers is looked at again, if any is watched.
    memory_look_at: u64,
    /// Slots whose results are looked for without being asked to.
    hot: Vec<usize>,
    crew: CrewWatch,
    buffer: Vec<u8>,
    events: Vec<Event>,
    notes: Notes,
    /// The demand that the core was last told of.
    demanded: usize,
    course: Course,
    /// When this thread last read results.
    results_ns: u64,
    /// How often callers had read results when this thread last looked.
    helped: u64,
}

/// Where a pool is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Serving,
    /// It was asked to shut down.
    Ending,
    Finished,
}

impl Supervisor {
    /// Everything that can fail before the thread is there.
    pub(crate) fn prepare(settings: Settings, image: &'static Image) -> Result<Supervisor, Error> {
        let system =
            |error: nix::errno::Errno| Error::system("cannot set up a pool's supervisor", error);
        let wake = Arc::new(Wake::new().map_err(system)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system)?;
        epoll.add(wake.event(), Token::Wake.event(EpollFlags::EPOLLIN)).map_err(system)?;
        let (restart_limit, restart_window) = settings.restart_limit;
        let (spares, spares_from) = spares_of(&settings);
        let machine = Machine::new(Policy {
            slots: settings.workers,
            start_method: settings.start_method,
            spares,
            spares_from,
            start_timeout_ns: nanoseconds(settings.start_timeout),
            grace_ns: nanoseconds(settings.grace),
            unkillable_after_ns: nanoseconds(settings.unkillable_after),
            abandoned_max: settings.workers.max(ABANDONED_MIN),
            restart_limit,
            restart_window_ns: nanoseconds(restart_window),
        });
        let workers = (0..settings.workers).map(|_| None).collect();
        let idle = settings
            .idle_timeout
            .map(|timeout| IdleWatch::new(settings.workers, nanoseconds(timeout)));
        let mut dispatch = Dispatch::new(settings.workers);
        dispatch.set_processors(processors());
        let (first, max) = settings.retry_backoff;
        dispatch.retries.backoff = Backoff {
            first_ns: nanoseconds(first),
            max_ns: nanoseconds(max),
            seed: clock::monotonic_ns(),
        };
        let limits = Limits { memory: settings.memory_limit, processes: settings.process_limit };
        let turnover = match settings.isolation {
            Isolation::Reuse => Turnover::Rare,
            Isolation::FreshProcess => Turnover::EachJob,
        };
        let memories = Memories::new(settings.isolation);
        let spin_ns = if processors() > 1 { SPIN_NS } else { 0 };
        let cgroups = Cgroups::new(limits, turnover);
        let inner = Arc::new(Inner::new(settings, image, dispatch, spin_ns, wake, cgroups));
        let stderr = StderrReader::start(&inner)?;
        let notes = Notes::new(Arc::clone(&inner.hub));
        Ok(Supervisor {
            inner,
            machine,
            epoll,
            stderr,
            workers,
            idle,
            server: None,
            keeper: Keeper::new(),
            spares: (0..spares).map(|_| None).collect(),
            memories,
            abandoned: Vec::new(),
            memory_look_at: 0,
            hot: Vec::new(),
            crew: CrewWatch::default(),
            buffer: vec![0; READ_MAX],
            events: Vec::new(),
            notes,
            demanded: 0,
            course: Course::Serving,
            results_ns: 0,
            helped: 0,
        })
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Runs until the pool is shut down and no worker is left.
    pub(crate) fn run(mut self) {
        while self.course != Course::Finished {
            self.let_idle_go();
            if self.expects_birth() || self.expects_death() {
                self.turn(EpollTimeout::ZERO);
                thread::yield_now();
            } else {
                let timeout = self.timeout();
                self.turn(timeout);
            }
            self.spin();
        }
        let inner = Arc::clone(&self.inner);
        let left = self.leave_abandoned();
        // The reader of standard error ends before anyone is told that the pool has.
        drop(self);
        inner.cgroups().close(left);
        inner.hub.end();
        inner.dispatch().pace = Pace::Ended;
        inner.changed.notify_all();
        inner.room.notify_all();
        inner.set_ended();
    }

    /// How long to sleep: until something is due.
    fn timeout(&self) -> EpollTimeout {
        let server = self.server.as_ref().map(|server| &server.worker);
        let spares = self.spares.iter().flatten().map(|spare| &spare.worker);
        let processes = self.workers.iter().flatten().chain(server).chain(spares);
        let hangup = processes.filter_map(|worker| worker.hung_up_at).min();
        let due = [
            self.machine.deadline(),
            hangup.map(|at| at + HANGUP_GRACE_NS),
            self.inner.dispatch().due(),
            self.idle.as_ref().and_then(IdleWatch::due),
            self.keeper.due(),
        ];
        let Some(due) = due.into_iter().flatten().min() else {
            return EpollTimeout::NONE;
        };
        let left = due.saturating_sub(clock::monotonic_ns());
        // Rounded up: a turn too early would only be repeated.
        let milliseconds = i32::try_from(left.div_ceil(1_000_000)).unwrap_or(i32::MAX);
        EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::NONE)
    }

    /// What may follow from any change of who has which job.
    fn after_dispatch(&mut self, dispatch: &mut Dispatch) {
        if dispatch.blocked > 0 {
            self.inner.room.notify_all();
        }
        if dispatch.writing {
            self.register_writers(dispatch);
        }
        let waiting = if dispatch.has_idle() { 0 } else { dispatch.queued() };
        if waiting != self.demanded || waiting > 0 && !dispatch.all_serving() {
            self.demanded = waiting;
            self.events.push(Event::Demand(waiting));
        }
        self.notes.append(&mut dispatch.notes);
        for request in std::mem::take(&mut dispatch.requests) {
            match request {
                Request::StopJob(slot, manner) => self.events.push(Event::StopJob(slot, manner)),
                Request::Returned(slot) => self.events.push(Event::Returned(slot)),
                // Unless its slot has another one by now.
                Request::Spent(slot) => {
                    if dispatch.channel(slot).is_some_and(PoolChannel::is_spent) {
                        self.events.push(Event::Retire(slot));
                    }
                }
                Request::Faulty(slot) => self.events.push(Event::Faulty(slot)),
                other => dispatch.requests.push(other),
            }
        }
        // Told wherever the last job can have ended: nothing else would wake the loop to look.
        if self.course == Course::Ending && dispatch.is_drained() {
            self.events.push(Event::Drained);
        }
    }

    /// Waits for something to happen, and handles it.
    fn turn(&mut self, timeout: EpollTimeout) {
        let mut ready = [EpollEvent::empty(); EVENTS_MAX];
        // An interrupted wait is one that found nothing.
        let count = self.epoll.wait(&mut ready, timeout).unwrap_or(0);
        let mut deaths = Vec::new();
        let mut spare_deaths = Vec::new();
        let mut server_death = false;
        for event in &ready[..count] {
            match Token::of(event) {
                Token::Wake => {
                    self.inner.wake.heard();
                }
                Token::Channel(slot) => self.read(slot),
                Token::Process(slot) => deaths.push(slot),
                Token::ServerChannel => self.read_server(),
                Token::ServerProcess => server_death = true,
                Token::SpareChannel(place) => self.read_spare(place),
                Token::SpareProcess(place) => spare_deaths.push(place),
                Token::Abandoned(place) => self.bury_abandoned(place),
            }
        }
        for place in spare_deaths {
            self.bury_spare(place);
        }
        if server_death {
            self.bury_server();
        }
        for slot in deaths {
            self.bury(slot);
        }
        self.check_hangups();
        self.check_server_hangup();
        self.check_spare_hangups();
        self.answer_requests();
        self.watch_memory();
        self.handle_events();
        let now = clock::monotonic_ns();
        if self.machine.deadline().is_some_and(|due| due <= now) {
            self.events.push(Event::Tick);
            self.handle_events();
        }
        self.keeper.tidy(now);
    }

    /// Reads what a worker has sent, frames first.
    fn read(&mut self, slot: usize) {
        let mut frames = Vec::new();
        let mut link = Link::Open;
        let mut completions = Vec::new();
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        let harvest = dispatch.harvest(slot, |channel, harvest| {
            channel.flush();
            link = channel.read_frames(&mut self.buffer, harvest, |frame| frames.push(frame));
            channel.read_results(harvest);
        });
        dispatch.book(slot, harvest, &mut completions);
        drop(dispatch);
        for frame in frames {
            self.take_start_frame(slot, &frame);
        }
        let mut dispatch = inner.dispatch();
        dispatch.pump();
        self.after_dispatch(&mut dispatch);
        drop(dispatch);
        self.complete(completions);
        if !self.hot.contains(&slot) {
            self.hot.push(slot);
        }
        if link == Link::Closed
            && let Some(worker) = &mut self.workers[slot]
        {
            worker.hung_up_at = Some(clock::monotonic_ns());
            if let Some(channel) = inner.dispatch().channel(slot) {
                let _ = self.epoll.delete(channel.fd());
            }
        }
    }

    /// Workers whose channel is closed although they live are killed.
    fn check_hangups(&mut self) {
        let now = clock::monotonic_ns();
        for slot in 0..self.workers.len() {
            let Some(worker) = &mut self.workers[slot] else {
                continue;
            };
            if worker.hung_up_at.is_some_and(|at| now >= at + HANGUP_GRACE_NS) {
                worker.hung_up_at = None;
                if let Some(channel) = self.inner.dispatch().channel_mut(slot) {
                    channel
                        .fault
                        .get_or_insert_with(|| "the worker closed its control channel".into());
                }
                self.events.push(Event::Faulty(slot));
            }
        }
    }

    /// Does what handles have asked for.
    fn answer_requests(&mut self) {
        let inner = Arc::clone(&self.inner);
        let mut dispatch = inner.dispatch();
        let now = clock::monotonic_ns();
        let mut completions = dispatch.check_timeouts(now);
        dispatch.queue_retries(now);
        dispatch.forget(&inner.wake.take_forgotten());
        for request in std::mem::take(&mut dispatch.requests) {
            if let Request::Shutdown(how) = request {
                self.notes.add(events::Event::PoolStopping { how });
                if self.course == Course::Serving {
                    self.course = Course::Ending;
                }
            }
            match request {
                Request::WarmUp => self.events.push(Event::WarmUp),
                Request::Pause => self.events.push(Event::Pause),
                Request::Unpause => self.events.push(Event::Unpause),
                Request::Abort(cell) => completions.extend(dispatch.abort(&cell)),
                // Taken up below, in order.
                request @ (Request::StopJob(..)
                | Request::Returned(_)
                | Request::Spent(_)
                | Request::Faulty(_)) => dispatch.requests.push(request),
                Request::Shutdown(Shutdown::Drain) => {}
                Request::Shutdown(Shutdown::CancelPending) => {
                    completions.extend(dispatch.cancel_unstarted())
                }
                Request::Shutdown(Shutdown::Abort) => {
                    completions.extend(dispatch.cancel_unstarted());
                    dispatch.abort_all();
                    self.events.push(Event::Abort);
                }
            }
        }
        dispatch.pump();
        self.after_dispatch(&mut dispatch);
        drop(dispatch);
        self.complete(completions);
    }

    fn handle_events(&mut self) {
        while !self.events.is_empty() {
            let mut actions = Vec::new();
            for event in std::mem::take(&mut self.events) {
                self.machine.handle(event, clock::monotonic_ns(), &mut actions);
            }
            for action in actions {
                self.act(action);
            }
        }
        self.notes.tell();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(slot) => {
                if let Err(error) = self.spawn(slot) {
                    let cause = format!("cannot start worker {slot}: {error}");
                    self.events.push(Event::SpawnFailed(slot, trouble_of(&error), cause));
                }
            }
            Action::StartServer => self.start_server(),
            Action::DismissServer => self.dismiss_server(),
            Action::KillServer => self.kill_server(),
            Action::SpawnSpare(place) => self.spawn_spare(place),
            Action::TakeSpare { spare, slot } => self.take_spare(spare, slot),
            Action::DismissSpare(place) => self.dismiss_spare(place),
            Action::KillSpare(place) => self.kill_spare(place),
            Action::Bye(slot) => {
                self.note_stop(slot, StopStage::Leave, None);
                let mut dispatch = self.inner.dispatch();
                dispatch.close_intake(slot);
                if let Some(channel) = dispatch.channel_mut(slot)
                    && !channel.has_had_all()
                {
                    channel.send_frame(FrameKind::Bye);
                }
                dispatch.pump();
            }
            Action::Terminate(slot) => {
                self.note_stop(slot, StopStage::Terminate, None);
                if let Some(worker) = &mut self.workers[slot] {
                    worker.terminate();
                }
            }
            Action::Kill(slot) => {
                let mut dispatch = self.inner.dispatch();
                dispatch.close_intake(slot);
                let fault = dispatch.channel(slot).and_then(|channel| channel.fault.clone());
                drop(dispatch);
                self.note_stop(slot, StopStage::Kill, fault);
                match &mut self.workers[slot] {
                    Some(worker) => worker.kill_tree(),
                    None => self.renounce(Place::Slot(slot)),
                }
            }
            Action::Abandon(place) => self.abandon(place),
            Action::Resume(slot) => {
                let mut dispatch = self.inner.dispatch();
                dispatch.resume(slot);
                dispatch.pump();
            }
            Action::Suspend(place) => self.suspend(place),
            Action::Continue(place) => self.go_on(place),
            Action::Paused => self.note_paused(),
            Action::Unpaused => self.note_unpaused(),
            Action::Break(cause) => {
                let inner = Arc::clone(&self.inner);
                let mut dispatch = inner.dispatch();
                let error = Error::start(cause);
                self.notes.add(events::Event::PoolBroken { error: error.clone() });
                let completions = dispatch.break_down(error);
                self.after_dispatch(&mut dispatch);
                drop(dispatch);
                self.complete(completions);
                self.inner.changed.notify_all();
                self.inner.room.notify_all();
            }
            Action::StartFailed { slot, cause, retry_at } => {
                self.note_failed_start(slot, cause, retry_at);
            }
            Action::Finished => self.course = Course::Finished,
        }
    }

    /// Tells epoll which channels wait for room.
    fn register_writers(&mut self, dispatch: &mut Dispatch) {
        dispatch.writing = false;
        for slot in 0..self.workers.len() {
            let (Some(worker), Some(channel)) = (&mut self.workers[slot], dispatch.channel(slot))
            else {
                continue;
            };
            let wants = channel.wants_to_write();
            if wants != worker.writing && worker.hung_up_at.is_none() {
                worker.writing = wants;
                let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                flags.set(EpollFlags::EPOLLOUT, wants);
                let _ = self.epoll.modify(channel.fd(), &mut Token::Channel(slot).event(flags));
            }
            dispatch.writing |= wants;
        }
    }
}

/// How many processors there are for this process. Asked once, because the answer is read from several files.
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
