//! Each transition by example.

use super::*;
use crate::supervisor::machine::starts::BACKOFF_FIRST_NS;

/// Goal: as many workers are started as jobs wait, and no more than there are slots.
#[test]
fn demand_starts_workers() {
    let mut world = world(3);
    world.event(Event::Demand(2));
    assert_eq!(world.take_done(), [Action::Spawn(0), Action::Spawn(1)]);
    world.event(Event::Demand(2));
    assert_eq!(world.take_done(), [], "two are on their way");
    world.event(Event::Demand(100));
    assert_eq!(world.take_done(), [Action::Spawn(2)]);
}

/// Goal: a worker that serves and dies is replaced, without blame, at once.
#[test]
fn a_dead_worker_is_replaced() {
    let mut world = serving(2);
    world.exit(1);
    assert_eq!(world.take_done(), [Action::Spawn(1)]);
}

/// Goal: no slot gets a second process before the first was reaped.
#[test]
fn a_killed_worker_is_replaced_only_once_it_is_reaped() {
    let mut world = serving(1);
    world.event(Event::Faulty(0));
    world.event(Event::Demand(1));
    assert_eq!(world.take_done(), [Action::Kill(0)]);
    world.exit(0);
    assert_eq!(world.take_done(), [Action::Spawn(0)]);
}

/// Goal: a worker that is not ready in time is killed, and that counts as a death at the start.
#[test]
fn a_start_that_takes_too_long_is_killed() {
    let mut world = world(1);
    world.event(Event::Demand(1));
    assert!(world.sleep());
    assert_eq!(world.take_done(), [Action::Spawn(0), Action::Kill(0)]);
    world.exit(0);
    assert_eq!(world.take_done(), [], "back-off");
    assert!(world.sleep());
    assert_eq!(world.take_done(), [Action::Spawn(0)]);
}

/// Goal: the third death at the start breaks the pool, and the first cause is told, not the last.
#[test]
fn deaths_at_the_start_break_the_pool_with_the_first_cause() {
    let mut world = world(1);
    world.event(Event::Demand(1));
    world.event(Event::StartFailed(0, "the first cause".into()));
    world.exit(0);
    for _ in 0..2 {
        world.sleep();
        world.exit(0);
    }
    assert_eq!(world.broken.as_deref(), Some("the first cause"));
    assert_eq!(world.spawns, 3);
    let waits = [SECOND + BACKOFF_FIRST_NS, SECOND + 3 * BACKOFF_FIRST_NS];
    assert_eq!(world.told, [Some(waits[0]), Some(waits[1]), None], "each is told, with its pause");
    world.event(Event::Demand(5));
    assert_eq!(world.spawns, 3, "a broken pool starts nothing");
}

/// Goal: a pool with a live worker goes on, however often another one fails to start.
#[test]
fn a_pool_with_a_live_worker_does_not_break() {
    let mut world = world(2);
    world.event(Event::Demand(1));
    world.ready(0);
    world.refusals = 10;
    world.event(Event::Demand(1));
    while world.refusals > 0 {
        assert!(world.sleep());
    }
    assert_eq!(world.broken, None);
    world.sleep();
    world.ready(1);
    assert_eq!(world.machine.slot(1), Slot::Serving);
}

/// Goal: a worker that became ready clears the count of deaths at the start.
#[test]
fn a_successful_start_pardons_the_failures_before_it() {
    let mut world = world(1);
    world.event(Event::Demand(1));
    for _ in 0..10 {
        for _ in 0..2 {
            world.exit(0);
            world.sleep();
        }
        world.ready(0);
        world.exit(0);
    }
    assert_eq!(world.broken, None);
}

/// Goal: flag, half of the grace, SIGTERM, the other half, SIGKILL.
#[test]
fn a_cooperative_job_is_asked_then_terminated_then_killed() {
    let mut world = serving(1);
    let began = world.now;
    world.event(Event::StopJob(0, Manner::Cooperative));
    assert_eq!(world.take_done(), []);
    world.sleep();
    assert_eq!(world.take_done(), [Action::Terminate(0)]);
    assert_eq!(world.now - began, SECOND);
    world.sleep();
    assert_eq!(world.take_done(), [Action::Kill(0)]);
    assert_eq!(world.now - began, 2 * SECOND);
}

