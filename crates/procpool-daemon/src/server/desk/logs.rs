//! What commands say: read for whoever asks, and for whoever waits until there is more.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::Desk;
use super::followers::Follower;
use crate::command::log_path;
use crate::job::JobId;
use crate::protocol::{LOG_BYTES_MAX, Refusal, Response, Stream};

impl Desk {
    /// Reads what a command has said. The file belongs to this user, in a directory of this daemon's.
    pub(super) fn log(&self, id: JobId, stream: Stream, offset: u64) -> Response {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(log_path(&self.logs, id, stream))?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(LOG_BYTES_MAX.into()).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Response::Log { bytes },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Response::Log { bytes: Vec::new() }
            }
            Err(error) => {
                Response::Refused(Refusal::Invalid(format!("the log cannot be read: {error}")))
            }
        }
    }

    /// The same, for somebody who waits until there is something, or the job has ended.
    pub(super) fn log_or_wait(&mut self, id: JobId, follower: Follower) {
        let path = log_path(&self.logs, id, follower.stream);
        let may_say_more = self.machine.is_live(id);
        // It waits before it is looked: what comes in between is heard.
        if may_say_more && let Err(error) = self.followers.add(id, &path, follower) {
            let why = format!("the log cannot be followed: {error}");
            return self.refuse(follower.asker, Refusal::Invalid(why));
        }
        let Follower { asker, stream, offset } = follower;
        match self.log(id, stream, offset) {
            Response::Log { bytes } if bytes.is_empty() && may_say_more => {}
            response => {
                self.followers.withdraw(id, &path, asker);
                self.reply(asker, response);
            }
        }
    }

    /// Some logs have become longer.
    pub(in crate::server) fn heard(&mut self) {
        for id in self.followers.heard() {
            self.serve_followers(id);
        }
    }

    pub(super) fn serve_followers(&mut self, id: JobId) {
        let path = log_path(&self.logs, id, Stream::Stdout);
        for follower in self.followers.take(id, &path) {
            self.log_or_wait(id, follower);
        }
    }
}
