//! The example of a worker program: run as the README says.

use std::fs;
use std::process::Command;

use super::fixture::Home;
use crate::support::test;

const WORDS: &str = env!("CARGO_BIN_EXE_example-words");

/// Goal: one program is a queue's worker and the client; its task can be called from the shell too.
#[test]
fn words_counts_words() {
    test(|| {
        let home = Home::new(&format!("[queue.words]\nworker = {WORDS:?}\nslots = 2\n"));
        let daemon = home.start();
        let file = home.path().join("three");
        fs::write(&file, "one two\nthree\n").unwrap();
        let output = Command::new(WORDS)
            .arg(home.socket())
            .args(["three", "none"])
            .current_dir(home.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["three: job 1", "none: job 2", "three: 3 words"]);
        assert!(lines[3].contains("No such file"), "{lines:?}");
        assert_eq!(home.status(1)["title"], "words of three");
        let json = serde_json::to_string(&file).unwrap();
        let task = "example_words::count";
        let words = ["submit", "--wait", "-q", "words", "--task", task, &json];
        assert_eq!(home.out(&words), "{\"Ok\":3}\n");
        daemon.stop();
    });
}
