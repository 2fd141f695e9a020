//! Python's pools. The script keeps the time, so that the interpreter's own start does not count.

use std::process::Command;
use std::sync::OnceLock;

use super::effort::Effort;
use super::roles;

const SCRIPT: &str = include_str!("peers.py");

/// True if there is a Python that can do it.
pub(crate) fn is_there() -> bool {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    *IS_THERE.get_or_init(|| {
        let imports = "import concurrent.futures, json, multiprocessing, statistics";
        let output = Command::new("python3").args(["-c", imports]).output();
        output.is_ok_and(|output| output.status.success())
    })
}

/// One measurement of a Python pool.
pub(crate) fn figure(measure: &str, pool: &str, effort: &Effort) -> f64 {
    let effort = serde_json::to_string(effort).expect("numbers are always JSON");
    roles::read_figure(Command::new("python3").args(["-c", SCRIPT, measure, pool, &effort]))
}
