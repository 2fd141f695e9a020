//! Clients that mean ill, or know no better: they cost the daemon little, and other clients nothing.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use procpool_daemon::job::{self, JobId, JobSpec, TaskWork, Terms, Work};
use procpool_daemon::protocol::{
    GREETING_LEN, HEADER_LEN, Refusal, Request, Response, greeting, push_frame,
};
use procpool_daemon::{Client, Error};

use super::fixture::{Home, PROCPOOL};
use crate::support::{Random, test, wait_until};

/// How long an honest client may wait.
const SOON: Duration = Duration::from_secs(1);
/// How much memory all that may cost.
const COST: u64 = 16 << 20;

#[procpool::task]
fn repeat(len: usize) -> String {
    "x".repeat(len)
}

fn resident(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    1024 * line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
}

/// A connection that has greeted.
fn greeted(home: &Home) -> UnixStream {
    let mut stream = UnixStream::connect(home.socket()).unwrap();
    stream.write_all(&greeting(0)).unwrap();
    stream.read_exact(&mut [0; GREETING_LEN]).unwrap();
    stream
}

fn echo() -> JobSpec {
    let work = Work::Command(job::Command::here(["true"]).unwrap());
    JobSpec { terms: Terms::new("x".repeat(200)), work }
}

/// Sends as much as is taken. What is not taken within some milliseconds will not be.
fn flood(mut stream: &UnixStream, bytes: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    for _ in 0..2000 {
        match stream.write(bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => return,
        }
    }
}

/// An honest client that has come just now gets a job run.
fn is_served(home: &Home) {
    let since = Instant::now();
    let client = Client::connect(&home.socket()).unwrap();
    let answer = client.request(&Request::Ping).unwrap();
    assert!(matches!(answer, Response::Pong(_)));
    let terms = Terms { queue: "quick".into(), ..Terms::new("true") };
    let id = match client.request(&Request::Submit(JobSpec { terms, ..echo() })).unwrap() {
        Response::Submitted(id) => id,
        other => panic!("{other:?}"),
    };
    client.request(&Request::Wait(id)).unwrap();
    let took = since.elapsed();
    assert!(took < SOON, "an honest client had to wait {took:?}");
}

/// Goal: neither a thousand half-open connections, nor clients that never read, send garbage, claim a frame of 4 GiB
/// or never end one, keep an honest client waiting, or cost memory.
/// Method: each kind is there while the honest one is served; the daemon's resident set is read before and after.
/// Covers: F-139, F-140, F-141
#[test]
fn a_crowd_of_bad_clients_costs_little() {
    test(|| {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
        let home = Home::new("[queue.default]\nslots = 1\n[queue.quick]\nslots = 1\n");
        let daemon = home.start();
        home.out(&["queue", "pause", "default"]);
        let client = daemon.client();
        for _ in 0..500 {
            client.request(&Request::Submit(echo())).unwrap();
        }
        is_served(&home);
        let before = resident(daemon.pid());
        let mut crowd = Vec::new();
        for nth in 0..1000 {
            let mut stream = UnixStream::connect(home.socket()).unwrap();
            if nth % 2 == 0 {
                // The daemon may have let it go already, for one that came after it.
                let _ = stream.write_all(&greeting(0)[..3]);
            }
            crowd.push(stream);
            if nth % 250 == 249 {
                is_served(&home);
            }
        }
        // It never reads: pages of 500 jobs, as many as there is room for.
        let silent = greeted(&home);
        let mut pages = Vec::new();
        for number in 0..1000 {
            push_frame(number, &Request::Page { after: JobId(0), limit: 1000 }, &mut pages)
                .unwrap();
        }
        flood(&silent, &pages);
        is_served(&home);
        // Garbage, before and after a greeting.
        let mut random = Random::new();
        let garbage: Vec<u8> = (0..1 << 20).map(|_| random.next() as u8).collect();
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        flood(&stream, &garbage);
        assert!(is_closed(&mut stream));
        let mut stream = greeted(&home);
        flood(&stream, &garbage);
        assert!(is_closed(&mut stream));
        // 4 GiB less one byte, by its header.
        let mut stream = greeted(&home);
        stream.write_all(&[0xff; HEADER_LEN]).unwrap();
        assert!(is_closed(&mut stream));
        // A frame that is believed, and never ends.
        let mut long = vec![0; 256 << 10];
        long[..4].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        let endless: Vec<UnixStream> = (0..8)
            .map(|_| {
                let stream = greeted(&home);
                flood_once(&stream, &long);
                stream
            })
            .collect();
        is_served(&home);
        let grown = resident(daemon.pid()).saturating_sub(before);
        println!("the daemon has grown by {grown} bytes");
        assert!(grown < COST, "the daemon has grown by {grown} bytes");
        drop((crowd, silent, endless));
        is_served(&home);
        drop(client);
        daemon.stop();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    });
}

