//! A connection to a daemon. Any number of threads send requests; one thread of its own hands out the answers.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use procpool::executor::{DoneThreads, is_forked_child, watch_forks};

use crate::error::Error;
use crate::protocol::{
    GREETING_LEN, ProtocolFault, Request, Response, common_version, greeting, parse_body,
    push_frame, read_frame,
};

/// How long the daemon may take to greet: it does so at once, unless it is stopped or something else.
const GREETING_TIME: Duration = Duration::from_secs(10);

/// What is done with an answer: on the connection's thread, which must not wait for another one, nor send anything:
/// the daemon reads no more while its answers are not read. It is called again while it says that there is more to
/// come.
type Handler = Box<dyn FnMut(Result<Response, Lost>) -> More + Send>;

/// The connection has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost;

/// Whether a request has answers to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Yes,
    No,
}

/// A connection to a daemon. It is closed when the last clone is dropped. In a forked child it is lost.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    writer: Mutex<Writer>,
    pending: Arc<Mutex<Pending>>,
    done_threads: DoneThreads,
}

struct Writer {
    stream: UnixStream,
    frame: Vec<u8>,
    next: u64,
}

#[derive(Default)]
struct Pending {
    handlers: HashMap<u64, Handler>,
    is_lost: bool,
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
        let reader = stream.try_clone().map_err(fault)?;
        let pending = Arc::new(Mutex::new(Pending::default()));
        let handed = Arc::clone(&pending);
        let done_threads = DoneThreads::default();
        let closed = done_threads.clone();
        thread::Builder::new()
            .name("procpool-daemon".into())
            .spawn(move || {
                hand_out(reader, &handed);
                closed.close();
            })
            .map_err(fault)?;
        let writer = Mutex::new(Writer { stream, frame: Vec::new(), next: 1 });
        Ok(Client(Arc::new(Inner { writer, pending, done_threads })))
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
        let (sender, receiver) = mpsc::channel();
        self.send(request, move |answer| {
            // Nobody listens if the thread that waits has gone.
            let _ = sender.send(answer);
            More::No
        })?;
        match receiver.recv() {
            Ok(Ok(Response::Refused(refusal))) => Err(Error::refused(refusal)),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(Lost)) | Err(_) => Err(Error::lost(None)),
        }
    }

    /// Sends a request; `handler` gets its answers, or that the connection is lost. An error means that it is called
    /// never.
    pub(super) fn send(
        &self,
        request: &Request,
        handler: impl FnMut(Result<Response, Lost>) -> More + Send + 'static,
    ) -> Result<(), Error> {
        if is_forked_child() {
            return Err(Error::lost(None));
        }
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Writer { stream, frame, next } = &mut *writer;
        frame.clear();
        push_frame(*next, request, frame).map_err(|fault| Error::protocol(&fault))?;
        let number = *next;
        *next += 1;
        {
            let mut pending = lock(&self.0.pending);
            if pending.is_lost {
                return Err(Error::lost(None));
            }
            pending.handlers.insert(number, Box::new(handler));
        }
        if let Err(error) = stream.write_all(frame) {
            // Unless it was told already that the connection is lost.
            return match lock(&self.0.pending).handlers.remove(&number) {
                Some(_) => Err(Error::lost(Some(error))),
                None => Ok(()),
            };
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if is_forked_child() {
            // The connection is the parent's.
            return;
        }
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Ends the thread, unless the daemon has ended it already.
        let _ = writer.stream.shutdown(Shutdown::Both);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_forked_child() {
            return f.debug_struct("Client").finish_non_exhaustive();
        }
        let pending = lock(&self.0.pending);
        f.debug_struct("Client")
            .field("pending", &pending.handlers.len())
            .field("is_lost", &pending.is_lost)
            .finish()
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // No handler runs under this lock.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Hands out answers until the connection ends.
fn hand_out(stream: UnixStream, pending: &Mutex<Pending>) {
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    while let Ok((number, body)) = read_frame(&mut reader) {
        let Some(mut handler) = lock(pending).handlers.remove(&number) else {
            break;
        };
        let Ok(response) = parse_body(&body) else {
            handler(Err(Lost));
            break;
        };
        if handler(Ok(response)) == More::Yes {
            lock(pending).handlers.insert(number, handler);
        }
    }
    let handlers = {
        let mut pending = lock(pending);
        pending.is_lost = true;
        std::mem::take(&mut pending.handlers)
    };
    for mut handler in handlers.into_values() {
        handler(Err(Lost));
    }
}
