//! What random steps do not come to, by example.

use super::*;

/// Goal: a job that was stopped has been stopped, although what it returned before its worker died of that is there.
#[test]
fn what_a_stopped_job_has_returned_is_not_recovered() {
    for count in [1, 3] {
        let mut world = World::new(1);
        world.start(0);
        world.ready(0);
        world.submit(0, 0, count);
        world.work(0, false);
        for _ in 1..count {
            world.work(0, false);
            world.work(0, false);
        }
        world.work(0, false);
        let cell = Arc::clone(&world.jobs[0].cell);
        assert!(world.dispatch.abort(&cell).is_empty(), "its worker is asked to stop it");
        // As `work` does it, but for the publication.
        let last = count - 1;
        let mut worker = world.workers[0].take().unwrap();
        assert!(worker.end.append(Kind::Value, &value_of(0, last as usize)));
        worker.end.set_phase(last, Phase::Drop);
        let completion = world.bury(0).pop().expect("it has ended");
        let error = match completion.ended.into_result() {
            Err(error) => *error,
            Ok(Value::Parts(mut parts)) if count == 3 && parts.len() == 2 => match parts.pop() {
                Some(Part::Failed(error)) => error,
                _ => panic!("a value has been recovered"),
            },
            Ok(_) => panic!("a value has been recovered"),
        };
        assert!(matches!(error, JobError::Cancelled { started: true }), "{error}");
    }
}

/// A world in which a job has killed its worker and waits to be tried again, ten units from its death.
fn waiting_for_a_retry() -> World {
    let mut world = World::new(1);
    world.start(0);
    world.ready(0);
    world.submit(0, 2, 1);
    world.work(0, true);
    world.work(0, true);
    world.die(0);
    world.start(0);
    world.ready(0);
    world
}

/// Goal: a job that killed its worker waits, as one of those that are queued, and runs again when its wait is
/// over, not before.
#[test]
fn a_retry_waits_in_virtual_time() {
    let mut world = waiting_for_a_retry();
    let due = world.dispatch.retries.next_due().unwrap();
    assert!((5..=10).contains(&due), "half of it at least: {due}");
    let stats = world.dispatch.stats();
    assert_eq!((stats.queued, stats.running, stats.idle), (1, 0, 1));
    assert_eq!(world.dispatch.unstarted(), 1);
    assert_eq!(world.dispatch.queued(), 0, "no worker is wanted for it now");
    assert!(!world.dispatch.is_drained());
    world.wait(due - 1);
    assert_eq!(world.dispatch.stats().idle, 1);
    world.wait(1);
    assert_eq!(world.dispatch.stats().idle, 0, "sent");
    world.finish();
    assert_eq!(world.dispatch.stats().finished, 1);
}

/// Goal: a job that waits to be tried again is cancelled like any that waits, by name and with all others.
#[test]
fn a_retry_that_waits_can_be_cancelled() {
    for all in [false, true] {
        let mut world = waiting_for_a_retry();
        let cell = Arc::clone(&world.jobs[0].cell);
        let completions = match all {
            true => world.dispatch.cancel_unstarted(),
            false => world.dispatch.abort(&cell),
        };
        assert_eq!(completions.len(), 1);
        assert!(world.dispatch.is_drained());
        assert!(world.dispatch.was_cancelled(&cell));
        assert_eq!((world.dispatch.stats().cancelled, world.dispatch.stats().queued), (1, 0));
        assert_eq!(world.dispatch.retries.next_due(), None);
    }
}

/// Goal: a pool that breaks while a job waits to be tried again ends that job too, with the cause; and one
/// that was told to abort does not make a job wait that comes back.
#[test]
fn a_retry_ends_with_its_pool() {
    let mut world = waiting_for_a_retry();
    let completions = world.dispatch.break_down(Error::start("no more"));
    let [completion] = &completions[..] else { panic!("{} ended", completions.len()) };
    assert!(matches!(completion.ended.error(), Some(JobError::Broken(_))));
    let mut world = waiting_for_a_retry();
    world.wait(10);
    world.work(0, true);
    world.dispatch.discard = true;
    world.die(0);
    assert_eq!((world.jobs[0].ends, world.dispatch.stats().cancelled), (1, 1));
}

