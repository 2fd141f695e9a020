//! The benchmark works. What it measures is for a person to judge.

use std::process::Command;

use crate::support::test;

/// Goal: every peer runs beside procpool in one program, and each has its line in the table.
/// Method: the benchmark itself, as short as it can be. Not a figure is looked at: this is a debug build
/// on a busy machine.
#[test]
fn the_benchmark_compares_procpool_with_its_peers() {
    test(|| {
        let output = Command::new(env!("CARGO_BIN_EXE_bench-peers"))
            .args(["--quick", "--markdown"])
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaints}", output.status);
        let table = String::from_utf8(output.stdout).unwrap();
        let cells = |name: &str| -> Vec<&str> {
            let line = table
                .lines()
                .find(|line| line.starts_with(&format!("| {name} |")))
                .unwrap_or_else(|| panic!("no line for {name}: {table}"));
            line.trim_matches('|').split('|').map(str::trim).collect()
        };
        // Name, jobs, two of round trips, map, two of fresh pools.
        let measured = |name: &str| -> Vec<bool> {
            cells(name)[1..].iter().map(|cell| *cell != "–").collect()
        };
        assert_eq!(measured("procpool"), [true; 6]);
        for peer in ["threadpool, a channel a job", "threadpool, one channel", "procspawn"] {
            assert_eq!(measured(peer), [true, true, true, false, true, true], "{peer}");
        }
        assert_eq!(
            measured("socket ping-pong, unpinned"),
            [false, true, true, false, false, false]
        );
    });
}
