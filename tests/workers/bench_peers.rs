//! The benchmark once more, as a program that a test can run.

use std::process::ExitCode;

#[path = "../benches/peers/main.rs"]
mod peers;

fn main() -> ExitCode {
    peers::main()
}