fn flood_once(mut stream: &UnixStream, bytes: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
}

/// Whether the daemon has closed the connection: it says nothing more.
fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// Goal: a client that waits for a job is not the one that goes when there are too many.
/// Covers: F-141
#[test]
fn a_flood_of_connections_takes_no_place_from_who_waits() {
    test(|| {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).unwrap();
        let home = Home::new("");
        let daemon = home.start();
        home.out(&["queue", "pause", "default"]);
        let client = daemon.client();
        let id = match client.request(&Request::Submit(echo())).unwrap() {
            Response::Submitted(id) => id,
            other => panic!("{other:?}"),
        };
        let waiting = std::thread::spawn(move || client.request(&Request::Wait(id)));
        let probe = daemon.client();
        wait_until("it waits", || match probe.request(&Request::Health).unwrap() {
            Response::Health(health) => health.waits == 1,
            other => panic!("{other:?}"),
        });
        drop(probe);
        let idle: Vec<UnixStream> = (0..1000).map(|_| greeted(&home)).collect();
        home.out(&["queue", "resume", "default"]);
        assert!(matches!(waiting.join().unwrap(), Ok(Response::Ended(..))));
        drop(idle);
        daemon.stop();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    });
}

/// The CPU time of a process, in clock ticks (proc_pid_stat(5)), of which Linux has a hundred a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Goal: a daemon that has no descriptor for a client, and none that could be freed, does not look for one without end;
/// and it lets the client in when there is one.
/// Method: it may have no more descriptors than it has. A client comes and waits; the daemon's CPU time is read before
/// and after a second of that.
/// Covers: F-86
#[test]
fn a_daemon_without_descriptors_rests() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let pid = daemon.pid();
        let limit = |soft: &str| {
            let mut prlimit = Command::new("prlimit");
            prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]);
            assert!(prlimit.status().unwrap().success());
        };
        // Each new descriptor has to be below the limit, where all are taken.
        limit("3");
        let waiting = std::thread::spawn({
            let socket = home.socket();
            move || Client::connect(&socket).and_then(|client| client.request(&Request::Ping))
        });
        let before = cpu_ticks(pid);
        // A second in which a daemon that rests does nothing. Were the client not there yet, the test would be weaker.
        std::thread::sleep(Duration::from_secs(1));
        let ticks = cpu_ticks(pid) - before;
        assert!(ticks <= 5, "{ticks} ticks in a second without descriptors");
        limit("1024");
        match waiting.join().unwrap() {
            Ok(Response::Pong(_)) => {}
            other => panic!("{other:?}"),
        }
        daemon.stop();
    });
}

