//! The benchmark once more, as a program that a test can run.

#[path = "../benches/peers.rs"]
mod peers;

fn main() {
    peers::main();
}
