//! Spares by example.

use super::*;
use crate::supervisor::machine::starts::{BACKOFF_FIRST_NS, BACKOFF_MAX_NS};

fn sparing(slots: usize, spares: usize) -> World {
    World::new(Policy { spares, ..policy(slots) })
}

/// Goal: spares are made after the first worker, and a slot that wants a worker takes one at once; it is replaced.
#[test]
fn a_slot_takes_a_spare() {
    let mut world = sparing(2, 2);
    world.event(Event::Demand(1));
    assert_eq!(world.take_done(), [Action::Spawn(0)]);
    world.ready(0);
    assert_eq!(world.take_done(), [Action::SpawnSpare(0), Action::SpawnSpare(1)]);
    world.spare_ready(1);
    assert_eq!(world.take_done(), [], "nobody wants it");
    world.event(Event::Demand(1));
    let taken = Action::TakeSpare { spare: 1, slot: 1 };
    assert_eq!(world.take_done(), [taken, Action::SpawnSpare(1)]);
    assert_eq!(world.machine.slot(1), Slot::Serving);
}

/// Goal: a spare that becomes ready while a slot waits for a worker is taken.
#[test]
fn a_spare_is_taken_when_it_is_ready() {
    let mut world = sparing(1, 1);
    world.event(Event::Demand(1));
    world.ready(0);
    world.event(Event::Retire(0));
    world.take_done();
    world.event(Event::Demand(1));
    assert_eq!(world.take_done(), [], "the slot is not empty");
    world.spare_ready(0);
    world.exit(0);
    let taken = Action::TakeSpare { spare: 0, slot: 0 };
    assert_eq!(world.take_done(), [taken, Action::SpawnSpare(0)]);
}

/// Goal: a slot does not start what a spare that is starting will be sooner, and waits for no more than there are.
#[test]
fn a_slot_waits_for_a_spare_that_is_starting() {
    let mut world = sparing(2, 1);
    world.event(Event::Demand(1));
    world.ready(0);
    assert_eq!(world.take_done(), [Action::Spawn(0), Action::SpawnSpare(0)]);
    world.event(Event::Demand(1));
    assert_eq!(world.take_done(), [], "the spare will be ready before another could be");
    world.exit(0);
    world.event(Event::Demand(2));
    assert_eq!(world.take_done(), [Action::Spawn(0)], "there is one for one of the two");
    world.spare_ready(0);
    let taken = Action::TakeSpare { spare: 0, slot: 1 };
    assert_eq!(world.take_done(), [taken, Action::SpawnSpare(0)]);
}

/// Goal: a slot that waits for a spare which cannot be made starts a worker itself.
#[test]
fn a_slot_whose_spare_fails_starts_a_worker() {
    for trouble in [Trouble::Shortage, Trouble::Lasting] {
        let mut world = sparing(1, 1);
        world.event(Event::Demand(1));
        world.ready(0);
        world.exit(0);
        assert_eq!(world.take_done(), [Action::Spawn(0), Action::SpawnSpare(0)]);
        world.spares[0] = None;
        world.event(Event::Spare(0, SpareEvent::SpawnFailed(trouble, "refused".into())));
        while world.take_done().is_empty() {
            assert!(world.sleep(), "nobody starts a worker: {world:?}");
        }
        assert!(matches!(world.machine.slot(0), Slot::Starting { .. }));
    }
}

