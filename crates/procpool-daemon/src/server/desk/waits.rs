//! Who waits for which job's end. What one client can have here is bounded, and it costs nothing when it is gone.

use std::collections::{HashMap, HashSet};

use super::{Asker, Wanted};
use crate::job::JobId;
use crate::protocol::Refusal;

/// How often a client may wait at a time. As much as its jobs may be, and some ten MiB.
const WAITS_MAX: usize = 1 << 18;

#[derive(Debug, Default)]
pub(super) struct Waits {
    jobs: HashMap<JobId, Vec<(Asker, Wanted)>>,
    clients: HashMap<u64, Client>,
}

/// What one client waits for.
#[derive(Debug, Default)]
struct Client {
    count: usize,
    jobs: HashSet<JobId>,
}

/// The client waits too often already.
#[derive(Debug)]
pub(super) struct TooMany;

impl From<TooMany> for Refusal {
    fn from(TooMany: TooMany) -> Refusal {
        Refusal::Busy("this client waits for too many jobs already".into())
    }
}

impl Waits {
    /// How often a client waits.
    pub(super) fn of(&self, client: u64) -> usize {
        self.clients.get(&client).map_or(0, |client| client.count)
    }

    /// How often anybody does.
    pub(super) fn len(&self) -> usize {
        self.clients.values().map(|client| client.count).sum()
    }

    /// Whether a client may wait once more.
    pub(super) fn check(&self, client: u64) -> Result<(), TooMany> {
        if self.of(client) < WAITS_MAX { Ok(()) } else { Err(TooMany) }
    }

    pub(super) fn add(&mut self, asker: Asker, id: JobId, wanted: Wanted) -> Result<(), TooMany> {
        self.check(asker.client)?;
        let client = self.clients.entry(asker.client).or_default();
        client.count += 1;
        client.jobs.insert(id);
        self.jobs.entry(id).or_default().push((asker, wanted));
        Ok(())
    }

    /// All that wait for a job, which do so no longer.
    pub(super) fn take(&mut self, id: JobId) -> Vec<(Asker, Wanted)> {
        let waiting = self.jobs.remove(&id).unwrap_or_default();
        for (asker, _) in &waiting {
            if let Some(client) = self.clients.get_mut(&asker.client) {
                client.count -= 1;
                client.jobs.remove(&id);
                if client.count == 0 {
                    self.clients.remove(&asker.client);
                }
            }
        }
        waiting
    }

    /// A client is gone.
    pub(super) fn gone(&mut self, client: u64) {
        for id in self.clients.remove(&client).unwrap_or_default().jobs {
            let Some(waiting) = self.jobs.get_mut(&id) else {
                continue;
            };
            waiting.retain(|(asker, _)| asker.client != client);
            if waiting.is_empty() {
                self.jobs.remove(&id);
            }
        }
    }
}
