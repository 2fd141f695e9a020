//! The desk with a journal in memory, whose answers the test hands over when it wants to: what happens between a question
//! and its answer.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use super::*;
use crate::config::Level;
use crate::engine::Surroundings;
use crate::job::{Command, DEFAULT_QUEUE, JobSpec};
use crate::journal::Kept;
use crate::machine::{Queue, QueueOrder};
use crate::store::Begun;
use crate::store::sqlite::SqliteStore;

struct Play {
    desk: Desk,
    answers: Receiver<Vec<Kept<Purpose>>>,
    next: u64,
}

impl Play {
    /// In which no job is started, and what has ended expires.
    fn new() -> Play {
        let store = SqliteStore::open("/nowhere".as_ref(), Level::Memory).unwrap();
        let space = store.space().clone();
        let (sender, answers) = mpsc::channel();
        let deliver = move |kept: Result<_, StoreError>| drop(sender.send(kept.unwrap()));
        let journal = Journal::start(Box::new(store), deliver).unwrap();
        let mut config = Config::default();
        config.retention.days = 0;
        let surroundings =
            Surroundings { logs: "/nowhere".into(), log_bytes: 0, mark: ("NOBODY", "0".into()) };
        let queues = config.all_queues();
        let engine = Engine::new(queues, surroundings, Begun::nowhere(), Arc::new(|_, _| {}));
        let disk = OnDisk { journal, space, logs: "/nowhere".into() };
        let machine = Machine::new(vec![Queue::new(DEFAULT_QUEUE, 1)], JobId(1));
        let followers = Followers::new().unwrap();
        let desk = Desk::new(machine, Effects::default(), disk, engine, config, followers);
        let mut play = Play { desk, answers, next: 1 };
        let name = DEFAULT_QUEUE.to_owned();
        assert_eq!(play.ask(Request::Queue { name, order: QueueOrder::Pause }), [Response::Done]);
        play
    }

    fn request(&mut self, request: Request) {
        let asker = Asker { client: 1, number: self.next, pid: 1, cost: None };
        self.next += 1;
        self.desk.request(asker, request, 1);
        self.desk.flush();
    }

    /// What the journal answers next. It is not handed over yet.
    fn answer(&mut self) -> Vec<Kept<Purpose>> {
        self.answers.recv_timeout(Duration::from_secs(10)).expect("the journal answers")
    }

    fn hand_over(&mut self, answer: Vec<Kept<Purpose>>) -> Vec<Response> {
        answer.into_iter().for_each(|kept| self.desk.kept(kept));
        self.desk.flush();
        self.desk.take_replies().into_iter().map(|(_, response)| response).collect()
    }

    fn ask(&mut self, request: Request) -> Vec<Response> {
        self.request(request);
        let answer = self.answer();
        self.hand_over(answer)
    }

    fn state(&mut self, id: JobId) -> State {
        match &self.ask(Request::Records(vec![id]))[..] {
            [Response::Records(records)] => records[0].as_ref().unwrap().life.state(),
            other => panic!("{other:?}"),
        }
    }

    /// A job that has ended; that it is to expire has been found, and that it is to be run again as well.
    fn ended(&mut self) -> (JobId, Vec<Kept<Purpose>>, Vec<Kept<Purpose>>) {
        let work = Work::Command(Command::here(["true"]).unwrap());
        let spec = JobSpec { terms: Terms::new("a"), work };
        let id = match self.ask(Request::Submit(spec))[..] {
            [Response::Submitted(id)] => id,
            ref other => panic!("{other:?}"),
        };
        self.ask(Request::Cancel(id));
        // What ended in this millisecond is not older than it.
        let since = Moment::now();
        while Moment::now() <= since {
            std::hint::spin_loop();
        }
        self.desk.retire = Retire::At(Instant::now());
        self.desk.time();
        self.desk.flush();
        let stale = self.answer();
        self.request(Request::Retry(id));
        let work = self.answer();
        (id, stale, work)
    }
}

/// Goal: who asks for a job that is about to expire is told that it is gone, though the journal had it a moment before.
#[test]
fn who_expires_is_not_taken_up_again() {
    let mut play = Play::new();
    let (id, stale, work) = play.ended();
    assert_eq!(play.hand_over(stale), []);
    let replies = play.hand_over(work);
    assert!(matches!(replies[..], [Response::Refused(Refusal::NoJob(_))]), "{replies:?}");
    let answer = play.answer();
    play.hand_over(answer);
    assert_eq!(play.state(id), State::Expired);
    play.desk.close().unwrap();
}

/// Goal: who was taken up again before does not expire.
#[test]
fn who_was_taken_up_again_does_not_expire() {
    let mut play = Play::new();
    let (id, stale, work) = play.ended();
    assert_eq!(play.hand_over(work), []);
    assert_eq!(play.hand_over(stale), []);
    let answer = play.answer();
    assert_eq!(play.hand_over(answer), [Response::Done]);
    assert_eq!(play.state(id), State::Queued);
    play.desk.close().unwrap();
}
