//! Who reads a connection's answers, and how each finds the one that it waits for.
//!
//! One thread reads at a time: it has the *reader*, which otherwise lies in the [`State`]. A caller that waits for an
//! answer takes the reader if it lies there, and reads until it has its own answer: nobody has to be woken for that one. Then
//! it puts the reader back. The connection's own thread, the *keeper*, reads while there are handlers and nobody else does, and
//! alone runs them, whoever has read their answers: what a handler wakes may be code of the user's, which a caller may have
//! locked out.
//!
//! **Nobody sleeps whom the reader lies there for.** Callers sleep in `parked`, the keeper when it has nothing to do; both look
//! at the state under its lock first, and take the reader if it lies there and they want it. So it is enough that somebody looks
//! whenever one of these comes to be, which happens under the lock:
//!
//! | what | who looks |
//! |---|---|
//! | the reader is put back, by a caller who then leaves | whom [`State::next`] names: a parked caller, else the keeper if there are handlers |
//! | the reader is put back, by the keeper, which then does something else | a parked caller; the keeper itself when it has done it |
//! | a caller comes to wait | itself |
//! | a handler comes | the keeper, unless the reader is away: then the first line follows |
//! | an answer is read for a caller; for a handler | that caller; the keeper |
//! | the connection is lost | all |
//!
//! Who was named for the reader and finds his answer instead names the next one before he leaves. To be woken is a token
//! of `unpark`, which lasts until the thread looks, so it does not matter whether it sleeps already.
//!
//! **A caller counts only once its request is written.** Until then it is not parked, and the keeper does not leave the
//! reader to it: the daemon does not read on while too many of its answers are unread, so that a write may have to wait for a read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

use crate::protocol::{Response, parse_body, read_frame};

/// How much is read at a time: hundreds of answers.
const CHUNK: usize = 64 << 10;

/// What is done with an answer: on the keeper, which must not wait for another one, nor send anything: the daemon
/// reads no more while its answers are not read. It is called again while it says that there is more to come.
pub(super) type Handler = Box<dyn FnMut(Result<Response, Lost>) -> More + Send>;

/// The connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// Whether a request has answers to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Yes,
    No,
}

/// Who gets the answers to a request.
pub(super) enum Addressee {
    /// Whoever calls [`wait`](Answers::wait) for it: there is one.
    Caller,
    Handler(Handler),
}

/// The answers of a connection.
pub(super) struct Answers(Mutex<State>);

struct State {
    /// `None` while somebody reads.
    reader: Option<Reader>,
    /// Requests of callers, and the answers of those that have one.
    callers: HashMap<u64, Option<Response>>,
    /// Callers that sleep, by their requests.
    parked: BTreeMap<u64, Thread>,
    /// `None` while it runs.
    handlers: HashMap<u64, Option<Handler>>,
    /// Answers for handlers. Bounded by what they have asked.
    unhandled: VecDeque<(u64, Response)>,
    keeper: Option<Thread>,
    is_lost: bool,
}

struct Reader(BufReader<UnixStream>);

impl Reader {
    /// The next answer. Whatever is wrong with it, there will be no other.
    fn read(&mut self) -> Result<(u64, Response), Lost> {
        let (number, body) = read_frame(&mut self.0).map_err(|_| Lost)?;
        Ok((number, parse_body(&body).map_err(|_| Lost)?))
    }
}

