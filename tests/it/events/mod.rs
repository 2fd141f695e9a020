//! What a pool tells about itself, and what it does again after a death.

mod lines;
mod log;
mod manners;
mod retry;
mod stream;

use procpool::events::{Event, Events, WorkerEnd};

/// The events that are there now.
fn now(events: &Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

/// An event in one word, with the worker's index.
fn word(event: &Event) -> String {
    match event {
        Event::PoolBroken { .. } => "broken".into(),
        Event::PoolStopping { how, .. } => format!("stopping {how:?}"),
        Event::PoolEnded { .. } => "pool ended".into(),
        Event::WorkerStarting { worker, .. } => format!("{worker} starting"),
        Event::WorkerReady { worker, .. } => format!("{worker} ready"),
        Event::StartFailed { worker: Some(worker), .. } => format!("{worker} not started"),
        Event::WorkerStopping { worker, stage, .. } => format!("{worker} {stage:?}"),
        Event::WorkerFault { worker, .. } => format!("{worker} fault"),
        Event::WorkerEnded { worker, end, job: Some(_), .. } => {
            format!("{worker} {end:?} with job")
        }
        Event::WorkerEnded { worker, end, .. } => format!("{worker} {end:?}"),
        Event::WorkerLine { worker, line, .. } => format!("{worker} says {line}"),
        Event::JobStopping { worker, .. } => format!("job stopping in {worker}"),
        Event::JobRetry { attempt, .. } => format!("attempt {attempt} to come"),
        Event::JobFailed { .. } => "job failed".into(),
        other => format!("{other:?}"),
    }
}

fn words(events: &[Event]) -> Vec<String> {
    events.iter().map(word).collect()
}

/// True for the unexpected end of a worker.
fn is_death(event: &Event) -> bool {
    matches!(event, Event::WorkerEnded { end: WorkerEnd::Died, .. })
}
