//! A connection to a daemon. Any number of threads send requests; who waits for an answer reads it, and a thread of the
//! connection's own those that nobody waits for: see [`answers`](super::answers).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use procpool::executor::{DoneThreads, is_forked_child, watch_forks};

use super::answers::{Addressee, Answers, Lost, More};
use crate::error::Error;
use crate::protocol::{
    GREETING_LEN, ProtocolFault, Request, Response, common_version, greeting, push_frame,
};

/// How long the daemon may take to greet: it does so at once, unless it is stopped or something else.
const GREETING_TIME: Duration = Duration::from_secs(10);

/// A connection to a daemon. It is closed when the last clone is dropped. In a forked child it is lost.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    writer: Mutex<Writer>,
    answers: Arc<Answers>,
    done_threads: DoneThreads,
}

struct Writer {
    stream: UnixStream,
    frame: Vec<u8>,
    next: u64,
}

impl Client {
    /// Connects to the daemon at this socket.
    ///
    /// # Errors
    /// [`is_no_daemon`](Error::is_no_daemon) if nobody listens there; else that it speaks no version that this
    /// program speaks, or another protocol.
    pub fn connect(path: &Path) -> Result<Client, Error> {
        watch_forks().map_err(|error| Error::system("cannot watch for forks", error))?;
        let mut stream =
            UnixStream::connect(path).map_err(|error| Error::no_daemon(path, error))?;
        greet(&mut stream).map_err(|error| match error.get_ref() {
            Some(fault) => match fault.downcast_ref::<ProtocolFault>() {
                Some(fault) => Error::protocol(fault),
                None => Error::no_daemon(path, error),
            },
            None => Error::no_daemon(path, error),
        })?;
        let fault = |error| Error::system("cannot start a thread", error);
        let answers = Arc::new(Answers::new(stream.try_clone().map_err(fault)?));
        let kept = Arc::clone(&answers);
        let done_threads = DoneThreads::default();
        let closed = done_threads.clone();
        thread::Builder::new()
            .name("procpool-daemon".into())
            .spawn(move || {
                kept.keep();
                closed.close();
            })
            .map_err(fault)?;
        let writer = Mutex::new(Writer { stream, frame: Vec::new(), next: 1 });
        Ok(Client(Arc::new(Inner { writer, answers, done_threads })))
    }

    /// What runs the callbacks of jobs that end here. They are gone when the connection is.
    pub(super) fn done_threads(&self) -> &DoneThreads {
        &self.0.done_threads
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`is_lost`](Error::is_lost) if the connection ends before; [`refusal`](Error::refusal) says why the daemon
    /// does not do it.
    pub fn request(&self, request: &Request) -> Result<Response, Error> {
        let number = self.post(request, Addressee::Caller)?;
        match self.0.answers.wait(number) {
            Ok(Response::Refused(refusal)) => Err(Error::refused(refusal)),
            Ok(response) => Ok(response),
            Err(Lost) => Err(Error::lost(None)),
        }
    }

    /// Sends a request; `handler` gets its answers, or that the connection is lost. An error means that it is called
    /// never.
    pub(super) fn send(
        &self,
        request: &Request,
        handler: impl FnMut(Result<Response, Lost>) -> More + Send + 'static,
    ) -> Result<(), Error> {
        self.post(request, Addressee::Handler(Box::new(handler))).map(drop)
    }

    /// Sends a request; answers its number.
    fn post(&self, request: &Request, addressee: Addressee) -> Result<u64, Error> {
        if is_forked_child() {
            return Err(Error::lost(None));
        }
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Writer { stream, frame, next } = &mut *writer;
        frame.clear();
        push_frame(*next, request, frame).map_err(|fault| Error::protocol(&fault))?;
        let number = *next;
        *next += 1;
        self.0.answers.expect(number, addressee).map_err(|Lost| Error::lost(None))?;
        match stream.write_all(frame) {
            Err(error) if self.0.answers.withdraw(number) => Err(Error::lost(Some(error))),
            // Or its handler knows.
            _ => Ok(number),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if is_forked_child() {
            // The connection is the parent's.
            return;
        }
        self.answers.close();
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Ends the thread if it reads, unless the daemon has ended it already.
        let _ = writer.stream.shutdown(Shutdown::Both);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_forked_child() {
            return f.debug_struct("Client").finish_non_exhaustive();
        }
        let (pending, is_lost) = self.0.answers.outlook();
        f.debug_struct("Client").field("pending", &pending).field("is_lost", &is_lost).finish()
    }
}

fn greet(stream: &mut UnixStream) -> io::Result<()> {
    let invalid = |fault| io::Error::new(io::ErrorKind::InvalidData, fault);
    stream.set_read_timeout(Some(GREETING_TIME))?;
    stream.write_all(&greeting(0))?;
    let mut theirs = [0; GREETING_LEN];
    stream.read_exact(&mut theirs)?;
    stream.set_read_timeout(None)?;
    common_version(&theirs).map_err(invalid)?;
    Ok(())
}
