//! A worker program for `procpool call`: tasks that end in every way.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::UnixStream;

fn main() {
    procpool::init();
    panic!("this program has nothing to do but to be a worker");
}

#[procpool::task]
fn double(n: u64) -> u64 {
    n * 2
}

#[procpool::task]
fn greet((name, times): (String, usize)) -> String {
    format!("hello {name}\n").repeat(times)
}

#[procpool::task]
fn half(n: u64) -> Result<u64, String> {
    if n.is_multiple_of(2) { Ok(n / 2) } else { Err(format!("{n} is odd")) }
}

/// Crashes on 13.
#[procpool::task]
fn crash_on_13(n: u64) -> u64 {
    if n == 13 {
        write_nowhere();
    }
    n
}

/// Panics on 13.
#[procpool::task]
fn panic_on_13(n: u64) -> u64 {
    assert!(n != 13, "no {n}\u{1b}[31m here");
    n
}

/// JSON has no name for the keys of this.
#[procpool::task]
fn unspeakable(n: u64) -> HashMap<Vec<u64>, u64> {
    (0..n).map(|n| (vec![n], n)).collect()
}

/// Waits until the test lets it go on.
#[procpool::task]
fn wait_at(meeting: String) -> String {
    let mut stream = UnixStream::connect(&meeting).expect("the test waits at its meeting");
    std::io::Write::write_all(&mut stream, b"here\n").expect("the test listens");
    let _ = stream.read(&mut [0]);
    meeting
}

/// Prints.
#[procpool::task]
fn chatter(_: u64) {
    println!("said aloud");
}

/// Computes for ever.
#[procpool::task]
fn spin((): ()) {
    loop {
        std::hint::spin_loop();
    }
}

#[procpool::task]
fn length(text: String) -> usize {
    text.len()
}

#[expect(unsafe_code, reason = "only a real bad write is a real fault")]
fn write_nowhere() {
    let nowhere = std::hint::black_box(8_usize) as *mut u8;
    // SAFETY: it is not sound and shall not be: page zero is never mapped, so the process ends here.
    unsafe { nowhere.write_volatile(1) };
}
