//! [`Map`]: one function over many items, lazily.

use std::any::{Any, type_name};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::mem;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use procpool_sys::image::Function;
use procpool_wire::elements::{self, Kind};

use crate::attachments::session::{self, Collected};
use crate::cell::{Ended, Group, JobCell, Part, Value, deadline_after};
use crate::executor::{
    Backend, Call, Callee, Data, FunctionCall, Options, Promise, decode_result, encode_argument,
};
use crate::job::submit_call;
use crate::job_error::{EndedBy, JobError, Label, Limit, Timeout};
use crate::worker;

/// How much work an automatic chunk shall be: long beside the cost of handing it over (microseconds),
/// short beside what a person or a balanced load would notice.
const CHUNK_TARGET: Duration = Duration::from_millis(1);
/// The most elements in an automatic chunk.
const CHUNK_MAX: usize = 4096;
/// An automatic chunk grows at most by this factor over the last one, in case that one was not typical.
const CHUNK_GROWTH: usize = 8;
/// A chunk is closed once its arguments take so many bytes: more is better sent piece by piece.
const CHUNK_BYTES_MAX: usize = 8 * 1024;
/// Elements pulled ahead by default: at least so many, so that one slow element does not idle the rest…
const BUFFER_MIN: usize = 1024;
/// …and this many chunks for each worker.
const BUFFER_CHUNKS_PER_WORKER: usize = 4;

/// The results of calling a function on every item of an input: an iterator over `Result<R, JobError>`.
///
/// Lazy: the input is pulled as results are taken, at most [`buffer`](Map::buffer) elements ahead, so it
/// may be infinite. Results come in input order, unless [`unordered`](Map::unordered). An error of one
/// element does not end the iteration. Several elements travel to a worker together (a chunk), but each
/// has an outcome of its own: one that kills its worker costs itself alone. A panic in the input reaches
/// the caller of `next`, and ends the input. After a shutdown of the pool each element is refused, as [`JobError::Closed`]: that
/// does not end an endless map either.
///
/// Dropping it cancels what has not started.
#[must_use = "a map does nothing until it is iterated"]
pub struct Map<'p, A, R, I> {
    backend: &'p dyn Backend,
    f: fn(A) -> R,
    items: I,
    origin: &'static Location<'static>,
    chunk_size: Option<usize>,
    buffer: Option<usize>,
    limit: Option<(Duration, Option<Instant>)>,
    order: Order,
    stage: Stage,
    /// Chunks submitted and not opened, by the order of their submission.
    in_flight: BTreeMap<usize, Chunk>,
    next_chunk: usize,
    /// For `unordered`: tells which chunk has ended.
    group: Arc<Group>,
    /// The opened chunk.
    ready: Outcomes,
    /// Elements pulled from the input and not yet returned.
    outstanding: usize,
    /// With more of them than this there was no room for a chunk when that was last looked at.
    outstanding_max: usize,
    automatic_chunk: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Input,
    Completion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Pulling,
    /// The input has ended.
    Draining,
    TimedOut,
}

/// A chunk on its way.
struct Chunk {
    cell: Arc<JobCell>,
    count: usize,
    /// Elements whose argument could not be encoded, by their place in the chunk.
    refused: VecDeque<(usize, JobError)>,
}

