//! Limits on workers, and workers that are replaced before they do harm.

mod cpu;
mod idle;
mod inherited;
mod leaks;
mod memory;
mod recycling;
mod resources;
mod state;

/// What /proc/self/limits says of a resource: soft and hard limit.
fn limit_of(resource: &str) -> (String, String) {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with(resource)).unwrap();
    let mut words = line[resource.len()..].split_whitespace();
    (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
}