impl Answers {
    pub(super) fn new(stream: UnixStream) -> Answers {
        Answers(Mutex::new(State {
            reader: Some(Reader(BufReader::with_capacity(CHUNK, stream))),
            callers: HashMap::new(),
            parked: BTreeMap::new(),
            handlers: HashMap::new(),
            unhandled: VecDeque::new(),
            keeper: None,
            is_lost: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No handler runs under this lock, nor is anything read or written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes known who gets the answers to a request that is about to be sent.
    pub(super) fn expect(&self, number: u64, addressee: Addressee) -> Result<(), Lost> {
        let mut state = self.lock();
        if state.is_lost {
            return Err(Lost);
        }
        match addressee {
            Addressee::Caller => {
                state.callers.insert(number, None);
            }
            Addressee::Handler(handler) => {
                state.handlers.insert(number, Some(handler));
                if state.reader.is_some() {
                    wake(state.keeper.as_ref());
                }
            }
        }
        Ok(())
    }

    /// The request could not be sent. False if its handler is being told something already, or was told of the loss.
    pub(super) fn withdraw(&self, number: u64) -> bool {
        let mut state = self.lock();
        let is_told = matches!(state.handlers.get(&number), Some(None));
        let handler = if is_told { None } else { state.handlers.remove(&number) };
        let is_caller = state.callers.remove(&number).is_some();
        // What the handler has is not dropped under the lock.
        drop(state);
        is_caller || handler.is_some()
    }

    /// Waits for the answer to a request of a [`Caller`](Addressee::Caller), which has been sent.
    pub(super) fn wait(&self, number: u64) -> Result<Response, Lost> {
        let mut state = self.lock();
        let result = loop {
            if let Some(response) = state.callers.get_mut(&number).and_then(Option::take) {
                break Ok(response);
            }
            if state.is_lost {
                break Err(Lost);
            }
            if let Some(mut reader) = state.reader.take() {
                drop(state);
                let read = reader.read();
                state = self.lock();
                state.reader = Some(reader);
                match read {
                    Ok((mine, response)) if mine == number => break Ok(response),
                    other => state.take_in(other),
                }
            } else {
                state.parked.insert(number, thread::current());
                drop(state);
                thread::park();
                state = self.lock();
                state.parked.remove(&number);
            }
        };
        state.callers.remove(&number);
        wake(state.next().as_ref());
        result
    }

    /// The keeper's life: until the connection is lost and every handler has been told so.
    pub(super) fn keep(&self) {
        let mut state = self.lock();
        state.keeper = Some(thread::current());
        loop {
            if let Some((number, response)) = state.unhandled.pop_front() {
                let Some(mut handler) = state.handlers.get_mut(&number).and_then(Option::take)
                else {
                    // It has had its last answer, and this is one more.
                    state.lose();
                    continue;
                };
                // It may take its time with what a parked caller has locked.
                wake(state.next_caller().as_ref());
                drop(state);
                let more = handler(Ok(response));
                // Dropped here if nothing is to come, and perhaps the connection with it.
                let handler = (more == More::Yes).then_some(handler);
                state = self.lock();
                match handler {
                    Some(handler) => state.handlers.insert(number, Some(handler)),
                    None => state.handlers.remove(&number),
                };
            } else if state.is_lost {
                break;
            } else if !state.handlers.is_empty()
                && let Some(mut reader) = state.reader.take()
            {
                drop(state);
                let read = reader.read();
                state = self.lock();
                state.reader = Some(reader);
                state.take_in(read);
            } else {
                wake(state.next_caller().as_ref());
                drop(state);
                thread::park();
                state = self.lock();
            }
        }
        let handlers = std::mem::take(&mut state.handlers);
        drop(state);
        for mut handler in handlers.into_values().flatten() {
            handler(Err(Lost));
        }
    }

    /// Nobody will send anything any more.
    pub(super) fn close(&self) {
        self.lock().lose();
    }

    /// How many requests have answers to come, and whether the connection is lost.
    pub(super) fn outlook(&self) -> (usize, bool) {
        let state = self.lock();
        (state.callers.len() + state.handlers.len(), state.is_lost)
    }
}

impl State {
    /// Who is to look, if the reader lies there.
    fn next(&mut self) -> Option<Thread> {
        self.reader.as_ref()?;
        match self.next_caller() {
            None if !self.handlers.is_empty() => self.keeper.clone(),
            caller => caller,
        }
    }

    /// The same of the callers.
    fn next_caller(&mut self) -> Option<Thread> {
        self.reader.as_ref()?;
        self.parked.pop_first().map(|(_, caller)| caller)
    }

    /// Hands over what was read.
    fn take_in(&mut self, read: Result<(u64, Response), Lost>) {
        let Ok((number, response)) = read else {
            return self.lose();
        };
        if let Some(answer) = self.callers.get_mut(&number) {
            *answer = Some(response);
            wake(self.parked.remove(&number).as_ref());
        } else if self.handlers.contains_key(&number) {
            self.unhandled.push_back((number, response));
            wake(self.keeper.as_ref());
        } else {
            // Nobody has asked for that.
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.is_lost = true;
        for (_, caller) in std::mem::take(&mut self.parked) {
            caller.unpark();
        }
        wake(self.keeper.as_ref());
    }
}

/// A keeper that is not there yet looks as it comes.
fn wake(thread: Option<&Thread>) {
    if let Some(thread) = thread {
        thread.unpark();
    }
}

#[cfg(test)]
mod tests;
