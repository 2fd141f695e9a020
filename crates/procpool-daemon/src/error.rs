//! Why the daemon, or its client, could not act.

use std::fmt;
use std::io;
use std::path::Path;

use crate::protocol::{ProtocolFault, Refusal, Response};
#[cfg(feature = "server")]
use crate::store::StoreError;

/// Why the daemon, or its client, could not act. How a job ended is not an `Error`.
///
/// Opaque; the predicates answer what a caller may have to branch on.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    source: Option<io::Error>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    System,
    Setting,
    Locked,
    Damaged,
    Journal,
    NoDaemon,
    Protocol,
    Lost,
    Refused(Refusal),
}

impl Error {
    fn new(kind: Kind, message: impl Into<String>, source: Option<io::Error>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), source }))
    }

    /// The system refused something.
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::new(Kind::System, what, Some(source.into()))
    }

    /// A setting makes no sense.
    #[cfg(feature = "server")]
    pub(crate) fn setting(message: impl Into<String>) -> Error {
        Error::new(Kind::Setting, message, None)
    }

    /// Another daemon has the state directory.
    #[cfg(feature = "server")]
    pub(crate) fn locked(dir: &Path, holder: &str) -> Error {
        let message = format!("`{}` belongs to another daemon{holder}", dir.display());
        Error::new(Kind::Locked, message, None)
    }

    /// The journal cannot be opened.
    #[cfg(feature = "server")]
    pub(crate) fn store(path: &Path, error: StoreError) -> Error {
        let message = format!("cannot open the journal `{}`", path.display());
        match error {
            StoreError::Io(source) => Error::new(Kind::System, message, Some(source)),
            StoreError::Full => Error::system(message, io::Error::from(io::ErrorKind::StorageFull)),
            other => Error::new(Kind::Damaged, format!("{message}: {other}"), None),
        }
    }

    /// The journal cannot be written any more.
    #[cfg(feature = "server")]
    pub(crate) fn journal(error: StoreError) -> Error {
        let message = "the journal failed, so nothing can be promised any more";
        match error {
            StoreError::Io(source) => Error::new(Kind::Journal, message, Some(source)),
            other => Error::new(Kind::Journal, format!("{message}: {other}"), None),
        }
    }

    /// Nobody is at the socket.
    pub(crate) fn no_daemon(path: &Path, source: io::Error) -> Error {
        let message = format!("no daemon answers at `{}`", path.display());
        Error::new(Kind::NoDaemon, message, Some(source))
    }

    pub(crate) fn protocol(fault: &ProtocolFault) -> Error {
        Error::new(Kind::Protocol, fault.to_string(), None)
    }

    /// The daemon gives the answer to another question.
    pub fn unexpected(response: &Response) -> Error {
        Error::new(Kind::Protocol, format!("the daemon answers something else: {response:?}"), None)
    }

    /// The connection ended.
    pub(crate) fn lost(source: Option<io::Error>) -> Error {
        Error::new(Kind::Lost, "the connection to the daemon was lost", source)
    }

    pub(crate) fn refused(refusal: Refusal) -> Error {
        Error::new(Kind::Refused(refusal.clone()), refusal.to_string(), None)
    }

    /// True if a setting makes no sense; the text names it.
    pub fn is_setting(&self) -> bool {
        self.0.kind == Kind::Setting
    }

    /// True if another daemon has the state directory; the text names it.
    pub fn is_locked(&self) -> bool {
        self.0.kind == Kind::Locked
    }

    /// True if the journal is damaged, or was written by a later version.
    pub fn is_damaged(&self) -> bool {
        self.0.kind == Kind::Damaged
    }

    /// True if the journal failed while the daemon served.
    pub fn is_journal(&self) -> bool {
        self.0.kind == Kind::Journal
    }

    /// True if nobody is at the socket.
    pub fn is_no_daemon(&self) -> bool {
        self.0.kind == Kind::NoDaemon
    }

    /// True if the connection ended before there was an answer: whether the request was followed is not known.
    pub fn is_lost(&self) -> bool {
        self.0.kind == Kind::Lost
    }

    /// True if what answers is no daemon that this program understands: the text says why.
    pub fn is_protocol(&self) -> bool {
        self.0.kind == Kind::Protocol
    }

    /// Why the daemon refused, if it did.
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.0.kind {
            Kind::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}
