//! Processes that do not end although they were killed.

use super::*;

/// A worker that was killed.
fn killed(world: &mut World, slot: usize) {
    world.event(Event::Faulty(slot));
    assert_eq!(world.take_done(), [Action::Kill(slot)]);
}

/// Goal: a worker that does not die of SIGKILL holds its slot for so long and no longer.
/// Covers: F-31
#[test]
fn a_worker_that_does_not_die_is_abandoned_and_replaced() {
    let mut world = serving(1);
    killed(&mut world, 0);
    world.event(Event::Demand(1));
    assert_eq!(world.take_done(), []);
    let began = world.now;
    assert!(world.sleep());
    assert_eq!(world.now - began, 10 * SECOND);
    assert_eq!(world.take_done(), [Action::Abandon(Place::Slot(0)), Action::Spawn(0)]);
    world.ready(0);
    world.abandoned_exit();
    assert_eq!(world.machine.slot(0), Slot::Serving, "the late end is not its replacement's");
    assert_eq!(world.broken, None);
}

/// Goal: the undead do not pile up: beyond the bound a slot stays empty, until one of them ends.
#[test]
fn beyond_a_bound_nobody_is_replaced_until_one_ends() {
    let mut world = serving(4);
    for slot in 0..3 {
        killed(&mut world, slot);
    }
    world.sleep();
    world.event(Event::Demand(4));
    let abandoned = [0, 1, 2].map(|slot| Action::Abandon(Place::Slot(slot)));
    let spawned = [Action::Spawn(0), Action::Spawn(1)];
    assert_eq!(world.take_done(), [&abandoned[..], &spawned].concat());
    assert_eq!(world.machine.slot(2), Slot::Lost);
    world.abandoned_exit();
    assert_eq!(world.take_done(), [Action::Spawn(2)]);
}

/// Goal: a pool that has nobody left, and cannot replace anybody, does not let jobs wait for ever; but it is not
/// broken for nothing, as long as no job waits.
#[test]
fn a_pool_of_which_all_are_lost_breaks_for_the_next_job() {
    let mut world = World::new(Policy { abandoned_max: 0, ..policy(1) });
    world.event(Event::Demand(1));
    world.ready(0);
    killed_after_start(&mut world);
    assert_eq!((world.broken.as_deref(), world.machine.slot(0)), (None, Slot::Lost));
    world.event(Event::Demand(1));
    assert!(world.broken.as_deref().unwrap().contains("unkillable_after"), "{:?}", world.broken);
    world.event(Event::Drained);
    assert!(world.finished);
}

fn killed_after_start(world: &mut World) {
    world.take_done();
    killed(world, 0);
    world.sleep();
    assert_eq!(world.take_done(), [Action::Abandon(Place::Slot(0))]);
}

/// Goal: a shutdown waits for nobody who does not die: neither worker nor spare nor fork server.
/// Covers: F-31
#[test]
fn a_shutdown_does_not_wait_for_those_that_do_not_die() {
    let method = StartMethod::ForkServer;
    let mut world = World::new(Policy { start_method: method, spares: 1, ..policy(1) });
    world.event(Event::Demand(1));
    world.server_ready();
    world.ready(0);
    world.spare_ready(0);
    world.event(Event::Drained);
    let began = world.now;
    while !world.finished {
        assert!(world.sleep());
    }
    // The grace after which they are killed, and the time after which they are abandoned.
    assert_eq!(world.now - began, 12 * SECOND);
    assert_eq!(world.abandoned, 3);
}

/// Goal: without a fork server nobody can be forked: one that does not die is replaced.
#[test]
fn a_fork_server_that_does_not_die_is_replaced() {
    let mut world = World::new(Policy { start_method: StartMethod::ForkServer, ..policy(1) });
    world.event(Event::Demand(1));
    world.server_ready();
    world.event(Event::Server(ServerEvent::Faulty));
    world.take_done();
    world.sleep();
    let done = world.take_done();
    assert!(done.contains(&Action::Abandon(Place::Server)), "{done:?}");
    while world.servers < 2 {
        assert!(world.sleep());
    }
}
