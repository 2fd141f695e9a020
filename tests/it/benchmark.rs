//! The benchmark works. What it measures is for a person to judge.

use std::process::Command;

use serde_json::Value;

use crate::support::test;

/// Goal: every row of the benchmark measures procpool beside its peers, and says of each target what became
/// of it.
/// Method: the benchmark itself, as short as it can be. Not a figure is looked at: this is a debug build on a
/// busy machine.
#[test]
fn the_benchmark_compares_procpool_with_its_peers() {
    test(|| {
        let results: Value = serde_json::from_str(&benchmark(&["--quick", "--json"])).unwrap();
        let rows = results["rows"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row["row"].as_str().unwrap()).collect();
        let listed = benchmark(&["--list"]);
        let listed: Vec<&str> =
            listed.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(names, listed);
        for row in rows {
            let contestants = row["contestants"].as_array().unwrap();
            assert!(contestants[0]["name"].as_str().unwrap().starts_with("procpool"), "{row}");
            for contestant in contestants {
                let figures = contestant["rounds"].as_array().unwrap();
                assert!(figures.len() == 2 && figures.iter().all(Value::is_f64), "{row}");
            }
            for target in row["targets"].as_array().unwrap() {
                let verdict = target["verdict"].as_str();
                let is_judged = matches!(verdict, Some("met" | "not met"));
                // A peer of the target may be one that this machine has not.
                let is_absent = row["absent"].as_array().is_some_and(|names| !names.is_empty());
                assert!(is_judged || verdict.is_none() && is_absent, "{row}");
            }
        }
    });
}

/// Goal: single rows can be asked for; the README's table has a line for each; a wrong name is named.
#[test]
fn single_rows_of_the_benchmark_can_be_asked_for() {
    test(|| {
        let table = benchmark(&["--quick", "--markdown", "--only", "rss,map"]);
        let lines: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(lines[2].contains("map of no-ops") && lines[3].contains("idle worker"), "{table}");
        let output = peers(&["--only", "rss,nothing"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no row `nothing`"));
    });
}

fn benchmark(arguments: &[&str]) -> String {
    let output = peers(arguments);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaints}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn peers(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_bench-peers")).args(arguments).output().unwrap()
}