/// Goal: another user is refused by who it is, whatever the modes of files let it do; and sockets have paths.
/// Method: as root, the modes are opened by hand, and a client runs as another user. That it could connect is seen
/// from its not being told that permission is denied.
/// Covers: F-137, F-138
#[test]
fn another_user_is_refused_whatever_the_modes_say() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&home.state()), mode(&home.socket())), (0o700, 0o600));
        for path in [home.path(), &home.state(), &home.socket()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let ping = |uid: u32| {
            let mut command = Command::new(PROCPOOL);
            command.arg("ping").env("PROCPOOL_SOCKET", home.socket()).stdin(Stdio::null());
            command.uid(uid).gid(uid).output().unwrap()
        };
        let ours = ping(0);
        assert!(ours.status.success(), "{ours:?}");
        let theirs = ping(54321);
        let said = String::from_utf8_lossy(&theirs.stderr);
        assert_eq!(theirs.status.code(), Some(110), "{said}");
        assert!(said.contains("no daemon answers") && !said.contains("ermission"), "{said}");
        // No abstract socket: each that listens has a path.
        let inodes: Vec<String> = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()?.to_str().map(String::from))
            .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        let of_daemon =
            |line: &&str| inodes.iter().any(|inode| line.split(' ').any(|word| word == inode));
        let sockets: Vec<&str> = table.lines().filter(of_daemon).collect();
        assert!(sockets.iter().any(|line| line.contains(home.socket().to_str().unwrap())));
        assert!(!sockets.iter().any(|line| line.contains('@')), "{sockets:?}");
        fs::set_permissions(home.state(), fs::Permissions::from_mode(0o700)).unwrap();
        daemon.stop();
    });
}

/// Covers: F-150
#[test]
fn root_has_to_say_that_it_means_it() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: this is not root");
        return;
    }
    test(|| {
        let home = Home::new("");
        let refused = home.run(&["daemon", "--state", home.state().to_str().unwrap()]);
        assert_eq!(refused.code, 102);
        assert!(refused.err.contains("--allow-root"), "{refused:?}");
        assert!(!home.state().exists());
    });
}

