//! The jobs of a [`Daemon`](super::Daemon) on their way: sent, numbered, and at last ended here as they have ended
//! there.
//!
//! A job that the daemon has no room for is kept, and sent again by a thread that is there only as long as there are
//! such jobs; meanwhile further submits wait. The daemon says nothing when it has room again, so it is asked, at
//! growing intervals.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use procpool::executor::{Control, Promise, Rejection, Verdict, is_forked_child};
use procpool::{JobError, Progress, Report};
use procpool_wire::codec;

use super::answers::{Lost, More};
use super::connection::Client;
use crate::error::Error;
use crate::job::{Ending, JobId, Outcome, State};
use crate::protocol::{Cancelled, Refusal, Request, Response};

/// How long after a daemon that was full is asked again at first; twice as long each time that it still is.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(5);
/// The longest pause: what a person would notice.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(500);

/// What a [`Daemon`](super::Daemon) and its futures share.
#[derive(Debug)]
pub(super) struct Jobs {
    pub(super) client: Client,
    unsettled: Mutex<Unsettled>,
    /// A job has got a number, or never will; or jobs that the daemon had no room for are gone.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct Unsettled {
    /// Threads that wait for `settled`: mostly none, so that it costs nothing.
    waiting: usize,
    /// Jobs that the daemon had no room for, in the order in which they are sent again.
    refused: VecDeque<Sent>,
    /// A thread is there that sends them again.
    is_tended: bool,
}

/// A job with what is to be said to the daemon. That is kept until the daemon has it.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    request: Arc<Request>,
    promise: Promise,
}

/// What a daemon says at first of a job.
#[derive(Debug)]
enum First {
    Taken,
    Full,
    /// It has ended with that.
    Over,
}

impl Jobs {
    pub(super) fn new(client: Client) -> Jobs {
        Jobs { client, unsettled: Mutex::default(), settled: Condvar::new() }
    }

