//! The public API is a contract: programs elsewhere are written against these names and signatures. What
//! stands here must go on compiling.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

use procpool::{
    AsCompleted, Bytes, CodecError, Containment, Context, Data, Death, Done, EndedBy, Error,
    Executor, InitResult, Isolation, Job, JobError, JobFuture, JobId, Limit, Map, Memory, Oom,
    Outcome, Output, Panic, Phase, ProcessPool, ProcessPoolBuilder, Progress, Rejected, Rejection,
    Report, Shared, Shutdown, Side, StartMethod, Stats, Status, Task, ThreadPool,
    ThreadPoolBuilder, Timeout, Tree, Until, Waited, WorkerInfo, WorkerState, as_completed,
    context, tasks, wait,
};

use crate::support::test;

fn double(n: u64) -> u64 {
    n * 2
}

fn prepare((_directory, _level): (String, u8)) -> Result<(), String> {
    Ok(())
}

fn nothing((): ()) {}

/// One of the signatures: a job that can fail returns a `Result` as its value.
fn half(n: u64) -> Result<u64, String> {
    if n.is_multiple_of(2) { Ok(n / 2) } else { Err(format!("{n} is odd")) }
}

#[procpool::task]
fn thumbnail(spec: (String, u32)) -> Result<Vec<u8>, String> {
    Ok(spec.0.into_bytes())
}

fn is<T: Send + Sync + Debug>() {}
fn is_plain<T: Clone + Debug>() {}
fn is_error<T: Clone + Send + Sync + StdError + 'static>() {}
fn is_data<T: Data>() {}
fn is_init_result<T: InitResult>() {}
fn is_copy<T: Copy + Eq + Debug>() {}
fn is_id<T: Copy + Eq + Hash + Ord + std::fmt::Display>() {}
fn is_future<F: Future<Output = Result<u64, JobError>> + Send + Unpin>() {}

#[test]
fn types_have_the_traits_that_callers_rely_on() {
    is::<JobFuture<u64>>();
    is_future::<JobFuture<u64>>();
    is::<ProcessPool>();
    is::<ThreadPool>();
    is_error::<JobError>();
    is_error::<Error>();
    is_id::<JobId>();
    is::<Bytes>();
    is::<Shared<Vec<u64>>>();
    is::<Outcome<u64>>();
    is::<Waited<u64>>();
    is::<ThreadPoolBuilder>();
    is_data::<(u8, Vec<String>, Option<f64>)>();
    is_data::<(Shared<String>, Bytes)>();
    is_init_result::<()>();
    is_init_result::<Result<u8, String>>();
    is_copy::<StartMethod>();
    is_copy::<Isolation>();
    is_copy::<Output>();
    is_copy::<Shutdown>();
    is_copy::<Until>();
    is_copy::<Oom>();
    is_copy::<Side>();
    is_copy::<Phase>();
    is_copy::<Status>();
    is_copy::<Limit>();
    is_copy::<EndedBy>();
    is_copy::<WorkerState>();
    is_plain::<Report>();
    is_plain::<Done>();
    is_plain::<Progress>();
    is_plain::<Stats>();
    is_plain::<WorkerInfo>();
    is_plain::<Panic>();
    is_plain::<Death>();
    is_plain::<Timeout>();
    is_plain::<CodecError>();
    is_plain::<Rejected<u8>>();
    is_plain::<Rejection>();
    is_plain::<Context>();
    is_plain::<Outcome<u64>>();
    is_plain::<Task>();
    is_plain::<Containment>();
    is_plain::<Tree>();
    is_plain::<Memory>();
    is_plain::<Bytes>();
    is_plain::<Shared<u8>>();
}

/// Who matches on an error can name each variant and field, and those enums that are said to be
/// complete without a rest.
fn kind(error: &JobError) -> &'static str {
    match error {
        JobError::Panicked(Panic { message, location, backtrace, aborted, .. }) => {
            let _: (&String, &Option<String>, &Option<String>, &bool) =
                (message, location, backtrace, aborted);
            "panicked"
        }
        JobError::Died(Death { status, phase, oom, pid, attempt, stderr_tail, detail, .. }) => {
            let _: (&u32, &u32, &String, &Option<String>) = (pid, attempt, stderr_tail, detail);
            match phase {
                Phase::Start | Phase::Idle | Phase::Decode => {}
                Phase::Run | Phase::Encode | Phase::Send => {}
            }
            match oom {
                Oom::Yes | Oom::No | Oom::Unknown => {}
            }
            match *status {
                Status::Exit(0i32) => "exited",
                Status::Signal(_, core) if core => "dumped",
                Status::Unknown => "gone",
                _ => "died",
            }
        }
        JobError::TimedOut(Timeout { limit, after, ended_by, .. }) => {
            let _: &Duration = after;
            match (limit, ended_by) {
                (Limit::Job, EndedBy::NotStarted | EndedBy::Itself) => "asked",
                (Limit::Cpu | Limit::Map, EndedBy::Term | EndedBy::Kill) => "stopped",
                _ => "timed out",
            }
        }
        JobError::Cancelled { started: true } => "stopped",
        JobError::Cancelled { started: false } => "cancelled",
        JobError::Quarantined { attempts: 0u32, .. } => "never",
        JobError::Quarantined { last, .. } => kind(last),
        JobError::Encode(CodecError { side, type_name, message, .. })
        | JobError::Decode(CodecError { side, type_name, message, .. }) => {
            let _: (&String, &String) = (type_name, message);
            match side {
                Side::Caller | Side::Worker => "codec",
            }
        }
        JobError::TooLarge { len: 0u64, limit: 0u64 } => "nothing",
        JobError::Unregistered(name) if name.is_empty() => "nameless",
        JobError::Broken(error) if error.is_start() => "broken",
        JobError::Closed => "closed",
        _ => "otherwise",
    }
}