/// Goal: links and foreign modes where the daemon keeps its state are not followed, and not used.
/// Covers: F-148
#[test]
fn a_state_directory_that_others_had_a_hand_in_is_refused() {
    test(|| {
        let home = Home::new("");
        fs::create_dir(home.state()).unwrap();
        fs::set_permissions(home.state(), fs::Permissions::from_mode(0o750)).unwrap();
        let refused = home.spawn(home.command()).finish();
        assert_eq!(refused.code, 102, "{refused:?}");
        assert!(refused.err.contains("mode 0700"), "{refused:?}");
        fs::set_permissions(home.state(), fs::Permissions::from_mode(0o700)).unwrap();
        let victim = home.path().join("victim");
        fs::write(&victim, "untouched").unwrap();
        symlink(&victim, home.state().join("lock")).unwrap();
        let refused = home.spawn(home.command()).finish();
        assert_eq!(refused.code, 106, "{refused:?}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        fs::remove_file(home.state().join("lock")).unwrap();
        // Nor is what a job is to have said written through a link.
        let daemon = home.start();
        fs::create_dir_all(home.state().join("logs/0")).unwrap();
        symlink(&victim, home.state().join("logs/0/1.out")).unwrap();
        home.out(&["submit", "--wait", "--", "echo", "said"]);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(home.out(&["logs", "1"]), "said\n");
        daemon.stop();
    });
}

fn refusal(result: Result<Response, Error>) -> Refusal {
    result.unwrap_err().refusal().unwrap().clone()
}

/// Goal: a flood of jobs ends in a clear refusal, and everybody else goes on. The daemon grows by what it may keep.
/// Covers: F-142
#[test]
fn a_flood_of_jobs_is_refused_at_the_limit() {
    test(|| {
        let home = Home::new("[limits]\njobs = 2000\n[queue.quick]\n");
        let daemon = home.start();
        home.out(&["queue", "pause", "default"]);
        let client = daemon.client();
        for _ in 0..2000 {
            client.request(&Request::Submit(echo())).unwrap();
        }
        for _ in 0..1000 {
            let refused = refusal(client.request(&Request::Submit(echo())));
            assert_eq!(refused, Refusal::Busy("there are 2000 jobs".into()));
        }
        // One gone makes room for one, which may not wait for many.
        home.out(&["cancel", "1"]);
        let after = (2..500).map(JobId).collect();
        let terms = Terms { after, ..Terms::new("x") };
        client.request(&Request::Submit(JobSpec { terms, ..echo() })).unwrap();
        let refused = refusal(client.request(&Request::Submit(echo())));
        assert!(matches!(refused, Refusal::Busy(_)), "{refused:?}");
        home.out(&["ping"]);
        daemon.stop();
    });
}

/// Goal: who wants a long result very often and reads none of them costs the daemon what a client may leave unread, and
/// not all of them.
/// Covers: F-147
#[test]
fn results_are_not_there_as_often_as_they_are_wanted() {
    /// Of one result.
    const LEN: usize = 8 << 20;
    /// How often it is wanted.
    const TIMES: u64 = 60;
    /// What may be there: 64 MiB for the client, in a buffer that doubles, and some results on their way.
    const MOST: u64 = 240 << 20;
    test(|| {
        let home = Home::with_tasks(1);
        let daemon = home.start();
        let words = ["-q", "tasks", "--task", "it::daemon::hostile::repeat", &LEN.to_string()];
        let id = JobId(home.submit(&words));
        home.out(&["wait", &id.to_string()]);
        let mut stream = greeted(&home);
        let mut frames = Vec::new();
        for number in 1..=TIMES {
            push_frame(number, &Request::Result(id), &mut frames).unwrap();
        }
        stream.write_all(&frames).unwrap();
        // What comes after them is answered after them.
        daemon.client().request(&Request::Records(Vec::new())).unwrap();
        let most = memory(daemon.pid(), "VmHWM:");
        assert!(most < MOST, "{} MiB", most >> 20);
        drop(stream);
        daemon.stop();
    });
}

/// Goal: names are data, and what makes no sense is told at once, in few words.
/// Covers: F-143, F-144, F-145, F-147
#[test]
fn names_are_data_and_nonsense_is_told() {
    test(|| {
        let home = Home::with_tasks(1);
        let daemon = home.start();
        let client = daemon.client();
        let submit = |spec: JobSpec| client.request(&Request::Submit(spec));
        let long = "n".repeat(1 << 20);
        let with = |terms: Terms| JobSpec { terms, ..echo() };
        for terms in [
            Terms { queue: long.clone(), ..Terms::new("x") },
            Terms::new(long.clone()),
            Terms { key: Some(long.clone()), ..Terms::new("x") },
            Terms { after: vec![JobId(1); 1001], ..Terms::new("x") },
        ] {
            let refused = refusal(submit(with(terms)));
            assert!(matches!(&refused, Refusal::Invalid(why) if why.len() < 200), "{refused:?}");
        }
        let queue = "../../x".to_owned();
        let refused = refusal(submit(with(Terms { queue: queue.clone(), ..Terms::new("x") })));
        assert_eq!(refused, Refusal::NoQueue(queue));
        let command = |words: &[&[u8]], env: &[(&[u8], &[u8])]| {
            let bytes = |text: &&[u8]| text.to_vec().into();
            let env = env.iter().map(|(name, value)| (bytes(name), bytes(value)));
            let work = Work::Command(job::Command {
                words: words.iter().map(bytes).collect(),
                dir: b"/".to_vec().into(),
                env: env.collect(),
            });
            JobSpec { terms: Terms::new("x"), work }
        };
        for spec in [
            command(&[], &[]),
            command(&[b""], &[]),
            command(&[b"true", b"a\0b"], &[]),
            command(&[b"true"], &[(b"", b"x")]),
            command(&[b"true"], &[(b"A=B", b"x")]),
            command(&[b"true"], &[(b"A", b"x\0y")]),
            // By it the next daemon finds what this one has left running.
            command(&[b"true"], &[(b"PROCPOOL_DAEMON", b"x")]),
        ] {
            let refused = refusal(submit(spec));
            assert!(matches!(refused, Refusal::Invalid(_)), "{refused:?}");
        }
        // A title and a key with anything in them are kept as they are; files have numbers for names.
        let odd = "../../x\n\u{1b}[2J";
        let terms = Terms { key: Some(odd.into()), ..Terms::new(odd) };
        let id = match submit(with(terms)).unwrap() {
            Response::Submitted(id) => id.0,
            other => panic!("{other:?}"),
        };
        home.out(&["wait", &id.to_string()]);
        assert_eq!(home.status(id)["title"], odd);
        assert!(!home.out(&["status", &id.to_string()]).contains('\u{1b}'));
        // Only what the worker has registered is called, and a shell is not.
        for task in ["sh -c true", "std::process::exit", "../../x"] {
            let terms = Terms { queue: "tasks".into(), ..Terms::new("x") };
            let task = TaskWork { task: task.into(), fingerprint: None, argument: b"1".to_vec() };
            let spec = JobSpec { terms, work: Work::Task(task) };
            let Response::Submitted(id) = submit(spec).unwrap() else { panic!() };
            let result = home.run(&["result", &id.to_string()]);
            assert!(result.err.contains("has no such task"), "{result:?}");
        }
        // Lists have pages.
        let page = client.request(&Request::Page { after: JobId(0), limit: u32::MAX }).unwrap();
        assert!(matches!(page, Response::Page(records) if records.len() == 4));
        let many = vec![JobId(1); 1001];
        assert!(matches!(refusal(client.request(&Request::Records(many))), Refusal::Invalid(_)));
        drop(client);
        daemon.stop();
    });
}

/// Goal: of many daemons that are started at once for one directory one wins, and the others say which.
/// `PROCPOOL_ROUNDS` is how often.
/// Covers: F-112
#[test]
fn of_twenty_daemons_at_once_one_wins() {
    let rounds = std::env::var("PROCPOOL_ROUNDS").ok().map_or(2, |rounds| rounds.parse().unwrap());
    crate::support::test_within(Duration::from_secs(60 + 10 * rounds), || {
        let home = Home::new("");
        for round in 0..rounds {
            let daemons: Vec<_> = (0..20).map(|_| home.spawn(home.command())).collect();
            wait_until("all but one have ended", || {
                daemons.iter().filter(|daemon| daemon.has_ended()).count() >= 19
            });
            let (losers, mut winners): (Vec<_>, Vec<_>) =
                daemons.into_iter().partition(|daemon| daemon.has_ended());
            let mut winner = winners.pop().unwrap_or_else(|| panic!("round {round}: nobody won"));
            winner.wait_to_say("listening at");
            assert!(home.out(&["ping"]).contains(&format!("(process {})", winner.pid())));
            let holder = format!("(process {})", winner.pid());
            for loser in losers {
                let loser = loser.finish();
                assert_eq!(loser.code, 108, "round {round}: {loser:?}");
                assert!(loser.err.contains(&holder), "round {round}: {loser:?}, not {holder}");
            }
            // Half of the rounds begin with what a killed one has left: its socket, and its number.
            if round % 2 == 0 { winner.kill() } else { winner.stop() }
        }
    });
}

/// Goal: a number in a file does not make a daemon, and a socket that is left behind does not keep one from coming.
/// Covers: F-111, F-113
#[test]
fn what_a_dead_daemon_left_is_no_daemon() {
    test(|| {
        let home = Home::new("");
        home.start().kill();
        assert!(home.socket().exists());
        // A process that lives, and is no daemon.
        fs::write(home.state().join("lock"), format!("{}\n", std::process::id())).unwrap();
        let daemon = home.start();
        home.out(&["ping"]);
        daemon.stop();
        // What is no socket is not removed.
        fs::write(home.socket(), "a file").unwrap();
        let refused = home.spawn(home.command()).finish();
        assert_eq!(refused.code, 106, "{refused:?}");
        assert_eq!(fs::read_to_string(home.socket()).unwrap(), "a file");
    });
}

/// Goal: whoever goes away without having read anything leaves its jobs, and nothing else.
/// Covers: F-126
#[test]
fn a_client_that_is_gone_leaves_its_job() {
    test(|| {
        let home = Home::new("");
        let daemon = home.start();
        let mut stream = greeted(&home);
        let mut frame = Vec::new();
        push_frame(1, &Request::Run(echo()), &mut frame).unwrap();
        stream.write_all(&frame).unwrap();
        // The head of its first answer: the job is kept.
        stream.read_exact(&mut [0; HEADER_LEN]).unwrap();
        drop(stream);
        home.out(&["wait", "1"]);
        assert_eq!(home.run(&["result", "1"]).code, 0);
        wait_until("it is forgotten", || {
            let health: serde_json::Value =
                serde_json::from_str(&home.out(&["health", "--json"])).unwrap();
            health["waits"] == 0 && health["clients"] == 1
        });
        daemon.stop();
    });
}