impl<'p, A: Data, R: Data, I: Iterator<Item = A>> Map<'p, A, R, I> {
    pub(crate) fn new(
        backend: &'p dyn Backend,
        f: fn(A) -> R,
        items: I,
        origin: &'static Location<'static>,
    ) -> Map<'p, A, R, I> {
        Map {
            backend,
            f,
            items,
            origin,
            chunk_size: None,
            buffer: None,
            limit: None,
            order: Order::Input,
            stage: Stage::Pulling,
            in_flight: BTreeMap::new(),
            next_chunk: 0,
            group: Arc::default(),
            ready: Outcomes::default(),
            outstanding: 0,
            outstanding_max: usize::MAX,
            automatic_chunk: 1,
        }
    }

    /// How many elements travel together. By default that follows from how long they take: about a
    /// millisecond of work. A thread pool ignores it.
    ///
    /// # Panics
    /// If `size` is 0.
    #[track_caller]
    pub fn chunk_size(mut self, size: usize) -> Self {
        assert!(size > 0, "chunk_size must be at least 1");
        self.chunk_size = Some(size);
        self
    }

    /// At most how many elements are pulled from the input beyond those taken.
    ///
    /// # Panics
    /// If `elements` is 0.
    #[track_caller]
    pub fn buffer(mut self, elements: usize) -> Self {
        assert!(elements > 0, "buffer must be at least 1");
        self.buffer = Some(elements);
        self
    }

    /// Limits the whole iteration to `timeout` from this call. Past it, `next` gives one
    /// [`JobError::TimedOut`] with [`Limit::Map`], cancels what has not started, and the map ends.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.limit = Some((timeout, deadline_after(timeout)));
        self
    }

    /// Yields results in the order in which they are completed.
    pub fn unordered(mut self) -> Self {
        self.order = Order::Completion;
        self
    }

    fn is_over(&self) -> bool {
        let deadline = self.limit.and_then(|(_, deadline)| deadline);
        deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn time_out(&mut self, label: Label) -> JobError {
        self.stage = Stage::TimedOut;
        self.cancel_rest();
        JobError::TimedOut(Timeout {
            limit: Limit::Map,
            after: self.limit.map_or(Duration::ZERO, |(timeout, _)| timeout),
            ended_by: EndedBy::NotStarted,
            label,
        })
    }

    fn chunk_wanted(&self) -> usize {
        let chunk = match self.chunk_size {
            _ if !self.backend.takes_chunks() => 1,
            Some(size) => size,
            None => self.automatic_chunk,
        };
        chunk.min(self.buffer.unwrap_or(usize::MAX))
    }

    /// Submits chunks for as long as the buffer has room.
    fn fill(&mut self) {
        // Past its time nothing more is pulled: if results were always there an endless map would not end.
        if self.next_chunk > 0 && self.is_over() {
            return;
        }
        while self.stage == Stage::Pulling {
            let chunk = self.chunk_wanted();
            let ahead = BUFFER_CHUNKS_PER_WORKER
                .saturating_mul(self.backend.workers())
                .saturating_mul(chunk);
            let buffer = self.buffer.unwrap_or(ahead.max(BUFFER_MIN));
            self.outstanding_max = buffer - chunk;
            if self.outstanding > self.outstanding_max {
                return;
            }
            let mut arguments = Vec::new();
            let mut attached = Collected::default();
            let mut refused = VecDeque::new();
            let mut count = 0;
            let mut single = None;
            // Until it is known better. If the input panics, elements of this chunk are lost with it: what
            // came after them would stand in their places.
            self.stage = Stage::Draining;
            let mut input_ended = false;
            while count < chunk
                && CHUNK_BYTES_MAX as u64 > arguments.len() as u64 + attached.bytes()
            {
                let Some(item) = self.items.next() else {
                    input_ended = true;
                    break;
                };
                count += 1;
                if chunk == 1 {
                    single = Some(item);
                } else if let Err(error) = self.encode(&item, &mut arguments, &mut attached) {
                    refused.push_back((count - 1, *error));
                }
            }
            if !input_ended {
                self.stage = Stage::Pulling;
            }
            if count > 0 {
                self.submit(single, arguments, attached, count, refused);
            }
        }
    }

    fn encode(
        &self,
        item: &A,
        arguments: &mut Vec<u8>,
        attached: &mut Collected,
    ) -> Result<(), Box<JobError>> {
        let limit = self.backend.payload_limit();
        if self.backend.takes_attachments() {
            session::collect(attached, || encode_argument(item, limit, arguments))
        } else {
            encode_argument(item, limit, arguments)
        }
    }

    fn submit(
        &mut self,
        single: Option<A>,
        arguments: Vec<u8>,
        attached: Collected,
        count: usize,
        refused: VecDeque<(usize, JobError)>,
    ) {
        let cell = JobCell::new(self.backend.control(), self.origin, None, 0);
        let options = Options::default();
        match single {
            Some(arg) => {
                let mut call = FunctionCall { f: self.f, arg: Some(arg) };
                submit_call(self.backend, &mut call, &cell, &options);
            }
            None => {
                let sound = (count - refused.len()) as u32;
                let mut call = ChunkCall { f: self.f, arguments, attached, sound };
                submit_call(self.backend, &mut call, &cell, &options);
            }
        }
        if self.order == Order::Completion {
            cell.add_group(&self.group, self.next_chunk);
        }
        self.in_flight.insert(self.next_chunk, Chunk { cell, count, refused });
        self.next_chunk += 1;
        self.outstanding += count;
    }

    /// Waits for the next chunk. `None`: the time is over.
    fn wait_for_chunk(&mut self) -> Option<Chunk> {
        let deadline = self.limit.and_then(|(_, deadline)| deadline);
        let key = match self.order {
            Order::Completion => {
                let pending = || self.in_flight.values().next().map(|chunk| &chunk.cell);
                self.group.pop(deadline, pending)?
            }
            Order::Input => {
                let (key, chunk) = self.in_flight.first_key_value()?;
                if !chunk.cell.wait(deadline) {
                    return None;
                }
                *key
            }
        };
        self.in_flight.remove(&key)
    }

    fn open(&mut self, chunk: Chunk) {
        let ended = chunk.cell.take();
        if let Some(ran) = ended.as_ref().and_then(Ended::ran) {
            let element = ran.as_nanos() / chunk.count as u128;
            let wanted = (CHUNK_TARGET.as_nanos() / element.max(1)) as usize;
            let most = CHUNK_MAX.min(self.automatic_chunk * CHUNK_GROWTH);
            self.automatic_chunk = wanted.clamp(1, most);
            self.outstanding_max = usize::MAX;
        }
        self.ready = Outcomes {
            index: 0,
            count: chunk.count,
            refused: chunk.refused,
            label: Some(chunk.cell.label()),
            payload_limit: self.backend.payload_limit(),
            parts: match ended.map_or(Err(JobError::Closed.into()), Ended::into_result) {
                Ok(Value::Parts(parts)) => Parts::Many(parts.into(), 0),
                Ok(value) => Parts::One(Some(value)),
                Err(error) => Parts::Error(*error),
            },
        };
    }
}

