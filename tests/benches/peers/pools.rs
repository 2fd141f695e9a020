//! Pools of two workers whose job is to return its argument.

use std::sync::mpsc;
use std::time::Instant;

use super::effort::WORKERS;

pub(crate) trait Pool {
    /// The most jobs that can wait for their results.
    const PENDING_MAX: u64 = u64::MAX;
    type Ticket;
    fn start() -> Self;
    fn submit(&self, n: u64) -> Self::Ticket;
    fn result(&self, ticket: Self::Ticket) -> u64;
    fn end(self);

    /// A pool that has run jobs on all its workers.
    fn warm() -> Self
    where
        Self: Sized,
    {
        let pool = Self::start();
        pool.run(100);
        pool
    }

    /// Submits jobs, and takes their results when all are submitted.
    fn run(&self, jobs: u64) {
        let tickets: Vec<Self::Ticket> = (0..jobs).map(|n| self.submit(n)).collect();
        for ticket in tickets {
            self.result(ticket);
        }
    }
}

pub(crate) fn same(n: u64) -> u64 {
    n
}

pub(crate) fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// procpool with so many workers.
pub(crate) fn procpool_of(workers: usize) -> procpool::ProcessPool {
    let pool = procpool::ProcessPool::builder().workers(workers).build();
    pool.expect("a pool can be made")
}

impl Pool for procpool::ProcessPool {
    type Ticket = procpool::JobFuture<u64>;

    fn start() -> Self {
        procpool_of(WORKERS)
    }

    fn submit(&self, n: u64) -> Self::Ticket {
        self.submit(same, n)
    }

    fn result(&self, ticket: Self::Ticket) -> u64 {
        ticket.result().expect("a no-op succeeds")
    }

    fn end(self) {}
}

impl Pool for procspawn::Pool {
    /// Each job that waits holds descriptors, of which a process commonly has 1024.
    const PENDING_MAX: u64 = 100;
    type Ticket = procspawn::JoinHandle<u64>;

    fn start() -> Self {
        procspawn::Pool::new(WORKERS).expect("a pool can be made")
    }

    fn submit(&self, n: u64) -> Self::Ticket {
        self.spawn(n, same)
    }

    fn result(&self, ticket: Self::Ticket) -> u64 {
        ticket.join().expect("a no-op succeeds")
    }

    fn end(self) {
        self.shutdown();
    }
}

/// The crate `threadpool` has no futures; a channel for each job is what comes nearest.
pub(crate) struct Threads(threadpool::ThreadPool);

impl Pool for Threads {
    type Ticket = mpsc::Receiver<u64>;

    fn start() -> Self {
        Threads(threadpool::ThreadPool::new(WORKERS))
    }

    fn submit(&self, n: u64) -> Self::Ticket {
        let (sender, receiver) = mpsc::channel();
        self.0.execute(move || {
            let _ = sender.send(same(n));
        });
        receiver
    }

    fn result(&self, ticket: Self::Ticket) -> u64 {
        ticket.recv().expect("a no-op succeeds")
    }

    fn end(self) {
        self.0.join();
    }
}

/// The crate `threadpool` as its own documentation uses it: all results come through one channel, so that
/// none can be asked for by itself.
pub(crate) struct SharedChannel {
    threads: threadpool::ThreadPool,
    sender: mpsc::Sender<u64>,
    receiver: mpsc::Receiver<u64>,
}

impl Pool for SharedChannel {
    type Ticket = ();

    fn start() -> Self {
        let (sender, receiver) = mpsc::channel();
        SharedChannel { threads: threadpool::ThreadPool::new(WORKERS), sender, receiver }
    }

    fn submit(&self, n: u64) {
        let sender = self.sender.clone();
        self.threads.execute(move || {
            let _ = sender.send(same(n));
        });
    }

    fn result(&self, (): ()) -> u64 {
        self.receiver.recv().expect("a no-op succeeds")
    }

    fn end(self) {
        self.threads.join();
    }
}
