//! Why procpool itself could not act.

use std::fmt;
use std::io;
use std::sync::Arc;

/// Why procpool could not act. How a job ended is a [`JobError`](crate::JobError), not an `Error`.
///
/// Opaque, so that it can tell more stories later; the predicates answer what a caller may have to branch
/// on. Clones share one value.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: Kind,
    source: Option<io::Error>,
}

#[derive(Debug)]
enum Kind {
    Setting(String),
    InitMissing(&'static str),
    Closed,
    Nested(u32),
    Start(String),
    System(String),
}

impl Error {
    fn new(kind: Kind, source: Option<io::Error>) -> Error {
        Error(Arc::new(Inner { kind, source }))
    }

    pub(crate) fn setting(message: impl Into<String>) -> Error {
        Error::new(Kind::Setting(message.into()), None)
    }

    pub(crate) fn init_missing(message: &'static str) -> Error {
        Error::new(Kind::InitMissing(message), None)
    }

    pub(crate) fn closed() -> Error {
        Error::new(Kind::Closed, None)
    }

    pub(crate) fn nested(limit: u32) -> Error {
        Error::new(Kind::Nested(limit), None)
    }

    pub(crate) fn start(message: impl Into<String>) -> Error {
        Error::new(Kind::Start(message.into()), None)
    }

    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::new(Kind::System(what.into()), Some(source.into()))
    }

    /// True if the pool was shut down before the call.
    pub fn is_closed(&self) -> bool {
        matches!(self.0.kind, Kind::Closed)
    }

    /// True if a setting makes no sense; the text names it.
    pub fn is_setting(&self) -> bool {
        matches!(self.0.kind, Kind::Setting(_))
    }

    /// True if the program did not call [`init`](crate::init) first.
    pub fn is_init_missing(&self) -> bool {
        matches!(self.0.kind, Kind::InitMissing(_))
    }

    /// True if workers could not be started; the text holds the first cause.
    pub fn is_start(&self) -> bool {
        matches!(self.0.kind, Kind::Start(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.kind {
            Kind::Setting(message) | Kind::Start(message) | Kind::System(message) => {
                f.write_str(message)
            }
            Kind::InitMissing(message) => f.write_str(message),
            Kind::Closed => f.write_str("the pool was shut down"),
            Kind::Nested(limit) => write!(
                f,
                "this process is a worker of a pool that is {limit} pools deep: does a job submit itself to a pool of its own?"
            ),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.0.kind).field("source", &self.0.source).finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}