impl<A: Data, R: Data, I: Iterator<Item = A>> Iterator for Map<'_, A, R, I> {
    type Item = Result<R, JobError>;

    fn next(&mut self) -> Option<Result<R, JobError>> {
        loop {
            if self.stage == Stage::TimedOut {
                return None;
            }
            if self.stage == Stage::Pulling && self.outstanding <= self.outstanding_max {
                self.fill();
            }
            if let Some(outcome) = self.ready.next::<R>() {
                self.outstanding -= 1;
                return Some(outcome.map_err(|error| *error));
            }
            let Some((_, first)) = self.in_flight.first_key_value() else {
                // Unless the time is over, the input has ended; else that is to be found out.
                let was_more = self.stage == Stage::Pulling && self.items.next().is_some();
                self.stage = Stage::Draining;
                let label = self.ready.label.clone().filter(|_| was_more)?;
                return Some(Err(self.time_out(label)));
            };
            let label = first.cell.label();
            match self.wait_for_chunk() {
                Some(chunk) => self.open(chunk),
                None => return Some(Err(self.time_out(label))),
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (low, high) = self.items.size_hint();
        let low = if self.limit.is_some() { 0 } else { low.saturating_add(self.outstanding) };
        // One more: the element that says that the time is over.
        (low, high.and_then(|high| high.checked_add(self.outstanding)?.checked_add(1)))
    }
}

impl<A, R, I> Map<'_, A, R, I> {
    fn cancel_rest(&mut self) {
        let chunks = mem::take(&mut self.in_flight).into_values();
        let jobs: Vec<_> =
            chunks.filter(|chunk| !chunk.cell.is_done()).map(|chunk| Promise(chunk.cell)).collect();
        if !jobs.is_empty() {
            self.backend.control().cancel_all(&jobs);
        }
    }
}

