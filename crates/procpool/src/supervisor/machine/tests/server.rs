//! The fork server by example.

use super::*;

fn forking(slots: usize) -> World {
    World::new(Policy { start_method: StartMethod::ForkServer, ..policy(slots) })
}

/// Goal: the server is started with the first worker that is wanted, and once; workers follow when it is ready.
#[test]
fn workers_wait_for_their_server() {
    let mut world = forking(2);
    world.event(Event::Tick);
    assert_eq!(world.take_done(), [], "nobody is wanted");
    world.event(Event::Demand(2));
    world.event(Event::Demand(3));
    assert_eq!(world.take_done(), [Action::StartServer]);
    world.server_ready();
    assert_eq!(world.take_done(), [Action::Spawn(0), Action::Spawn(1)]);
}

/// Goal: a server that dies idle is replaced, although nobody is wanted, and nobody is blamed however often.
#[test]
fn an_idle_server_that_dies_is_replaced() {
    let mut world = forking(1);
    world.event(Event::Demand(1));
    world.server_ready();
    world.ready(0);
    for _ in 0..10 {
        world.take_done();
        world.server_exit(&[]);
        assert_eq!(world.take_done(), [], "not at once, or it would spin");
        assert!(world.sleep());
        assert_eq!(world.take_done(), [Action::StartServer]);
        world.server_ready();
    }
    assert_eq!(world.broken, None);
    assert_eq!(world.machine.slot(0), Slot::Serving, "its worker lives on");
}

/// Goal: a server that dies before it is ready uses the budget of starts.
#[test]
fn a_server_that_cannot_start_breaks_the_pool() {
    let mut world = forking(4);
    world.event(Event::Demand(4));
    world.event(Event::Server(ServerEvent::StartFailed("the first cause".into())));
    world.server_exit(&[]);
    for _ in 0..2 {
        assert!(world.sleep());
        world.server_exit(&[]);
    }
    assert_eq!(world.broken.as_deref(), Some("the first cause"));
    assert_eq!((world.servers, world.spawns), (3, 0));
}

/// Goal: a server that dies whenever it is asked for a worker breaks the pool as well: the jobs would wait for ever.
#[test]
fn a_server_that_cannot_fork_breaks_the_pool() {
    let mut world = forking(2);
    world.event(Event::Demand(1));
    for _ in 0..3 {
        assert!(world.server.is_some() || world.sleep());
        world.server_ready();
        world.server_exit(&[Place::Slot(0)]);
    }
    assert!(world.broken.is_some());
}

/// Goal: a server that is not ready in time is killed, and that counts.
#[test]
fn a_server_that_takes_too_long_is_killed() {
    let mut world = forking(1);
    world.event(Event::Demand(1));
    assert!(world.sleep());
    assert_eq!(world.take_done(), [Action::StartServer, Action::KillServer]);
    world.server_exit(&[]);
    assert!(world.sleep());
    assert_eq!(world.take_done(), [Action::StartServer]);
}

/// Goal: the pool ends only when its server has.
#[test]
fn a_drained_pool_waits_for_its_server() {
    let mut world = forking(1);
    world.event(Event::Demand(1));
    world.server_ready();
    world.ready(0);
    world.take_done();
    world.event(Event::Drained);
    assert_eq!(world.take_done(), [Action::Bye(0), Action::DismissServer]);
    world.exit(0);
    assert!(!world.finished);
    world.server_exit(&[]);
    assert!(world.finished);
}
