//! What the settings of `run` and `call` mean for their pool.

use std::ffi::OsStr;
use std::sync::OnceLock;
use std::thread;

use anyhow::Context;
use procpool::ProcessPoolBuilder;

use crate::args::Settings;

impl Settings {
    /// How many jobs run at a time.
    pub(crate) fn workers(&self) -> usize {
        // The answer is read from several files.
        static CPUS: OnceLock<usize> = OnceLock::new();
        let cpus = || *CPUS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from));
        self.jobs.map_or_else(cpus, usize::from)
    }

    /// The pool that they ask for.
    pub(crate) fn apply(&self, builder: ProcessPoolBuilder) -> ProcessPoolBuilder {
        let mut builder = builder.workers(self.workers());
        if let Some(timeout) = self.timeout {
            builder = builder.job_timeout(timeout);
        }
        if let Some(bytes) = self.memory {
            builder = builder.memory_limit(bytes);
        }
        if let Some(dir) = &self.workdir {
            builder = builder.current_dir(dir);
        }
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        builder
    }

    /// Where jobs look for their programs, if they are told.
    pub(crate) fn path(&self) -> Option<&OsStr> {
        let set = self.env.iter().rev().find(|(name, _)| name == "PATH");
        set.map(|(_, value)| value.as_os_str())
    }

    /// Changes this process, from which workers inherit. Call it before the pool is made.
    pub(crate) fn prepare_process(&self) -> anyhow::Result<()> {
        if let Some(increment) = self.nice {
            rustix::process::nice(increment.into()).context("cannot change the nice value")?;
        }
        Ok(())
    }

    /// Says which setting cannot hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.workdir {
            Some(dir) if !dir.is_dir() => {
                Err(format!("--workdir: `{}` is not a directory", dir.display()))
            }
            _ => Ok(()),
        }
    }
}