impl<A, R, I> Drop for Map<'_, A, R, I> {
    fn drop(&mut self) {
        self.cancel_rest();
    }
}

impl<A, R, I> fmt::Debug for Map<'_, A, R, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("stage", &self.stage)
            .field("outstanding", &self.outstanding)
            .finish_non_exhaustive()
    }
}

/// The outcomes of an opened chunk, decoded one by one as they are taken.
#[derive(Default)]
struct Outcomes {
    index: usize,
    count: usize,
    refused: VecDeque<(usize, JobError)>,
    label: Option<Label>,
    payload_limit: Option<u64>,
    parts: Parts,
}

enum Parts {
    /// Runs of outcomes, and how far the first of them is read.
    Many(VecDeque<Part>, usize),
    One(Option<Value>),
    /// The chunk as a whole ended so.
    Error(JobError),
}

impl Default for Parts {
    fn default() -> Parts {
        Parts::One(None)
    }
}

impl Outcomes {
    fn next<R: Data>(&mut self) -> Option<Result<R, Box<JobError>>> {
        if self.index == self.count {
            return None;
        }
        let index = self.index;
        self.index += 1;
        if self.refused.front().is_some_and(|(refused, _)| *refused == index) {
            return self.refused.pop_front().map(|(_, error)| Err(error.into()));
        }
        Some(match &mut self.parts {
            Parts::Error(error) => Err(error.clone().into()),
            Parts::One(value) => match value.take() {
                Some(Value::Bytes(bytes)) => decode_result(&bytes, None),
                Some(Value::Attached(attached)) => decode_result(&attached.0, Some(&attached.1)),
                Some(Value::Boxed(value)) => {
                    Ok(*value.downcast().expect("a job's value has the type of its map"))
                }
                Some(Value::Parts(_)) | None => Err(JobError::Closed.into()),
            },
            Parts::Many(parts, read) => match &self.label {
                Some(label) => next_part(parts, read, label, self.payload_limit),
                None => Err(JobError::Closed.into()),
            },
        })
    }
}

fn next_part<R: Data>(
    parts: &mut VecDeque<Part>,
    read: &mut usize,
    label: &Label,
    limit: Option<u64>,
) -> Result<R, Box<JobError>> {
    loop {
        match parts.front() {
            None => return Err(JobError::Closed.into()),
            Some(Part::Failed(_)) => {
                if let Some(Part::Failed(error)) = parts.pop_front() {
                    return Err(error.into());
                }
            }
            Some(Part::Recorded { elements, attachments }) => {
                match elements::split_first(&elements[*read..]) {
                    None => {
                        parts.pop_front();
                        *read = 0;
                    }
                    Some((kind, bytes, rest)) => {
                        *read = elements.len() - rest.len();
                        return match kind {
                            Kind::Value => decode_result(bytes, attachments.as_ref()),
                            fault => Err(worker::recorded_error(fault, bytes, label, limit).into()),
                        };
                    }
                }
            }
        }
    }
}

/// Many arguments, already encoded.
struct ChunkCall<A, R> {
    f: fn(A) -> R,
    arguments: Vec<u8>,
    attached: Collected,
    sound: u32,
}

impl<A: Data, R: Data> Call for ChunkCall<A, R> {
    fn callee(&self) -> Callee<'_> {
        Callee::Function {
            function: Function::new(worker::run_function::<A, R>, self.f),
            signature: type_name::<fn(A) -> R>(),
        }
    }

    fn encode(&mut self, _limit: Option<u64>, out: &mut Vec<u8>) -> Result<u32, JobError> {
        out.extend_from_slice(&self.arguments);
        session::adopt(mem::take(&mut self.attached));
        Ok(self.sound)
    }

    fn local(&mut self) -> Option<Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>> {
        None
    }
}
