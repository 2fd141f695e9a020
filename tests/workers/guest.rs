//! A command whose end the test decides.
//!
//! `guest MEETING WORD` says `WORD PID` at the test's meeting, waits until the test lets it go on, and
//! prints WORD. `guest segv` writes where nothing may be written.

use std::env;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["segv"] => write_nowhere(),
        [meeting, word] => {
            let mut stream = UnixStream::connect(meeting).expect("the test waits at its meeting");
            writeln!(stream, "{word} {}", process::id()).expect("the test listens");
            // The end of the stream is as good as a word: the test is over.
            let _ = stream.read(&mut [0]);
            println!("{word}");
        }
        _ => panic!("guest MEETING WORD, or guest segv"),
    }
}

#[expect(unsafe_code, reason = "only a real bad write is a real fault")]
fn write_nowhere() {
    let nowhere = std::hint::black_box(8_usize) as *mut u8;
    // SAFETY: it is not sound and shall not be: page zero is never mapped, so the process ends here.
    unsafe { nowhere.write_volatile(1) };
}
