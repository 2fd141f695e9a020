//! Random steps of everybody, in a random order.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Submit(i32, u32, u32),
    Start(Index),
    Ready(Index),
    Work(Index, bool),
    Harvest(Index),
    Retire(Index),
    Die(Index),
    Cancel(Index),
    Abort(Index),
    CancelUnstarted,
    Wait(u64),
    WatchCrew,
    LeaveCrew,
    Relieve,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        8 => (0i32..3, 0u32..3, prop_oneof![3 => Just(1u32), 1 => 2u32..5])
            .prop_map(|(priority, retries, count)| Step::Submit(priority, retries, count)),
        2 => index().prop_map(Step::Start),
        3 => index().prop_map(Step::Ready),
        20 => (index(), any::<bool>()).prop_map(|(slot, publish)| Step::Work(slot, publish)),
        6 => index().prop_map(Step::Harvest),
        1 => index().prop_map(Step::Retire),
        2 => index().prop_map(Step::Die),
        2 => index().prop_map(Step::Cancel),
        2 => index().prop_map(Step::Abort),
        1 => Just(Step::CancelUnstarted),
        4 => (0u64..20).prop_map(Step::Wait),
        2 => Just(Step::WatchCrew),
        1 => Just(Step::LeaveCrew),
        2 => Just(Step::Relieve),
    ]
}

proptest! {
    /// Goal: whatever workers and callers do, each job ends exactly once and as what happened to it, each
    /// element runs at most once and once more for each retry, and nothing is lost.
    #[test]
    fn each_job_ends_exactly_once(
        workers in 1usize..5,
        processors in 1usize..3,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut world = World::new(workers);
        world.dispatch.set_processors(processors);
        // Most of the time somebody is there to work.
        for slot in 0..workers {
            world.start(slot);
            world.ready(slot);
        }
        for step in steps {
            match step {
                Step::Submit(priority, retries, count) => world.submit(priority, retries, count),
                Step::Start(index) => world.start(index.index(workers)),
                Step::Ready(index) => world.ready(index.index(workers)),
                Step::Work(index, publish) => world.work(index.index(workers), publish),
                Step::Harvest(index) => world.harvest(index.index(workers)),
                Step::Retire(index) => world.retire(index.index(workers)),
                Step::Die(index) => world.die(index.index(workers)),
                Step::Cancel(index) => world.cancel(index),
                Step::Abort(index) => world.abort(index),
                Step::Wait(time) => world.wait(time),
                Step::WatchCrew => world.dispatch.watch_crew(),
                Step::LeaveCrew => {
                    world.dispatch.leave_crew();
                    prop_assert!(!world.dispatch.relies_on_crew());
                }
                Step::Relieve => {
                    for member in world.dispatch.members() {
                        world.dispatch.relieve(member);
                    }
                }
                Step::CancelUnstarted => {
                    let completions = world.dispatch.cancel_unstarted();
                    world.complete(completions);
                }
            }
            let stats = world.dispatch.stats();
            let ended = stats.finished + stats.failed + stats.cancelled;
            prop_assert_eq!(stats.submitted, ended + (stats.running + stats.queued) as u64);
        }
        world.finish();
        for (number, job) in world.jobs.iter().enumerate() {
            prop_assert_eq!(job.ends, 1, "job {}", number);
        }
    }
}
