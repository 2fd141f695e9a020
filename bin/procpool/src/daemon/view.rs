//! Jobs as lines, for people and as JSON.

use procpool_daemon::job::{Record, State, Step, Who};
use serde_json::{Value, json};

/// A line for people.
pub(super) fn line(record: &Record) -> String {
    let state = record.life.state();
    let title: String = record.terms.title.chars().flat_map(char::escape_debug).collect();
    format!("{}  {}  {}  {title}", record.id, state.word(), record.terms.queue)
}

/// An object of JSON, on one line.
pub(super) fn json(record: &Record) -> String {
    let Record { id, terms, life } = record;
    let object = json!({
        "id": id.0,
        "state": life.state().word(),
        "queue": terms.queue,
        "title": terms.title,
        "priority": terms.priority(),
        "retries": terms.retries(),
        "timeout_ms": terms.timeout().map(|timeout| timeout.as_millis() as u64),
        "not_before_ms": terms.not_before.map(|moment| moment.0),
        "after": terms.after.iter().map(|id| id.0).collect::<Vec<_>>(),
        "key": terms.key,
        "attempts": life.attempts,
        "deaths": life.deaths,
        "history": life.history.iter().map(step).collect::<Vec<_>>(),
    });
    object.to_string()
}

fn step(step: &Step) -> Value {
    let who = match step.who {
        Who::Daemon => json!("daemon"),
        Who::Client(pid) => json!({ "client": pid }),
    };
    let mut object = json!({
        "at_ms": step.at.0,
        "state": step.state.word(),
        "who": who,
        "why": step.why,
    });
    match step.state {
        State::Running(attempt) => object["attempt"] = json!(attempt),
        State::Interrupted { may_have_run } => object["may_have_run"] = json!(may_have_run),
        _ => {}
    }
    object
}
