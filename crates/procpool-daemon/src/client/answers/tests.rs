//! A daemon played by hand at the other end of a socket pair: it answers what it is told to, in any order.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, ThreadId};

use super::{Addressee, Answers, Lost, More};
use crate::job::JobId;
use crate::protocol::{Response, push_frame};

struct Play {
    answers: Arc<Answers>,
    keeper: JoinHandle<()>,
    daemon: UnixStream,
}

impl Play {
    fn new() -> Play {
        let (stream, daemon) = UnixStream::pair().unwrap();
        let answers = Arc::new(Answers::new(stream));
        let kept = Arc::clone(&answers);
        let keeper = thread::spawn(move || kept.keep());
        Play { answers, keeper, daemon }
    }

    /// The daemon answers a request with its number.
    fn answer(&self, number: u64) {
        let mut frame = Vec::new();
        push_frame(number, &Response::Submitted(JobId(number)), &mut frame).unwrap();
        (&self.daemon).write_all(&frame).unwrap();
    }

    /// A thread that waits for the answer to a request.
    fn caller(&self, number: u64) -> JoinHandle<Result<Response, Lost>> {
        self.answers.expect(number, Addressee::Caller).unwrap();
        let answers = Arc::clone(&self.answers);
        thread::spawn(move || answers.wait(number))
    }

    /// A handler of so many answers, and what it is told, on which thread.
    fn handler(
        &self,
        number: u64,
        mut answers: u32,
    ) -> mpsc::Receiver<(Result<Response, Lost>, ThreadId)> {
        let (told, heard) = mpsc::channel();
        let handler = move |answer| {
            told.send((answer, thread::current().id())).unwrap();
            answers -= 1;
            if answers > 0 { More::Yes } else { More::No }
        };
        self.answers.expect(number, Addressee::Handler(Box::new(handler))).unwrap();
        heard
    }

    /// Whether somebody reads.
    fn is_read(&self) -> bool {
        self.answers.lock().reader.is_none()
    }

    fn wait_until(&self, what: impl Fn(&Play) -> bool) {
        while !what(self) {
            thread::yield_now();
        }
    }

    fn end(self) {
        self.answers.close();
        drop(self.daemon);
        self.keeper.join().unwrap();
    }
}

fn submitted(number: u64) -> Result<Response, Lost> {
    Ok(Response::Submitted(JobId(number)))
}

#[test]
fn whoever_reads_hands_out_the_answers_of_others() {
    let play = Play::new();
    let first = play.caller(1);
    play.wait_until(Play::is_read);
    let others: Vec<_> = (2..=4).map(|number| play.caller(number)).collect();
    play.wait_until(|play| play.answers.lock().parked.len() == 3);
    play.answer(3);
    play.wait_until(|play| play.answers.lock().parked.len() == 2);
    // The one that reads leaves, and another one reads.
    play.answer(1);
    assert_eq!(first.join().unwrap(), submitted(1));
    play.wait_until(|play| play.is_read() && play.answers.lock().parked.len() == 1);
    play.answer(4);
    play.answer(2);
    for (other, number) in others.into_iter().zip(2..) {
        assert_eq!(other.join().unwrap(), submitted(number));
    }
    play.wait_until(|play| !play.is_read());
    assert_eq!(play.answers.outlook(), (0, false));
    play.end();
}

#[test]
fn handlers_are_run_by_the_keeper_whoever_reads() {
    let play = Play::new();
    let keeper = play.keeper.thread().id();
    // Nobody else waits.
    let heard = play.handler(1, 1);
    play.answer(1);
    assert_eq!(heard.recv().unwrap(), (submitted(1), keeper));
    play.wait_until(|play| !play.is_read());
    // A caller reads when it comes, and leaves.
    let caller = play.caller(2);
    play.wait_until(Play::is_read);
    let heard = play.handler(3, 3);
    play.answer(3);
    play.answer(3);
    assert_eq!(heard.recv().unwrap(), (submitted(3), keeper));
    assert_eq!(heard.recv().unwrap(), (submitted(3), keeper));
    play.answer(2);
    assert_eq!(caller.join().unwrap(), submitted(2));
    play.wait_until(Play::is_read);
    play.answer(3);
    assert_eq!(heard.recv().unwrap(), (submitted(3), keeper));
    assert!(heard.recv().is_err(), "it is gone");
    play.end();
}

