//! Journals that are not what was written: what is acknowledged is there, or the journal is refused and left alone.

use std::fs;
use std::path::Path;

use procpool_daemon::store::{Store, StoreError};

use super::fixture::Home;
use super::journals::{FILES, Known, bytes, commits, insert, lay, open, read, read_from};
use crate::support::{Random, TempDir, test, test_within};

/// Set it to try each byte instead of some hundred that a seed chooses: two minutes with `--release`, and `TMPDIR` in memory.
const FULL: &str = "PROCPOOL_DAMAGE_FULL";

/// A journal of some jobs whose daemon was killed, and what is in it.
fn killed(jobs: u64) -> (TempDir, [Option<Vec<u8>>; 3], Vec<Known>) {
    let dir = TempDir::new();
    let mut store = open(dir.path()).unwrap();
    for changes in commits(jobs) {
        store.commit(&changes).unwrap();
    }
    let known = read_from(&mut store).unwrap();
    assert_eq!(known.len() as u64, jobs);
    // Dropped is as good as killed: nothing more is written.
    drop(store);
    let files = bytes(dir.path());
    assert!(files[1].as_ref().is_some_and(|log| log.len() > 4096), "the log has it all");
    (dir, files, known)
}

/// Which of `all` cases are tried.
fn some(all: usize, random: &mut Random) -> Vec<usize> {
    if std::env::var_os(FULL).is_some() {
        return (0..all).collect();
    }
    (0..400).map(|_| random.below(all as u64) as usize).collect()
}

/// How often a damaged journal was read as it was, and how often refused.
#[derive(Debug, Default)]
struct Verdicts {
    kept: u32,
    refused: u32,
}

impl Verdicts {
    /// Opens a journal with these files. There is all, or a refusal that changes nothing.
    fn judge(&mut self, dir: &Path, files: &[Option<Vec<u8>>; 3], known: &[Known], what: &str) {
        lay(dir, files);
        let opened = open(dir);
        let is_refused = opened.is_err();
        match opened.and_then(|mut store| read_from(&mut store)) {
            Ok(found) => {
                assert!(found == known, "{what}: it is read, and differs");
                self.kept += 1;
            }
            Err(StoreError::Damaged(_) | StoreError::Newer { .. } | StoreError::Io(_)) => {
                let is_changed = is_refused && bytes(dir) != *files;
                assert!(!is_changed, "{what}: it was refused, and changed");
                self.refused += 1;
            }
            Err(other) => panic!("{what}: {other}"),
        }
    }
}

/// Goal: an end that is missing is seen, wherever it was cut off.
/// Method: each file of a journal is cut, at each byte or at some.
/// Covers: F-115
#[test]
fn a_journal_that_is_cut_off_is_refused() {
    test_within(std::time::Duration::from_secs(3600), || {
        let mut random = Random::new();
        let (dir, files, known) = killed(7);
        for (index, name) in FILES.iter().enumerate() {
            let mut verdicts = Verdicts::default();
            let whole = files[index].as_ref().unwrap();
            // Of one byte SQLite has an opinion of its own.
            for len in some(whole.len(), &mut random).into_iter().chain([1]) {
                let mut cut = files.clone();
                cut[index].as_mut().unwrap().truncate(len);
                verdicts.judge(dir.path(), &cut, &known, &format!("{name} of {len} bytes"));
            }
            println!("{name}, {} bytes: {verdicts:?}", whole.len());
            // One slot of the mark is enough; and the file has nothing yet that the log has not.
            assert!(verdicts.refused > 0 || index == 0, "{name}: {verdicts:?}");
        }
        let mut gone = files.clone();
        for index in 0..3 {
            gone[index] = if index == 1 { Some(Vec::new()) } else { None };
            let mut verdicts = Verdicts::default();
            verdicts.judge(dir.path(), &gone, &known, FILES[index]);
            assert!(verdicts.refused == 1 || index == 2, "{verdicts:?}");
            gone = files.clone();
        }
    });
}

/// Goal: a flipped bit anywhere costs no acknowledged job in silence: neither in the file, nor in the middle of the log,
/// where SQLite takes it for the log's end, nor in the mark.
/// Covers: F-115
#[test]
fn a_flipped_bit_loses_nothing_in_silence() {
    test_within(std::time::Duration::from_secs(3600), || {
        let mut random = Random::new();
        let (dir, files, known) = killed(7);
        for (index, name) in FILES.iter().enumerate() {
            let mut verdicts = Verdicts::default();
            let whole = files[index].as_ref().unwrap();
            for at in some(whole.len(), &mut random) {
                let bit = random.below(8);
                let mut flipped = files.clone();
                flipped[index].as_mut().unwrap()[at] ^= 1 << bit;
                let what = format!("bit {bit} of byte {at} of {name}");
                verdicts.judge(dir.path(), &flipped, &known, &what);
            }
            println!("{name}, {} bytes: {verdicts:?}", whole.len());
            assert!(verdicts.kept > 0 || index == 1, "{name}: {verdicts:?}");
            assert!(verdicts.refused > 0 || index != 1, "{name}: {verdicts:?}");
        }
    });
}