/// Goal: a job that does not look at the flag gets SIGTERM at once and the whole grace after it.
#[test]
fn a_plain_job_is_terminated_at_once() {
    let mut world = serving(1);
    world.event(Event::StopJob(0, Manner::Plain));
    assert_eq!(world.take_done(), [Action::Terminate(0)]);
    world.sleep();
    assert_eq!(world.take_done(), [Action::Kill(0)]);
}

/// Goal: a worker whose job returned when asked serves on; one that got SIGTERM is not trusted.
#[test]
fn only_a_worker_that_was_merely_asked_serves_on() {
    let mut world = serving(1);
    world.event(Event::StopJob(0, Manner::Cooperative));
    world.event(Event::Returned(0));
    assert_eq!(world.take_done(), [Action::Resume(0)]);
    world.event(Event::StopJob(0, Manner::Plain));
    world.event(Event::Returned(0));
    assert_eq!(world.take_done(), [Action::Terminate(0), Action::Kill(0)]);
}

/// Goal: a worker that was told to leave and does not is killed after the grace.
#[test]
fn a_worker_that_does_not_leave_is_killed() {
    let mut world = serving(1);
    world.event(Event::Retire(0));
    assert_eq!(world.take_done(), [Action::Bye(0)]);
    world.event(Event::Retire(0));
    world.sleep();
    assert_eq!(world.take_done(), [Action::Kill(0)]);
}

/// Goal: without jobs, those that serve are told to leave and those that start are killed; then it ends.
#[test]
fn a_drained_pool_ends_when_the_last_process_has() {
    let mut world = world(3);
    world.event(Event::Demand(2));
    world.ready(0);
    world.take_done();
    world.event(Event::Drained);
    assert_eq!(world.take_done(), [Action::Bye(0), Action::Kill(1)]);
    world.exit(0);
    assert!(!world.finished);
    world.exit(1);
    assert!(world.finished);
}

/// Goal: a pool that never had a worker ends at once.
#[test]
fn an_unused_pool_ends_at_once() {
    let mut world = world(3);
    world.event(Event::Drained);
    assert_eq!(world.take_done(), [Action::Finished]);
}

/// Goal: an abort stops the starts under way and begins no other.
#[test]
fn an_abort_starts_no_worker() {
    let mut world = patient_world(3);
    world.refusals = 3;
    world.event(Event::Demand(3));
    world.sleep();
    world.take_done();
    world.event(Event::Abort);
    assert_eq!(world.take_done(), [Action::Kill(0)]);
    world.exit(0);
    while world.sleep() {}
    assert_eq!(world.spawns, 4, "three that were refused, and one on trial");
}

/// Goal: while one worker shows whether starting goes better now, the loop sleeps.
/// Method: after a failed start only one worker is started at a time, though more are wanted and slots
/// are empty.
#[test]
fn a_trial_start_leaves_nothing_due() {
    let mut world = patient_world(3);
    world.event(Event::Demand(3));
    for slot in 0..3 {
        world.exit(slot);
    }
    world.sleep();
    assert_eq!(world.take_done().len(), 4, "one on trial");
    assert_eq!(world.machine.starting(), 1);
}

/// Goal: starts that take longer than the window break the pool as well: each job ends.
/// Method: a worker that hangs until `start_timeout`, which is as long as the window.
#[test]
fn a_start_that_always_hangs_breaks_the_pool() {
    let mut world = world(1);
    world.event(Event::Demand(1));
    for _ in 0..3 {
        // The time-out, then, apart from the last time, the end of the back-off.
        world.sleep();
        world.exit(0);
        world.sleep();
    }
    assert!(world.broken.is_some(), "{world:?}");
}

/// Goal: a warm-up is not forgotten because jobs came and went meanwhile.
#[test]
fn a_warm_up_survives_changes_of_demand() {
    let mut world = world(2);
    world.event(Event::WarmUp);
    world.ready(0);
    world.event(Event::Demand(1));
    world.event(Event::Demand(0));
    world.exit(1);
    world.sleep();
    world.ready(1);
    assert_eq!(world.machine.slot(1), Slot::Serving, "{world:?}");
}

/// Goal: a pool that breaks because the system refuses to start processes can be shut down.
/// Method: four starts are refused in one go; the third refusal breaks the pool, the fourth is told after.
#[test]
fn refusals_that_are_told_after_the_break_leave_no_slot_behind() {
    let mut world = world(4);
    world.refusals = 4;
    world.event(Event::Demand(4));
    assert!(world.broken.is_some());
    world.event(Event::Drained);
    assert!(world.finished, "{world:?}");
}

