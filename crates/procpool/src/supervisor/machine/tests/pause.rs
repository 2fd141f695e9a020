//! Pauses.

use super::*;

const SLOT_0: Place = Place::Slot(0);
const SLOT_1: Place = Place::Slot(1);

/// Goal: who starts or serves is stopped and goes on; asking twice changes nothing, and is answered.
#[test]
fn a_pause_stops_who_starts_or_serves() {
    let mut world = world(3);
    world.event(Event::Demand(2));
    world.ready(0);
    world.take_done();
    world.event(Event::Pause);
    let stop = [Action::Suspend(SLOT_0), Action::Suspend(SLOT_1), Action::Paused];
    assert_eq!(world.take_done(), stop);
    world.event(Event::Pause);
    assert_eq!(world.take_done(), [Action::Paused]);
    world.event(Event::Unpause);
    let go_on = [Action::Continue(SLOT_0), Action::Continue(SLOT_1), Action::Unpaused];
    assert_eq!(world.take_done(), go_on);
    world.event(Event::Unpause);
    assert_eq!(world.take_done(), [Action::Unpaused]);
}

/// Goal: in a pause nothing is started, for jobs or for the dead; afterwards it is.
#[test]
fn nothing_is_started_in_a_pause() {
    let mut world = serving(2);
    world.event(Event::Pause);
    world.take_done();
    world.exit(0);
    world.event(Event::Demand(5));
    assert_eq!((world.take_done(), world.machine.deadline()), (vec![], None));
    world.event(Event::Unpause);
    let done = [Action::Continue(SLOT_1), Action::Unpaused, Action::Spawn(0)];
    assert_eq!(world.take_done(), done);
}

/// Goal: the time that a start may take stands still.
#[test]
fn a_start_has_its_time_after_the_pause() {
    let mut world = world(1);
    world.event(Event::Demand(1));
    let due = world.machine.deadline().unwrap();
    world.now += 4 * SECOND;
    world.event(Event::Pause);
    assert_eq!(world.machine.deadline(), None);
    world.now += 3600 * SECOND;
    world.event(Event::Tick);
    assert!(!world.take_done().contains(&Action::Kill(0)));
    world.event(Event::Unpause);
    assert_eq!(world.machine.deadline(), Some(due + 3600 * SECOND));
    world.sleep();
    assert!(world.take_done().contains(&Action::Kill(0)));
}

/// Goal: a job that is stopped in a pause has its worker go on for that, with the usual time; one that heeds the flag is
/// stopped again once it has returned.
#[test]
fn a_job_can_be_stopped_in_a_pause() {
    let mut world = serving(2);
    world.event(Event::Pause);
    world.take_done();
    world.event(Event::StopJob(0, Manner::Plain));
    world.event(Event::StopJob(1, Manner::Cooperative));
    let stop = [Action::Continue(SLOT_0), Action::Terminate(0), Action::Continue(SLOT_1)];
    assert_eq!(world.take_done(), stop);
    world.event(Event::Returned(1));
    assert_eq!(world.take_done(), [Action::Resume(1), Action::Suspend(SLOT_1)]);
    world.sleep();
    assert_eq!(world.take_done(), [Action::Kill(0)]);
}

/// Goal: a pool without jobs ends in a pause.
#[test]
fn a_pool_that_is_drained_ends_its_pause() {
    let mut world = serving(1);
    world.event(Event::Pause);
    world.take_done();
    world.event(Event::Drained);
    assert_eq!(world.take_done(), [Action::Continue(SLOT_0), Action::Unpaused, Action::Bye(0)]);
    world.event(Event::Pause);
    assert_eq!(world.take_done(), [Action::Paused], "it goes on leaving");
    world.exit(0);
    assert!(world.finished);
}

/// Goal: spares are stopped as workers are, and none is taken meanwhile.
#[test]
fn spares_are_stopped_and_not_taken() {
    let mut world = World::new(Policy { spares: 1, ..policy(1) });
    world.event(Event::Demand(1));
    world.ready(0);
    world.spare_ready(0);
    world.event(Event::Pause);
    world.take_done();
    world.exit(0);
    world.event(Event::Demand(1));
    assert_eq!(world.take_done(), []);
    world.event(Event::Unpause);
    let done = world.take_done();
    let taken = Action::TakeSpare { spare: 0, slot: 0 };
    assert_eq!(done[..3], [Action::Continue(Place::Spare(0)), Action::Unpaused, taken]);
}
