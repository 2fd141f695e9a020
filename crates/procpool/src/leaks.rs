//! What jobs leave behind in their workers: what is done about it, and how it is told.

use std::fmt;

use procpool_wire::limits::{LeakPolicy, LeakRecord};

use crate::job_error::Escaped;

/// What is done about what a job leaves behind in its worker: threads that run on, child processes for
/// which nobody has waited, open descriptors. See [`leaks`](crate::ProcessPoolBuilder::leaks).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leaks {
    /// The worker leaves after the job, and what was left goes with it. The job's outcome stays; its
    /// [`Report`](crate::Report) says what was left.
    Retire,
    /// Nobody looks.
    Ignore,
    /// The worker leaves, and the job ends as [`JobError::Leaked`](crate::JobError::Leaked) in place of its
    /// value.
    Error,
}

impl Leaks {
    pub(crate) fn policy(self) -> LeakPolicy {
        match self {
            Leaks::Retire => LeakPolicy::Retire,
            Leaks::Ignore => LeakPolicy::Ignore,
            Leaks::Error => LeakPolicy::Error,
        }
    }
}

/// What a job has left behind in its worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leaked {
    /// Threads that had not ended.
    pub threads: usize,
    /// Child processes that had not been waited for; at most 16 of them are listed.
    pub processes: Vec<LeakedProcess>,
    /// Open descriptors beyond those that the worker had before its first job.
    pub descriptors: usize,
}

/// A process that a job has left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeakedProcess {
    /// Its process id.
    pub pid: u32,
    /// What `ps` calls it, cut to 15 bytes.
    pub name: String,
}

impl Leaked {
    /// The worker's word, which may be anything.
    pub(crate) fn of(record: LeakRecord) -> Leaked {
        let processes = record.processes.into_iter().take(LeakRecord::PROCESSES_MAX);
        Leaked {
            threads: record.threads as usize,
            processes: processes.map(|(pid, name)| LeakedProcess { pid, name }).collect(),
            descriptors: record.descriptors as usize,
        }
    }
}

impl fmt::Display for Leaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        let mut counted = |f: &mut fmt::Formatter<'_>, count: usize, what: &str| match count {
            0 => Ok(()),
            count => {
                let plural = if count == 1 { "" } else { "s" };
                write!(f, "{}{count} {what}{plural}", std::mem::replace(&mut before, ", "))
            }
        };
        counted(f, self.threads, "thread")?;
        counted(f, self.descriptors, "descriptor")?;
        for LeakedProcess { pid, name } in &self.processes {
            write!(f, "{before}process {pid} ({})", Escaped(name))?;
            before = ", ";
        }
        if before.is_empty() { f.write_str("nothing that it could name") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_reads_as_a_list() {
        let process = LeakedProcess { pid: 4711, name: "sl\u{1b}ep".into() };
        let leaked = Leaked { threads: 1, processes: vec![process], descriptors: 50 };
        assert_eq!(leaked.to_string(), "1 thread, 50 descriptors, process 4711 (sl\\u{1b}ep)");
        assert_eq!(Leaked { threads: 2, ..Leaked::default() }.to_string(), "2 threads");
        assert_eq!(Leaked::default().to_string(), "nothing that it could name");
    }
}