/// A handler that holds the keeper up for as long as a caller waits: so does one that wakes somebody whose lock the
/// caller has.
#[test]
fn a_caller_need_not_wait_for_a_handler() {
    let play = Play::new();
    let (begun, has_begun) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let handler = move |_| {
        begun.send(()).unwrap();
        may_go.recv().unwrap();
        More::No
    };
    play.answers.expect(1, Addressee::Handler(Box::new(handler))).unwrap();
    play.wait_until(Play::is_read);
    let caller = play.caller(2);
    play.wait_until(|play| play.answers.lock().parked.len() == 1);
    play.answer(1);
    has_begun.recv().unwrap();
    play.answer(2);
    assert_eq!(caller.join().unwrap(), submitted(2));
    go.send(()).unwrap();
    play.end();
}

#[test]
fn a_loss_is_told_to_all() {
    for reads in [1, 2] {
        let play = Play::new();
        // Either the keeper reads as the connection is lost, or a caller.
        let early = (reads == 1).then(|| play.handler(1, 1));
        let callers: Vec<_> = (2..=4).map(|number| play.caller(number)).collect();
        play.wait_until(|play| play.is_read() && play.answers.lock().parked.len() >= 2);
        let heard = early.unwrap_or_else(|| play.handler(1, 1));
        let Play { answers, keeper, daemon } = play;
        drop(daemon);
        for caller in callers {
            assert_eq!(caller.join().unwrap(), Err(Lost));
        }
        assert_eq!(heard.recv().unwrap().0, Err(Lost));
        keeper.join().unwrap();
        assert_eq!(answers.expect(5, Addressee::Caller), Err(Lost));
    }
}

#[test]
fn an_answer_that_nobody_asked_for_is_the_end() {
    let play = Play::new();
    let caller = play.caller(1);
    play.answer(7);
    assert_eq!(caller.join().unwrap(), Err(Lost));
    play.end();
    let play = Play::new();
    let heard = play.handler(1, 1);
    let other = play.handler(2, 1);
    play.answer(1);
    play.answer(1);
    assert_eq!(heard.recv().unwrap().0, submitted(1));
    assert_eq!(other.recv().unwrap().0, Err(Lost));
    play.end();
}

/// Callers and handlers without end, at all speeds: each hears its own answer, and none is forgotten.
#[test]
fn nobody_is_forgotten() {
    const CALLERS: u64 = 6;
    const ROUNDS: u64 = 300;
    let play = Play::new();
    let (ask, asked) = mpsc::channel::<u64>();
    let mut daemon = play.daemon.try_clone().unwrap();
    let server = thread::spawn(move || {
        // What came together is answered backwards.
        while let Ok(first) = asked.recv() {
            let mut numbers = vec![first];
            numbers.extend(asked.try_iter().take(3));
            let mut frames = Vec::new();
            for number in numbers.into_iter().rev() {
                push_frame(number, &Response::Submitted(JobId(number)), &mut frames).unwrap();
            }
            daemon.write_all(&frames).unwrap();
        }
    });
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (play, ask) = (&play, ask.clone());
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let number = round * CALLERS + caller + 1;
                    if (round + caller) % 3 == 0 {
                        let heard = play.handler(number, 1);
                        ask.send(number).unwrap();
                        assert_eq!(heard.recv().unwrap().0, submitted(number));
                    } else {
                        play.answers.expect(number, Addressee::Caller).unwrap();
                        ask.send(number).unwrap();
                        assert_eq!(play.answers.wait(number), submitted(number));
                    }
                }
            });
        }
    });
    drop(ask);
    server.join().unwrap();
    play.end();
}