/// Goal: a budget larger than the number of starts that the back-off allows within its window is a budget
/// all the same.
#[test]
fn the_back_off_does_not_outwait_the_window() {
    let mut world = patient_world(1);
    world.refusals = usize::MAX;
    world.event(Event::Demand(1));
    while world.broken.is_none() {
        assert!(world.spawns <= 100, "{world:?}");
        assert!(world.sleep());
    }
    assert_eq!(world.spawns, 100);
}

/// Goal: a system that stays short of something breaks a pool without workers, but only after
/// `start_timeout`, however many refusals that are.
#[test]
fn a_shortage_is_waited_out_for_as_long_as_a_start_may_take() {
    let mut world = world(2);
    let began = world.now;
    (world.refusals, world.trouble) = (usize::MAX, Trouble::Shortage);
    world.event(Event::Demand(2));
    while world.broken.is_none() {
        assert!(world.sleep());
    }
    assert!(world.spawns > 3, "more than the restart limit: {world:?}");
    assert!((10 * SECOND..12 * SECOND).contains(&(world.now - began)));
}

/// Goal: a shortage that nobody felt for a while is over.
#[test]
fn two_shortages_with_a_rest_between_them_are_two() {
    let mut world = world(1);
    (world.refusals, world.trouble) = (1, Trouble::Shortage);
    world.event(Event::Demand(1));
    world.event(Event::Demand(0));
    world.now += 3600 * SECOND;
    world.refusals = 1;
    world.event(Event::Demand(1));
    assert_eq!(world.broken, None);
    world.sleep();
    world.ready(0);
    assert_eq!(world.machine.slot(0), Slot::Serving);
}

/// Goal: a warm-up is over once every slot serves, also if it was asked for again in that moment.
#[test]
fn a_warm_up_that_is_asked_for_late_ends() {
    let mut world = serving(2);
    world.event(Event::WarmUp);
    world.event(Event::Retire(0));
    world.exit(0);
    assert_eq!(world.take_done(), [Action::Bye(0)], "nobody wants another");
}

/// Goal: workers that die as soon as they are ready, without any job, are replaced ever more slowly, whatever other
/// starts succeed meanwhile; the first one at once, and again at once after a while of peace.
#[test]
fn workers_that_die_unused_do_not_make_a_storm() {
    let mut world = serving(2);
    let began = world.now;
    let mut waits = Vec::new();
    for round in 0..8 {
        let before = world.now;
        world.event(Event::Unused(round % 2));
        world.exit(round % 2);
        while matches!(world.machine.slot(round % 2), Slot::Empty) {
            assert!(world.sleep());
        }
        waits.push((world.now - before) / BACKOFF_FIRST_NS);
        world.ready(round % 2);
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 10, 10, 10]);
    assert_eq!(world.broken, None);
    world.take_done();
    world.now = began + 100 * SECOND;
    world.event(Event::Unused(0));
    world.exit(0);
    assert_eq!(world.take_done(), [Action::Spawn(0)]);
}

/// Goal: workers that die unasked while starts have to wait are all replaced, also if the word that no job waits
/// comes at any time before the start: while it rests, and after the rest but before the tick that ends it.
#[test]
fn replacements_are_not_forgotten_because_no_job_waits() {
    for late in [0, BACKOFF_FIRST_NS, SECOND] {
        let mut world = serving(3);
        world.event(Event::Unused(0));
        world.exit(0);
        world.event(Event::Unused(1));
        world.exit(1);
        world.event(Event::Unused(2));
        world.exit(2);
        assert_eq!(world.take_done(), [Action::Spawn(0)], "the others have to wait");
        let rest = BACKOFF_FIRST_NS * 2;
        world.now += rest - 1;
        world.event(Event::Demand(1));
        // The word of an event that was on its way is told before the tick.
        world.now += 1 + late;
        world.event(Event::Demand(0));
        world.event(Event::Tick);
        assert_eq!(world.take_done(), [Action::Spawn(1), Action::Spawn(2)]);
        // They are owed once.
        (0..3).for_each(|slot| world.ready(slot));
        world.event(Event::Retire(0));
        world.exit(0);
        assert_eq!(world.take_done(), [Action::Bye(0)], "nobody wants another");
    }
}
