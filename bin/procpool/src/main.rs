//! The program `procpool`.

use std::process::ExitCode;

fn main() -> ExitCode {
    procpool::init();
    procpool_cli::main_impl()
}