/// Goal: a pool that keeps a spare for deaths has none before one, however many workers leave as they were told to, and
/// one from then on.
#[test]
fn spares_for_deaths_are_made_after_the_first() {
    let from_death = Policy { spares: 1, spares_from: SparesFrom::FirstDeath, ..policy(1) };
    let killed = |world: &mut World| world.event(Event::Faulty(0));
    let died = |_: &mut World| {};
    for end in [killed as fn(&mut World), died] {
        let mut world = World::new(from_death.clone());
        for _ in 0..3 {
            world.event(Event::Demand(1));
            world.ready(0);
            world.event(Event::Retire(0));
            world.exit(0);
            assert_eq!(world.take_done(), [Action::Spawn(0), Action::Bye(0)]);
        }
        world.event(Event::Demand(1));
        world.ready(0);
        end(&mut world);
        world.take_done();
        world.exit(0);
        world.event(Event::Demand(1));
        assert!(matches!(world.machine.spare(0), Slot::Starting { .. }));
        world.ready(0);
        // The first one may be in the slot by now.
        world.spare_ready(0);
        world.spare_ready(0);
        assert_eq!((world.machine.slot(0), world.machine.spare(0)), (Slot::Serving, Slot::Serving));
        end(&mut world);
        world.take_done();
        world.exit(0);
        world.event(Event::Demand(1));
        let taken = Action::TakeSpare { spare: 0, slot: 0 };
        assert_eq!(world.take_done(), [taken, Action::SpawnSpare(0)]);
    }
}

/// Goal: a ready spare that dies is replaced without blame, slower each time.
#[test]
fn a_dead_spare_is_replaced() {
    let mut world = sparing(1, 1);
    world.event(Event::Demand(1));
    world.ready(0);
    let mut waits = Vec::new();
    for _ in 0..20 {
        world.spare_ready(0);
        world.take_done();
        let died_at = world.now;
        world.spare_exit(0);
        assert!(world.sleep());
        assert_eq!(world.take_done(), [Action::SpawnSpare(0)]);
        waits.push(world.now - died_at);
    }
    assert!(waits.is_sorted() && waits[0] == BACKOFF_FIRST_NS && waits[19] == BACKOFF_MAX_NS);
    assert_eq!(world.broken, None);
}

/// Goal: a server that dies as it forks spares is replaced although nobody waits for it, without blame, and is asked for
/// the next ones later each time.
#[test]
fn a_server_that_dies_with_spares_unborn_is_replaced() {
    let forking = Policy { start_method: StartMethod::ForkServer, ..policy(1) };
    let mut world = World::new(Policy { spares: 1, ..forking });
    world.event(Event::Demand(1));
    world.server_ready();
    world.ready(0);
    let mut waits = Vec::new();
    for _ in 0..20 {
        assert!(world.take_done().contains(&Action::SpawnSpare(0)));
        let died_at = world.now;
        world.server_exit(&[Place::Spare(0)]);
        while world.machine.spare(0) == Slot::Empty {
            assert!(world.sleep(), "there is no server any more: {world:?}");
            world.server_ready();
        }
        waits.push(world.now - died_at);
    }
    assert!(waits.is_sorted() && waits[0] == BACKOFF_FIRST_NS && waits[19] == BACKOFF_MAX_NS);
    assert_eq!((world.broken, world.told), (None, vec![]));
}

/// Goal: while starts go wrong no spares are started, so that an idle pool does not try for ever.
#[test]
fn no_spares_are_started_while_starts_go_wrong() {
    let mut world = sparing(1, 3);
    world.event(Event::Demand(1));
    world.ready(0);
    world.take_done();
    world.spare_exit(0);
    world.take_done();
    while world.machine.deadline().is_some() && world.now < 1000 * SECOND {
        world.sleep();
        for place in 0..3 {
            world.spare_exit(place);
        }
    }
    assert!(world.machine.deadline().is_none(), "it goes on trying");
    assert_eq!(world.broken, None, "a worker lives");
}

/// Goal: the pool ends only when its spares have.
#[test]
fn a_drained_pool_waits_for_its_spares() {
    let mut world = sparing(1, 2);
    world.event(Event::Demand(1));
    world.ready(0);
    world.spare_ready(0);
    world.take_done();
    world.event(Event::Drained);
    let end = [Action::Bye(0), Action::DismissSpare(0), Action::KillSpare(1)];
    assert_eq!(world.take_done(), end);
    world.exit(0);
    world.spare_exit(0);
    assert!(!world.finished);
    world.spare_exit(1);
    assert!(world.finished);
}
