//! What `ps` shows of this process: the memory in which the kernel put its arguments.

use std::fs;
use std::ptr;

/// Where the arguments of this process are.
#[derive(Debug, Clone, Copy)]
pub struct Title {
    start: usize,
    len: usize,
}

impl Title {
    /// Asks the kernel, which tells only a process itself.
    pub fn find() -> Option<Title> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // proc_pid_stat(5): the name in parentheses is the second field, which is followed by the third;
        // `arg_start` is the 48th, `arg_end` the 49th.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split_whitespace().skip(48 - 3);
        let (start, end): (usize, usize) =
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (start > 0 && end > start).then_some(Title { start, len: end - start })
    }

    /// Puts `text` in the place of the arguments; what does not fit is cut. A process that has no second thread
    /// and does not use its arguments any more may do so.
    pub fn set(self, text: &str) {
        let kept = &text.as_bytes()[..text.len().min(self.len - 1)];
        let start = ptr::with_exposed_provenance_mut::<u8>(self.start);
        // SAFETY: the arguments lie in these `len` bytes of the stack, which the process may write for as long
        // as it lives. Nobody else looks at them now: there is one thread, and the standard library copies
        // arguments when it is asked for them.
        unsafe { ptr::write_bytes(start, 0, self.len) };
        // SAFETY: as above; at most `len - 1` bytes, so that the last one stays zero.
        unsafe { ptr::copy_nonoverlapping(kept.as_ptr(), start, kept.len()) };
    }
}
