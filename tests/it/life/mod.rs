//! How pools, workers and their hosts begin and end.

pub(crate) mod fixture;

mod host_death;
mod image;
mod inherited;
mod init_missing;
mod initializer;
mod nested;
mod shutdown;
mod spawning;
mod time;
mod worker_end;
