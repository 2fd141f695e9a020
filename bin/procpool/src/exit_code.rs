//! Every exit code, documented once.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | every job succeeded |
//! | 1 to 100 | so many jobs failed |
//! | 101 | more than 100 jobs failed |
//! | 102 | wrong usage: an unknown option, a value that makes no sense, no command |
//! | 103 | there was no input |
//! | 104 | the input, or the joblog to resume, could not be read (to its end); jobs read before were run |
//! | 105 | output (standard output, the joblog, results) could not be written; the jobs were stopped |
//! | 106 | procpool could not do its part: workers that do not start, no temporary directory |
//! | 107 | of `daemon`: its journal failed, and it ended at once; what was acknowledged is kept |
//! | 108 | of `daemon`: another one has the state directory |
//! | 109 | of `daemon`: its journal is damaged, or of a later version; it was left as it is |
//! | 110 | no daemon answers at the socket, or none that this version can talk to, or it was lost before it answered |
//! | 111 | the daemon refused what was asked |
//! | 127 | the command, or the worker program, was not found or is not executable; nothing was run |
//! | 130 | interrupted before every job was run to its end |
//! | 141 | standard output was closed by its reader, as in `… \| head -1`; the jobs were stopped |
//!
//! `submit --wait` ends as its command did: with its exit code, or 128 and the number of the signal that killed it;
//! with 1 where there is neither, as when it timed out.
//!
//! Where several apply, the first of 130, 141, 105, 106, 104 holds, and all of them go before a number of
//! failed jobs. The last three are what a shell reports of programs for which this happens: 127 of one
//! not found, 128 and the signal's number of one that SIGINT or SIGPIPE ended.

/// The most failed jobs that are told by their number.
const FAILED_MAX: u8 = 100;

pub(crate) const SUCCESS: u8 = 0;
pub(crate) const MANY_FAILED: u8 = 101;
pub(crate) const USAGE: u8 = 102;
pub(crate) const NO_INPUT: u8 = 103;
pub(crate) const INPUT: u8 = 104;
pub(crate) const OUTPUT: u8 = 105;
pub(crate) const SYSTEM: u8 = 106;
pub(crate) const JOURNAL: u8 = 107;
pub(crate) const LOCKED: u8 = 108;
pub(crate) const DAMAGED: u8 = 109;
pub(crate) const NO_DAEMON: u8 = 110;
pub(crate) const REFUSED: u8 = 111;
pub(crate) const NOT_FOUND: u8 = 127;
pub(crate) const INTERRUPTED: u8 = 130;
pub(crate) const CLOSED_PIPE: u8 = 141;

/// The code for this number of failed jobs.
pub(crate) fn of_failed(failed: u64) -> u8 {
    match u8::try_from(failed) {
        Ok(failed) if failed <= FAILED_MAX => failed,
        _ => MANY_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_hundred_failures_share_one_code() {
        assert_eq!(of_failed(0), SUCCESS);
        assert_eq!(of_failed(100), 100);
        assert_eq!(of_failed(101), MANY_FAILED);
        assert_eq!(of_failed(256), MANY_FAILED);
    }
}
