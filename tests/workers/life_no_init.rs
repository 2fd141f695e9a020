//! A program that forgets `procpool::init()`.

#![expect(clippy::unwrap_used, reason = "a story that cannot be told fails its test")]

use std::fs;

fn main() {
    let error = procpool::ProcessPool::new().unwrap_err();
    println!("{} {error}", error.is_init_missing());
    let children = fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    println!("children: {}", children.collect::<String>().trim());
}