    fn unsettled(&self) -> MutexGuard<'_, Unsettled> {
        // Nothing of the user's runs under this lock.
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, unsettled: &Unsettled) {
        if unsettled.waiting > 0 {
            self.settled.notify_all();
        }
    }

    /// Waits until something `found` is there.
    fn wait<T>(&self, mut found: impl FnMut(&mut Unsettled) -> Option<T>) -> T {
        let mut unsettled = self.unsettled();
        loop {
            if let Some(found) = found(&mut unsettled) {
                return found;
            }
            unsettled.waiting += 1;
            unsettled = self.settled.wait(unsettled).unwrap_or_else(PoisonError::into_inner);
            unsettled.waiting -= 1;
        }
    }

    /// The daemon's number of a job; waits until it has one. `None` if it has ended without.
    pub(super) fn id(&self, promise: &Promise) -> Option<JobId> {
        if is_forked_child() {
            return numbered(promise);
        }
        self.wait(|_| match numbered(promise) {
            Some(id) => Some(Some(id)),
            None => promise.is_done().then_some(None),
        })
    }

    /// The same for a job that is to be stopped: one that waits for room is taken out instead.
    fn id_or_take_out(&self, promise: &Promise) -> Option<JobId> {
        let (id, taken) = self.wait(|unsettled| {
            let place = unsettled.refused.iter().position(|sent| sent.promise.id() == promise.id());
            match (place, numbered(promise)) {
                (Some(place), _) => Some((None, unsettled.refused.remove(place))),
                (None, Some(id)) => Some((Some(id), None)),
                (None, None) => promise.is_done().then_some((None, None)),
            }
        });
        if taken.is_some() {
            promise.fail(JobError::Cancelled { started: false }, Report::default());
            self.settle(&self.unsettled());
        }
        id
    }

    /// Has the daemon run a job, sooner or later. Waits while it has no room for others.
    pub(super) fn run(self: &Arc<Self>, request: Request, promise: Promise) {
        if !is_forked_child() {
            self.wait(|unsettled| unsettled.refused.is_empty().then_some(()));
        }
        let sent = Sent { request: Arc::new(request), promise };
        let jobs = Arc::clone(self);
        let kept = sent.clone();
        self.send(sent, move |first| {
            if let First::Full = first {
                jobs.keep(&kept);
            }
        });
    }

    /// Has the daemon run a job if it has room for it now: waits for what it says.
    pub(super) fn try_run(
        self: &Arc<Self>,
        request: Request,
        promise: Promise,
    ) -> Result<(), Rejection> {
        if !is_forked_child() && !self.unsettled().refused.is_empty() {
            return Err(Rejection::Full);
        }
        match self.ask(Sent { request: Arc::new(request), promise }) {
            First::Taken | First::Over => Ok(()),
            First::Full => Err(Rejection::Full),
        }
    }

    /// Sends a job, and waits for the first that is said of it.
    fn ask(self: &Arc<Self>, sent: Sent) -> First {
        let (sender, receiver) = mpsc::channel();
        self.send(sent, move |first| {
            // Nobody listens if the thread that waits has gone.
            let _ = sender.send(first);
        });
        receiver.recv().unwrap_or(First::Over)
    }

    /// The end of a job that there is.
    pub(super) fn follow(self: &Arc<Self>, id: JobId, promise: Promise) {
        promise.note(id.0);
        self.send(Sent { request: Arc::new(Request::Result(id)), promise }, |_| ());
    }

    /// Sends what has a job's end as its last answer. `tell` is called once, with the first.
    fn send(self: &Arc<Self>, sent: Sent, tell: impl FnOnce(First) + Send + 'static) {
        if is_forked_child() {
            return sent.promise.fail(JobError::Closed, Report::default());
        }
        let Sent { request, promise } = sent;
        let jobs = Arc::clone(self);
        let duty = promise.clone();
        let mut tell = Some(tell);
        let handler = move |answer| {
            let (first, more) = jobs.answered(&duty, answer);
            if let Some(tell) = tell.take() {
                tell(first);
            }
            more
        };
        if let Err(error) = self.client.send(&request, handler) {
            promise.fail_as(Verdict::Broken(error.to_string()), Report::default());
            self.settle(&self.unsettled());
        }
    }

    fn answered(&self, promise: &Promise, answer: Result<Response, Lost>) -> (First, More) {
        let verdict = match answer {
            Ok(Response::Submitted(id)) => {
                promise.note(id.0);
                self.settle(&self.unsettled());
                return (First::Taken, More::Yes);
            }
            Ok(Response::Ending(_, state, ending)) => {
                self.finish(promise, state, *ending);
                return (First::Over, More::No);
            }
            Ok(Response::Refused(Refusal::Busy(_))) => return (First::Full, More::No),
            Ok(Response::Refused(Refusal::Stopping)) => Verdict::Closed,
            Ok(Response::Refused(refusal)) => Verdict::Broken(refusal.to_string()),
            Ok(response) => Verdict::Broken(Error::unexpected(&response).to_string()),
            Err(Lost) => Verdict::Broken(Error::lost(None).to_string()),
        };
        self.client.done_threads().fail_as(promise, verdict, Report::default());
        self.settle(&self.unsettled());
        (First::Over, More::No)
    }

    /// Ends a job here as it has ended there. Who waits for its number has it: that came before.
    fn finish(&self, promise: &Promise, state: State, ending: Ending) {
        let Ending { outcome, attempts, queued, ran, cpu, peak_rss, pid } = ending;
        let mut report = Report::default();
        (report.attempts, report.queued, report.ran) = (attempts, queued, ran);
        (report.cpu, report.peak_rss, report.pid) = (cpu, peak_rss, pid);
        let threads = self.client.done_threads();
        let verdict = match outcome {
            Outcome::Binary(value) => return threads.finish_encoded(promise, &value, report),
            Outcome::Command(end) => {
                let mut bytes = Vec::new();
                codec::encode_into(&end, None, &mut bytes).expect("plain data can be encoded");
                return threads.finish_encoded(promise, &bytes, report);
            }
            Outcome::Json(_) => {
                Verdict::Broken("it was called with JSON, and its result is JSON".into())
            }
            Outcome::Error(verdict) => verdict,
            Outcome::Nothing => match state {
                State::Cancelled => Verdict::Cancelled { started: attempts > 0 },
                other => Verdict::Broken(format!("the job is {}", other.word())),
            },
        };
        threads.fail_as(promise, verdict, report);
    }

    /// Keeps a job that the daemon has no room for, to send it again.
    fn keep(self: &Arc<Self>, sent: &Sent) {
        let mut unsettled = self.unsettled();
        unsettled.refused.push_back(sent.clone());
        self.settle(&unsettled);
        if unsettled.is_tended {
            return;
        }
        let jobs = Arc::clone(self);
        let thread = thread::Builder::new().name("procpool-daemon".into());
        match thread.spawn(move || jobs.tend()) {
            Ok(_) => unsettled.is_tended = true,
            Err(error) => {
                let refused = std::mem::take(&mut unsettled.refused);
                drop(unsettled);
                for sent in refused {
                    let why = format!("the daemon is full, and no thread can wait: {error}");
                    let threads = self.client.done_threads();
                    threads.fail_as(&sent.promise, Verdict::Broken(why), Report::default());
                }
            }
        }
    }

    /// Sends again what the daemon had no room for, until that is nothing.
    fn tend(self: &Arc<Self>) {
        let mut pause = ASK_AGAIN_FIRST;
        loop {
            // The daemon does not tell when it has room again.
            thread::sleep(pause);
            loop {
                let Some(next) = self.unsettled().refused.pop_front() else {
                    break;
                };
                if let First::Full = self.ask(next.clone()) {
                    let mut unsettled = self.unsettled();
                    unsettled.refused.push_front(next);
                    self.settle(&unsettled);
                    pause = (pause * 2).min(ASK_AGAIN_MAX);
                    break;
                }
                pause = ASK_AGAIN_FIRST;
            }
            let mut unsettled = self.unsettled();
            if unsettled.refused.is_empty() {
                unsettled.is_tended = false;
                self.settle(&unsettled);
                return;
            }
        }
    }

    /// Asks for a cancel. What the daemon answers is told to `done`.
    fn send_cancel(&self, id: JobId, promise: &Promise, done: mpsc::Sender<(Promise, bool)>) {
        let promise = promise.clone();
        // Without an answer nobody hears of it.
        let _ = self.client.send(&Request::Cancel(id), move |answer| {
            let is_unstarted = matches!(answer, Ok(Response::Cancel(Cancelled::Unstarted)));
            let _ = done.send((promise.clone(), is_unstarted));
            More::No
        });
    }
}