fn sum_of((shared, bytes): (Shared<Vec<u64>>, Bytes)) -> u64 {
    shared.iter().sum::<u64>() + bytes.len() as u64
}

fn backwards(bytes: Bytes) -> Bytes {
    bytes.iter().rev().copied().collect::<Vec<u8>>().into()
}

fn load(_: u64) {}

fn die((): ()) {
    std::process::abort()
}

#[test]
fn shared_data_fork_servers_and_containment_are_as_in_the_contract() {
    test(|| {
        let pool = ProcessPool::builder()
            .workers(1)
            .start_method(StartMethod::ForkServer)
            .preload(load, 1)
            .isolation(Isolation::FreshProcess)
            .max_rss_per_worker(1u64 << 30)
            .idle_timeout(Duration::from_secs(60))
            .cpu_timeout(Duration::from_secs(60))
            .memory_limit(1u64 << 30)
            .pin_cpus(false)
            .build()
            .unwrap();
        let shared: Shared<Vec<u64>> = pool.share(vec![1, 2, 3]);
        let bytes = Bytes::from(&[7u8, 8][..]);
        assert_eq!(pool.submit(sum_of, (shared.clone(), bytes)).result().unwrap(), 8);
        let values: &Vec<u64> = &shared;
        assert_eq!(*values, [1, 2, 3]);
        let back: Bytes = pool.submit(backwards, Bytes::from(vec![1u8, 2])).result().unwrap();
        assert!(back == Bytes::from(vec![2u8, 1]) && back[..] == [2, 1]);
        let containment: Containment = pool.containment();
        assert!(matches!(containment.tree, Tree::Cgroup | Tree::Subreaper | Tree::ProcessGroup));
        assert!(matches!(
            containment.memory,
            Memory::Cgroup | Memory::AddressSpace | Memory::Watched
        ));
        let error = pool.submit(die, ()).result().unwrap_err();
        assert_eq!(kind(&error), "died", "{error}");
        assert_eq!(kind(&JobError::Closed), "closed");
    });
}

#[test]
fn every_setting_takes_what_the_contract_says() {
    test(|| {
        let second = Duration::from_secs(1);
        let builder: ProcessPoolBuilder = ProcessPool::builder()
            .workers(1usize)
            .initializer(prepare, ("cache".to_owned(), 3))
            .max_jobs_per_worker(1000u64)
            .job_timeout(20 * second)
            .grace(second)
            .start_timeout(10 * second)
            .retries(2u32)
            .restart_limit(3u32, 10 * second)
            .queue_limit(100usize)
            .payload_limit(1u64 << 30)
            .env("KEY", "value")
            .env(std::ffi::OsString::from("OTHER"), String::from("value"))
            .env_clear()
            .current_dir("/")
            .stack_size(16usize << 20)
            .stderr(Output::Capture);
        let pool: ProcessPool = builder.build().unwrap();
        assert_eq!(pool.submit(half, 4).result().unwrap(), Ok(2));
        assert_eq!(pool.submit(half, 5).result().unwrap(), Err("5 is odd".to_owned()));
        pool.shutdown(Shutdown::Drain);
    });
}

/// A function over any executor, as user code has them.
fn sum_of_doubles(executor: &impl Executor) -> u64 {
    let one: JobFuture<u64> = executor.submit(double, 1);
    let job: Job<'_, u64, u64> = executor.job(double, 2);
    let map: Map<'_, u64, u64, std::ops::Range<u64>> = executor.map(double, 3..5);
    let rest: u64 = map.map(Result::unwrap).sum();
    one.result().unwrap() + job.submit().result().unwrap() + rest
}

