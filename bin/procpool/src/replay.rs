//! `procpool replay CAPSULE`: a job again, alone, in the foreground, without limits.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use procpool::{JobError, ProcessPool, Shutdown};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::args::{self, Debugger};
use crate::capsule::{Capsule, What, word};
use crate::exit_code;
use crate::report;
use crate::run::write_through;

/// How long a debugger may take to take hold of the worker. It reads the program's symbols first.
const ATTACH_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether it has.
const ATTACH_LOOK: Duration = Duration::from_millis(10);

/// All of `procpool replay`; answers the exit code.
pub(crate) fn replay(args: &args::Replay) -> anyhow::Result<u8> {
    let capsule = match Capsule::read(&args.capsule) {
        Ok(capsule) => capsule,
        Err(error) => {
            let path = args.capsule.display();
            report::say(format_args!("cannot read the capsule `{path}`: {error:#}"));
            return Ok(exit_code::INPUT);
        }
    };
    let was = capsule.verdict["error"].as_str().unwrap_or("unknown").to_owned();
    report::say(format_args!("replaying `{}`; it ended so: {was}", args.capsule.display()));
    let surroundings = Surroundings::of(&capsule)?;
    match capsule.what {
        What::Command(words) => {
            let words: Option<Vec<OsString>> = words.into_iter().map(word).collect();
            let words = words.filter(|words| !words.is_empty()).context("it has no command")?;
            command(words, &surroundings, args.debugger)
        }
        What::Task { worker, name } => {
            let worker = word(worker).context("it has no worker program")?;
            let input = capsule.input.into_input().context("it has no input")?;
            let json =
                String::from_utf8(input.joined().into_owned()).context("its input is not text")?;
            task(Path::new(&worker), &name, json, &surroundings, args.debugger)
        }
    }
}

/// Where a job was run.
struct Surroundings {
    workdir: OsString,
    environment: Vec<(String, OsString)>,
}

impl Surroundings {
    fn of(capsule: &Capsule) -> anyhow::Result<Surroundings> {
        let word = |text: &crate::record::Text| word(text.clone()).context("it was changed");
        let variable = |(name, value)| Ok((String::clone(name), word(value)?));
        let environment: anyhow::Result<Vec<_>> =
            capsule.environment.iter().map(variable).collect();
        Ok(Surroundings { workdir: word(&capsule.workdir)?, environment: environment? })
    }

    fn apply(&self, command: &mut Command) {
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        command.env_clear().envs(environment).current_dir(&self.workdir);
    }
}

/// Becomes the command: so it has the terminal, its signals, and its own end for the shell.
fn command(
    words: Vec<OsString>,
    surroundings: &Surroundings,
    debugger: Option<Debugger>,
) -> anyhow::Result<u8> {
    let before: &[&str] = match debugger {
        None => &[],
        Some(Debugger::Gdb) => &["gdb", "--args"],
        Some(Debugger::Lldb) => &["lldb", "--"],
    };
    let mut all = before.iter().map(OsString::from).chain(words);
    let program = all.next().context("a command has a first word")?;
    let mut command = Command::new(&program);
    surroundings.apply(command.args(all));
    let error = command.exec();
    report::say(format_args!("cannot start `{}`: {error}", program.display()));
    Ok(exit_code::NOT_FOUND)
}

/// Calls the task in a worker, with a debugger at it if one is asked for.
fn task(
    worker: &Path,
    name: &str,
    json: String,
    surroundings: &Surroundings,
    debugger: Option<Debugger>,
) -> anyhow::Result<u8> {
    let mut builder = ProcessPool::builder().worker_program(worker).workers(1).env_clear();
    for (name, value) in &surroundings.environment {
        builder = builder.env(name, value);
    }
    let pool = builder.current_dir(&surroundings.workdir).build().context("cannot make a pool")?;
    pool.warm_up().context("the worker program cannot be started")?;
    let mut attached = match debugger {
        None => None,
        Some(debugger) => Some(attach(debugger, &pool)?),
    };
    if attached.is_some() {
        // Ctrl-C is the debugger's, which has the terminal with us.
        flag::register(SIGINT, Arc::default()).context("cannot handle SIGINT")?;
    }
    let future = pool.call(name, json);
    if let Some(attached) = &mut attached {
        // The person at it decides when it is over. What then still runs has nobody to look at it.
        attached.wait().context("the debugger was lost")?;
        if !future.wait_timeout(ATTACH_LOOK) {
            future.abort();
        }
    }
    let result = future.result();
    pool.shutdown(Shutdown::Abort);
    Ok(match result {
        Ok(json) => match write_through(&mut io::stdout().lock(), (json + "\n").as_bytes()) {
            Ok(()) => exit_code::SUCCESS,
            Err(error) => report::Unwritable::Stdout(error).say(),
        },
        Err(error) => {
            report::say(report::describe(&error, &format!("task `{name}`")));
            if matches!(error, JobError::Broken(_)) {
                exit_code::SYSTEM
            } else {
                exit_code::of_failed(1)
            }
        }
    })
}

/// Starts a debugger on the pool's worker, and waits until it has it.
fn attach(debugger: Debugger, pool: &ProcessPool) -> anyhow::Result<Child> {
    let workers = pool.workers();
    let pid = workers.first().context("the worker has ended")?.pid;
    let (program, options): (&str, &[&str]) = match debugger {
        // It stops the worker when it has it, and has to let it go on.
        Debugger::Gdb => ("gdb", &["-ex", "continue"]),
        Debugger::Lldb => ("lldb", &["-o", "continue"]),
    };
    let mut command = Command::new(program);
    command.arg("-p").arg(pid.to_string()).args(options);
    #[expect(clippy::disallowed_methods, reason = "a debugger is no worker: it has our terminal")]
    let mut child = command.spawn().with_context(|| format!("cannot start `{program}`"))?;
    let give_up_at = Instant::now() + ATTACH_MAX;
    while !is_traced(pid) {
        let ended: Option<ExitStatus> = child.try_wait().context("the debugger was lost")?;
        if let Some(status) = ended {
            anyhow::bail!("`{program}` ended before it had the worker: {:?}", status.into_raw());
        }
        anyhow::ensure!(
            Instant::now() < give_up_at,
            "`{program}` does not take hold of the worker"
        );
        // A debugger does not say when it has hold of a process; /proc does, to whoever looks.
        thread::sleep(ATTACH_LOOK);
    }
    Ok(child)
}

/// As proc_pid_status(5) tells it.
fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}