/// Goal: the same for a journal that was closed, and has everything in its file.
/// Covers: F-115
#[test]
fn a_closed_journal_that_is_damaged_is_refused_or_whole() {
    test_within(std::time::Duration::from_secs(3600), || {
        let mut random = Random::new();
        let (dir, files, known) = killed(40);
        lay(dir.path(), &files);
        Box::new(open(dir.path()).unwrap()).close().unwrap();
        let files = bytes(dir.path());
        assert_eq!(files[1].as_ref().map(Vec::len), Some(0), "the log is empty");
        let mut verdicts = Verdicts::default();
        let len = files[0].as_ref().unwrap().len();
        for at in some(len, &mut random) {
            let bit = random.below(8);
            let mut flipped = files.clone();
            flipped[0].as_mut().unwrap()[at] ^= 1 << bit;
            let what = format!("bit {bit} of byte {at}");
            verdicts.judge(dir.path(), &flipped, &known, &what);
        }
        println!("{len} bytes: {verdicts:?}");
        assert!(verdicts.kept > 0 && verdicts.refused > 0, "{verdicts:?}");
    });
}

/// Goal: what stands after the end of the log, as an earlier one may have left it there, changes nothing.
/// Covers: F-115
#[test]
fn garbage_after_the_end_of_the_log_is_no_damage() {
    test(|| {
        let mut random = Random::new();
        let (dir, files, known) = killed(7);
        for len in [1, 23, 4096, 4120, 20_000] {
            for zeros in [true, false] {
                let mut more = files.clone();
                let tail = (0..len).map(|_| if zeros { 0 } else { random.below(256) as u8 });
                more[1].as_mut().unwrap().extend(tail);
                let mut verdicts = Verdicts::default();
                verdicts.judge(dir.path(), &more, &known, &format!("{len} bytes more"));
                assert_eq!(verdicts.kept, 1);
                // It can be gone on with.
                lay(dir.path(), &more);
                open(dir.path()).unwrap().commit(&[insert(8, 0)]).unwrap();
                assert_eq!(read(dir.path()).unwrap().len(), 8);
            }
        }
    });
}

/// Goal: state that cannot be read is refused, with words, and never replaced.
/// Covers: F-118
#[test]
fn state_that_cannot_be_read_is_refused_and_kept() {
    test(|| {
        let (dir, files, _) = killed(3);
        let home = Home::new("");
        let state = home.state();
        fs::create_dir(&state).unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        let refused = |files: &[Option<Vec<u8>>; 3], part: &str| {
            lay(&state, files);
            let finished = home.spawn(home.command()).finish();
            assert_eq!(finished.code, 109, "{finished:?}");
            assert!(finished.err.contains("journal.sqlite"), "{finished:?}");
            assert!(finished.err.contains(part), "{part:?} is not in {finished:?}");
            assert!(bytes(&state) == *files, "{part}: it was changed");
        };
        let [journal, log, mark] = files;
        let empty = Some(Vec::new());
        let text = Some(b"this is no database".repeat(1000));
        refused(&[text, empty.clone(), mark.clone()], "not a database");
        refused(&[empty.clone(), None, mark.clone()], "it is gone");
        refused(&[None, log.clone(), mark.clone()], "it is gone");
        refused(&[journal.clone(), empty, mark.clone()], "was acknowledged");
        refused(&[journal.clone(), log.clone(), None], "is missing");
        refused(&[journal, log, Some(vec![0; 1024])], "says nothing that holds");
        let other = dir.path().join("other.sqlite");
        let connection = rusqlite::Connection::open(&other).unwrap();
        connection.execute_batch("CREATE TABLE t (a)").unwrap();
        drop(connection);
        refused(&[fs::read(&other).ok(), None, mark], "another program");
    });
}

/// Goal: a journal of a later version is refused, with both versions, and can still be read by that one.
/// Covers: F-132
#[test]
fn a_newer_journal_is_refused() {
    test(|| {
        let (dir, _, _) = killed(3);
        Box::new(open(dir.path()).unwrap()).close().unwrap();
        fs::remove_file(dir.path().join(FILES[1])).unwrap();
        let connection = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        // SQLite removes it as it closes, and makes it as it opens.
        fs::write(dir.path().join(FILES[1]), "").unwrap();
        let before = bytes(dir.path());
        let message = open(dir.path()).unwrap_err().to_string();
        assert_eq!(message, "it has version 99, and this program knows versions up to 1");
        assert!(bytes(dir.path()) == before);
    });
}

/// Goal: journals that earlier versions wrote can be gone on with.
/// Method: `golden/` has one of each. Until the first release the one of version 1 may be made again, with
/// `PROCPOOL_GOLDEN=1`, when what is kept of a job has changed; later the version is raised instead, and the file stays.
/// Covers: F-132
#[test]
fn a_journal_of_an_earlier_version_is_gone_on_with() {
    test(|| {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/daemon/golden/v1");
        let (_dir, files, known) = killed(12);
        if std::env::var_os("PROCPOOL_GOLDEN").is_some() {
            fs::create_dir_all(&golden).unwrap();
            lay(&golden, &files);
        }
        let dir = TempDir::new();
        lay(dir.path(), &bytes(&golden));
        assert!(read(dir.path()).unwrap() == known);
        open(dir.path()).unwrap().commit(&[insert(13, 7)]).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 13);
    });
}