#[test]
fn pools_and_futures_have_the_methods_of_the_contract() {
    test(|| {
        let pool = ProcessPool::builder().workers(2).build().unwrap();
        let threads: ThreadPool = ThreadPool::builder().workers(2).name("io").build().unwrap();
        assert_eq!(sum_of_doubles(&pool), 20);
        assert_eq!(sum_of_doubles(&threads), 20);

        let captured = 20u64;
        assert_eq!(threads.spawn(move || captured + 1).result().unwrap(), 21);

        let accepted: Result<JobFuture<u64>, Rejected<u64>> = pool.try_submit(double, 1);
        let outcome: Outcome<u64> = accepted.unwrap().outcome();
        let report: Report = outcome.report;
        assert_eq!((outcome.result.unwrap(), report.attempts), (2, 1));
        let (_, _, _, _): (Duration, Duration, Option<Duration>, Option<u64>) =
            (report.queued, report.ran, report.cpu, report.peak_rss);
        let (_, _): (Option<u32>, Option<usize>) = (report.pid, report.worker);

        let future: JobFuture<u64> = pool
            .job(double, 4)
            .timeout(Duration::from_secs(60))
            .retries(1)
            .priority(5)
            .name("named")
            .submit();
        let _: JobId = future.id();
        future.wait();
        assert!(future.wait_timeout(Duration::ZERO) && future.is_done());
        assert!(!future.is_running() && !future.is_cancelled() && !future.cancel());
        future.abort();
        future.on_done(|done: Done| assert!(done.error.is_none()));
        let _: Option<Progress> = future.progress();
        assert_eq!(future.result().unwrap(), 8);

        let futures: Vec<_> = (0..4).map(|n| pool.submit(double, n)).collect();
        let mut completed: AsCompleted<u64> =
            as_completed(futures).timeout(Duration::from_secs(60));
        assert!(completed.next().unwrap().result().is_ok());
        let pending: Vec<JobFuture<u64>> = completed.into_pending();
        let waited: Waited<u64> = wait(pending, Until::AllDone, Some(Duration::from_secs(60)));
        assert_eq!((waited.done.len(), waited.pending.len()), (3, 0));

        let map = pool
            .map(double, vec![1, 2, 3])
            .chunk_size(2)
            .buffer(10)
            .timeout(Duration::from_secs(60))
            .unordered();
        assert_eq!(map.count(), 3);

        pool.warm_up().unwrap();
        let stats: Stats = pool.stats();
        assert_eq!((stats.workers, stats.running, stats.queued), (2, 0, 0));
        assert_eq!(stats.submitted, stats.finished + stats.failed + stats.cancelled);
        let _: (usize, u64, u64) = (stats.idle, stats.spawned, stats.deaths);
        let workers: Vec<WorkerInfo> = pool.workers();
        let _: (usize, u32, WorkerState, Option<JobId>, u64) = (
            workers[0].index,
            workers[0].pid,
            workers[0].state,
            workers[0].job,
            workers[0].jobs_done,
        );
        assert_eq!(workers.len(), 2);

        assert!(context().is_none());
        let inside = |(): ()| {
            let context: Context = procpool::context().unwrap();
            context.progress(0.5, "half");
            (context.attempt(), context.worker_index(), context.is_cancelled())
        };
        assert_eq!(pool.submit(inside, ()).result().unwrap().0, 1);
        pool.submit(nothing, ()).result().unwrap();

        pool.shutdown(Shutdown::Abort);
        threads.shutdown(Shutdown::CancelPending);
        assert!(matches!(pool.submit(double, 1).result(), Err(JobError::Closed)));
        assert!(matches!(
            pool.try_submit(double, 7),
            Err(Rejected { arg: 7, reason: Rejection::Closed, .. })
        ));
    });
}

#[test]
fn tasks_are_listed_with_name_signature_and_fingerprint() {
    assert_eq!(thumbnail(("x".to_owned(), 1)), Ok(b"x".to_vec()));
    let task: &Task = tasks().iter().find(|task| task.name == "it::contract::thumbnail").unwrap();
    assert_eq!(task.signature, "fn((String, u32)) -> Result<Vec<u8>, String>");
    assert_ne!(task.fingerprint, 0);
    assert_eq!(task.clone().name, task.name);
}

#[test]
fn settings_that_make_no_sense_are_errors_that_name_them() {
    let faulty = [
        ("workers", ProcessPool::builder().workers(0)),
        ("max_jobs_per_worker", ProcessPool::builder().max_jobs_per_worker(0)),
        ("queue_limit", ProcessPool::builder().queue_limit(0)),
        ("restart_limit", ProcessPool::builder().restart_limit(0, Duration::from_secs(1))),
        ("env", ProcessPool::builder().env("A=B", "c")),
        ("stack_size", ProcessPool::builder().stack_size(0)),
        ("preload", ProcessPool::builder().preload(load, 1)),
    ];
    for (name, builder) in faulty {
        let error = builder.build().unwrap_err();
        assert!(error.is_setting() && !error.is_closed() && !error.is_init_missing(), "{error:?}");
        assert!(error.to_string().starts_with(name), "{error}");
    }
    assert!(ThreadPool::builder().workers(0).build().unwrap_err().is_setting());
}
