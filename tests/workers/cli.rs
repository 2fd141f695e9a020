//! The program `procpool`, where the tests can find it.

use std::process::ExitCode;

fn main() -> ExitCode {
    procpool::init();
    procpool_cli::main_impl()
}