fn numbered(promise: &Promise) -> Option<JobId> {
    promise.noted().map(|number| JobId(number.get()))
}

impl Control for Jobs {
    fn cancel(&self, job: &Promise) -> bool {
        if is_forked_child() {
            return false;
        }
        let Some(id) = self.id_or_take_out(job) else {
            return job.is_cancelled_unstarted();
        };
        match self.client.request(&Request::Cancel(id)) {
            Ok(Response::Cancel(Cancelled::Unstarted)) => {
                // Its end is on its way as well. What is first counts, and the caller shall see it now.
                job.fail(JobError::Cancelled { started: false }, Report::default());
                true
            }
            Ok(Response::Cancel(Cancelled::Ended)) => {
                // Perhaps it was cancelled by somebody else, which is as good.
                let record = self.client.request(&Request::Records(vec![id]));
                matches!(record, Ok(Response::Records(records)) if records.iter().flatten().any(
                    |record| record.life.state() == State::Cancelled && record.life.attempts == 0
                ))
            }
            _ => false,
        }
    }

    fn cancel_all(&self, jobs: &[Promise]) {
        if is_forked_child() {
            return;
        }
        let (sender, receiver) = mpsc::channel();
        for job in jobs {
            if let Some(id) = self.id_or_take_out(job) {
                self.send_cancel(id, job, sender.clone());
            }
        }
        drop(sender);
        for (job, is_unstarted) in receiver {
            if is_unstarted {
                job.fail(JobError::Cancelled { started: false }, Report::default());
            }
        }
    }

    fn abort(&self, job: &Promise) {
        if is_forked_child() {
            return;
        }
        if let Some(id) = self.id_or_take_out(job)
            && let Ok(Response::Cancel(Cancelled::Unstarted)) =
                self.client.request(&Request::Abort(id))
        {
            // As above. One that runs ends when the daemon has stopped it.
            job.fail(JobError::Cancelled { started: false }, Report::default());
        }
    }

    fn is_running(&self, job: &Promise) -> bool {
        if is_forked_child() {
            return false;
        }
        if numbered(job).is_none() {
            // It may run before its number is here. What is read of the journal is answered after what was written before.
            let _ = self.client.request(&Request::Records(Vec::new()));
        }
        let Some(id) = numbered(job) else {
            return false;
        };
        match self.client.request(&Request::Records(vec![id])) {
            Ok(Response::Records(records)) => records
                .iter()
                .flatten()
                .any(|record| matches!(record.life.state(), State::Running(_))),
            _ => false,
        }
    }

    fn progress(&self, job: &Promise) -> Option<Progress> {
        let id = numbered(job).filter(|_| !is_forked_child())?;
        match self.client.request(&Request::Progress(id)) {
            Ok(Response::Progress(progress)) => {
                progress.map(|progress| Progress::new(progress.fraction, progress.message))
            }
            _ => None,
        }
    }

    fn is_inert(&self) -> bool {
        is_forked_child()
    }
}