/// A world of so many workers, two of which have run short jobs, where two processors are.
fn with_a_crew(workers: usize) -> World {
    let mut world = World::new(workers);
    world.dispatch.set_processors(2);
    for slot in 0..workers {
        world.start(slot);
        world.ready(slot);
    }
    for _ in 0..2 {
        world.submit(0, 0, 1);
    }
    for slot in 0..2 {
        (0..3).for_each(|_| world.work(slot, true));
        world.harvest(slot);
    }
    world
}

fn in_flight(world: &World) -> Vec<usize> {
    let channels = (0..world.workers.len()).filter_map(|slot| world.dispatch.channel(slot));
    channels.map(PoolChannel::in_flight).collect()
}

/// Goal: while as many workers as there are processors have short jobs, further ones wait there, and nobody else is
/// woken; the supervisor is called to look after them.
#[test]
fn short_jobs_wait_for_workers_that_are_awake() {
    let mut world = with_a_crew(4);
    for _ in 0..2 {
        world.submit(0, 0, 1);
    }
    assert!(!world.dispatch.crew_calls(), "nobody waits yet");
    for _ in 0..6 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world), [4, 4, 0, 0]);
    assert!(world.dispatch.crew_calls() && world.dispatch.relies_on_crew());
    world.dispatch.watch_crew();
    assert!(!world.dispatch.crew_calls());
    // Who has done its share gets nothing that another is about to do.
    for _ in 0..12 {
        world.work(0, true);
    }
    world.harvest(0);
    assert_eq!(in_flight(&world), [0, 4, 0, 0]);
    world.dispatch.leave_crew();
    assert!(in_flight(&world).iter().all(|jobs| *jobs == 1), "{:?}", in_flight(&world));
    world.finish();
}

/// Goal: jobs of another priority do not wait behind others while a worker is idle.
#[test]
fn a_crew_has_jobs_of_one_priority() {
    let mut world = with_a_crew(4);
    for _ in 0..3 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world).iter().filter(|jobs| **jobs > 0).count(), 2);
    world.submit(-1, 0, 1);
    assert_eq!(in_flight(&world)[2], 1);
    world.finish();
}

/// Goal: what waits behind a job that turns out to be long is taken by others, and none joins it there.
#[test]
fn who_waits_behind_a_long_job_is_relieved() {
    let mut world = with_a_crew(4);
    world.dispatch.watch_crew();
    for _ in 0..8 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world), [4, 4, 0, 0]);
    world.work(0, true);
    let members = world.dispatch.members();
    let [first, second] = &members[..] else { panic!("{members:?}") };
    assert_eq!((first.slot, second.slot), (0, 1));
    assert!(first.began_ns.is_some() && second.began_ns.is_none());
    // Word that is out of date relieves nobody.
    world.dispatch.relieve(Member { jobs_done: first.jobs_done + 1, ..*first });
    assert_eq!(in_flight(&world), [4, 4, 0, 0]);
    world.dispatch.relieve(*first);
    assert_eq!(in_flight(&world)[0], 1, "the long one itself");
    assert_eq!(in_flight(&world).iter().sum::<usize>(), 8 - world.dispatch.queued());
    for _ in 0..4 {
        world.submit(0, 0, 1);
    }
    assert_eq!(in_flight(&world)[0], 1);
    // It may have been a long one by exception.
    world.work(0, true);
    world.work(0, true);
    world.harvest(0);
    assert!(world.dispatch.brisk.contains(0) || in_flight(&world)[0] == 0);
    world.finish();
}
