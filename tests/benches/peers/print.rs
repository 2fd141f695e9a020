//! The figures for a person, for the README, and for a program.

use std::thread;

use serde_json::{Value, json};

use super::effort::{Effort, WORKERS};
use super::row::{Figure, Row, Spread};

/// What all figures share.
fn setting(effort: &Effort) -> String {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let build =
        if cfg!(debug_assertions) { "; a debug build, whose figures mean nothing" } else { "" };
    format!(
        "{WORKERS} workers, {cpus} CPUs, medians of {} alternating rounds{build}",
        effort.rounds
    )
}

/// How many times as good, or what part.
fn times(ratio: f64) -> String {
    let decimals = match ratio.abs() {
        100.0.. => 0,
        10.0.. => 1,
        0.1.. => 2,
        _ => 3,
    };
    format!("{ratio:.decimals$}")
}

pub(crate) fn text(rows: &[Row], effort: &Effort) {
    println!("{}\n", setting(effort));
    for row in rows {
        println!("{} ({})", row.title, row.name);
        for contestant in &row.contestants {
            let Spread { median, low, high } = Spread::of(&contestant.figures);
            let figure = |value| Figure(row.unit, value).to_string();
            let spread = format!("{} to {}", figure(low), figure(high));
            let advantage = row
                .advantage(contestant)
                .map(|factor| format!("procpool is {} × as good", times(factor)));
            let line = format!(
                "  {:<32}{:>11}  {spread:<25}{}",
                contestant.name,
                figure(median),
                advantage.unwrap_or_default()
            );
            println!("{}", line.trim_end());
        }
        for target in &row.targets {
            let asks = format!("{}: {}", target.ours, row.asks(target));
            match row.verdict(target) {
                None => println!("  target  {asks}: no such peer here"),
                Some(verdict) => {
                    let Spread { median, low, high } = verdict.ratio();
                    println!(
                        "  target  {asks}: {} × ({} to {}): {verdict}",
                        times(*median),
                        times(*low),
                        times(*high)
                    );
                }
            }
        }
        println!();
    }
    let absent: Vec<&str> = absent(rows);
    if !absent.is_empty() {
        println!("not on this machine: {}", absent.join(", "));
    }
}

fn absent(rows: &[Row]) -> Vec<&'static str> {
    let mut names: Vec<&str> = rows.iter().flat_map(|row| row.absent.iter().copied()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// One table: a line for each row, and in brackets how many times as good procpool is.
pub(crate) fn markdown(rows: &[Row], effort: &Effort) {
    println!("{}\n", setting(effort));
    println!("| | procpool | beside it | asked, reached |");
    println!("|---|---:|---|---|");
    for row in rows {
        let (ours, peers): (Vec<_>, Vec<_>) = row.contestants.iter().partition(|c| c.is_ours());
        let figure = |figures: &[f64]| Figure(row.unit, Spread::of(figures).median).to_string();
        let ours: Vec<String> = ours
            .iter()
            .map(|c| match c.name.strip_prefix("procpool, ") {
                None => format!("**{}**", figure(&c.figures)),
                Some(which) => format!("{which} **{}**", figure(&c.figures)),
            })
            .collect();
        let peers: Vec<String> = peers
            .iter()
            .map(|c| {
                let advantage = row.advantage(c).map(times).unwrap_or_default();
                format!("{} {} ({advantage} ×)", c.name, figure(&c.figures))
            })
            .collect();
        let targets: Vec<String> = row
            .targets
            .iter()
            .map(|target| {
                let which = target.ours.strip_prefix("procpool, ");
                let which = which.map(|which| format!("{which}: ")).unwrap_or_default();
                let reached = row.verdict(target).map_or("no such peer here".into(), |verdict| {
                    format!("{} ×, {verdict}", times(verdict.ratio().median))
                });
                format!("{which}{}: {reached}", row.asks(target))
            })
            .collect();
        let cells = [ours.join("<br>"), peers.join("<br>"), targets.join("<br>")];
        let cells = cells.map(|cell| if cell.is_empty() { "–".to_owned() } else { cell });
        println!("| {} | {} |", row.title, cells.join(" | "));
    }
    let absent = absent(rows);
    if !absent.is_empty() {
        println!("\nNot on this machine: {}.", absent.join(", "));
    }
}

pub(crate) fn json(rows: &[Row], effort: &Effort) {
    let spread = |spread: &Spread| json!({ "median": spread.median, "low": spread.low, "high": spread.high });
    let row = |row: &Row| {
        let contestants: Vec<Value> = row
            .contestants
            .iter()
            .map(|c| {
                let summary = spread(&Spread::of(&c.figures));
                json!({ "name": c.name, "rounds": c.figures, "summary": summary })
            })
            .collect();
        let targets: Vec<Value> = row
            .targets
            .iter()
            .map(|target| {
                let verdict = row.verdict(target);
                json!({
                    "contestant": target.ours,
                    "asks": row.asks(target),
                    "factor": target.factor,
                    "ratio": verdict.as_ref().map(|verdict| spread(verdict.ratio())),
                    "verdict": verdict.map(|verdict| verdict.to_string()),
                })
            })
            .collect();
        json!({
            "row": row.name,
            "title": row.title,
            "unit": format!("{:?}", row.unit),
            "contestants": contestants,
            "absent": row.absent,
            "targets": targets,
        })
    };
    let rows: Vec<Value> = rows.iter().map(row).collect();
    println!("{:#}", json!({ "setting": setting(effort), "effort": effort, "rows": rows }));
}
