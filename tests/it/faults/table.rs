//! Every fault has a test, or a reason for having none; `tests/FAULTS.md` says which.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::catalogue::{LATER, NONE, SECTIONS};
use crate::support::test;

/// Set it to have `tests/FAULTS.md` written instead of compared.
const REWRITE: &str = "PROCPOOL_REWRITE_FAULTS";

/// Below which directories of the workspace tests stand.
const PLACES: [&str; 3] = ["tests/it", "crates", "bin"];

type Tests = BTreeMap<u32, BTreeSet<String>>;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Rust sources below a directory.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(sources_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    sources
}

/// The same, but not in what cargo builds.
fn sources_below(dir: &Path) -> Vec<PathBuf> {
    if dir.ends_with("target") { Vec::new() } else { sources(dir) }
}

/// The tests of each fault, as the sources below these directories name them, and what is wrong there.
fn covered() -> (Tests, Vec<String>) {
    let (mut tests, mut complaints) = (Tests::new(), Vec::new());
    for place in PLACES {
        for path in sources(&workspace().join(place)) {
            let source = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(workspace()).unwrap().to_str().unwrap();
            scan(name, &source, &mut tests, &mut complaints);
        }
    }
    (tests, complaints)
}

/// Where a scan is between a `Covers:` line and the function that it stands before.
struct Pending {
    numbers: Vec<u32>,
    is_test: bool,
    in_attribute: bool,
}

/// Adds the tests of one source.
fn scan(file: &str, source: &str, tests: &mut Tests, complaints: &mut Vec<String>) {
    let mut pending: Option<Pending> = None;
    for (line, text) in (1..).zip(source.lines().map(str::trim)) {
        let numbers = numbers(text).unwrap_or_else(|unknown| {
            complaints.push(format!("{file}:{line}: {unknown:?} is not a number"));
            Vec::new()
        });
        if !numbers.is_empty() {
            let none = Pending { numbers: Vec::new(), is_test: false, in_attribute: false };
            pending.get_or_insert(none).numbers.extend(numbers);
            continue;
        }
        let Some(open) = &mut pending else { continue };
        if open.in_attribute || text.starts_with("#[") {
            open.is_test |= text == "#[test]";
            open.in_attribute = !text.ends_with(']');
        } else if let Some(rest) = text.split_once("fn ").filter(|_| !text.starts_with("//")) {
            let function = rest.1.split(['(', '<']).next().unwrap_or(rest.1);
            if open.is_test || is_run_on_both_pools(source, function) {
                let test = test_path(file, function);
                for number in &open.numbers {
                    tests.entry(*number).or_default().insert(test.clone());
                }
            } else {
                complaints
                    .push(format!("{file}:{line}: `{function}` covers a fault and is no test"));
            }
            pending = None;
        } else if !text.starts_with("///") {
            complaints.push(format!("{file}:{line}: a `Covers:` before something that is no test"));
            pending = None;
        }
    }
    if pending.is_some() {
        complaints.push(format!("{file}: a `Covers:` at its end"));
    }
}

/// The faults that a line names; those of other lists have no `F-`.
fn numbers(line: &str) -> Result<Vec<u32>, String> {
    let Some(list) = line.strip_prefix("/// Covers: ") else {
        return Ok(Vec::new());
    };
    let faults = list.split(',').filter_map(|item| item.trim().strip_prefix("F-"));
    faults.map(|number| number.parse().map_err(|_| number.to_owned())).collect()
}

fn is_run_on_both_pools(source: &str, function: &str) -> bool {
    source
        .split_once("on_both_pools![")
        .is_some_and(|(_, list)| list.split([',', ']']).any(|item| item.trim() == function))
}

/// What to give to `cargo test` for a test: `crash::death::name`, or with the crate before it.
fn test_path(file: &str, function: &str) -> String {
    let module = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let (package, module) = match module.split_once("/src/") {
        Some((package, module)) => (package.rsplit('/').next().unwrap_or(package), module),
        None => ("", module.trim_start_matches("tests/it/")),
    };
    let path = format!("{}::{function}", module.replace('/', "::"));
    if package.is_empty() { path } else { format!("{package}: {path}") }
}

/// What people read.
fn page(tests: &Tests) -> String {
    let mut page = String::from(
        "# Faults and their tests\n\n\
         Every way for a job, a worker or a host to fail that the project's catalogue knows, with the tests that prove\n\
         what happens then. A test of the integration suite is run by its name: `cargo test -p procpool-tests --test it NAME`;\n\
         one with a crate before it belongs to that crate. This page is written by the test `faults::table`: after a change\n",
    );
    let _ = writeln!(
        page,
        "run it with `{REWRITE}=1`. Numbers that are missing here were never given."
    );
    for (section, faults) in SECTIONS {
        let _ = writeln!(page, "\n## {section}\n");
        for (number, title) in *faults {
            let _ = writeln!(page, "* **F-{number}** {title}");
            for test in tests.get(number).into_iter().flatten() {
                let _ = writeln!(page, "  * `{test}`");
            }
            for (_, reason) in NONE.iter().filter(|(none, _)| none == number) {
                let _ = writeln!(page, "  * No test: {reason}");
            }
            for (feature, _) in LATER.iter().filter(|(_, later)| later.contains(number)) {
                let _ = writeln!(page, "  * Later: {feature}");
            }
        }
    }
    page
}

/// Goal: no fault is forgotten: each has a test or a reason, never both, and no test names a fault that
/// there is not.
#[test]
fn every_fault_has_a_test_or_a_reason() {
    test(|| {
        let (tests, mut complaints) = covered();
        let all: BTreeSet<u32> = SECTIONS
            .iter()
            .flat_map(|(_, faults)| faults.iter().map(|(number, _)| *number))
            .collect();
        let later = LATER.iter().flat_map(|(_, numbers)| numbers.iter().copied());
        let excused: Vec<u32> = NONE.iter().map(|(number, _)| *number).chain(later).collect();
        for number in &all {
            let excuses = excused.iter().filter(|excused| *excused == number).count();
            match (tests.get(number), excuses) {
                (None, 0) => complaints.push(format!("F-{number}: neither test nor reason")),
                (Some(tests), 1..) => complaints.push(format!(
                    "F-{number}: has tests, so remove it from NONE or LATER in catalogue.rs: {tests:?}"
                )),
                (None, 2..) => complaints.push(format!("F-{number}: excused {excuses} times")),
                _ => {}
            }
        }
        let named = tests.keys().copied().chain(excused.iter().copied());
        let unknown: BTreeSet<u32> = named.filter(|number| !all.contains(number)).collect();
        complaints.extend(unknown.iter().map(|number| format!("F-{number}: no such fault")));
        let reasons = NONE.iter().map(|(_, reason)| reason);
        let sentences = reasons.chain(LATER.iter().map(|(feature, _)| feature));
        complaints.extend(
            sentences
                .filter(|text| !text.ends_with('.'))
                .map(|text| format!("no sentence: {text}")),
        );
        assert!(complaints.is_empty(), "{complaints:#?}");
    });
}

/// Goal: the page that people read says what the sources say.
#[test]
fn the_page_of_faults_is_up_to_date() {
    test(|| {
        let (tests, _) = covered();
        let page = page(&tests);
        println!("{page}");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("FAULTS.md");
        if std::env::var_os(REWRITE).is_some() {
            fs::write(&file, page).unwrap();
        } else {
            let old = fs::read_to_string(&file).unwrap_or_default();
            assert!(old == page, "FAULTS.md is out of date: run this test with {REWRITE}=1");
        }
    });
}

/// Goal: the scan itself sees a `Covers:` that covers nothing, and takes no other list's numbers.
#[test]
fn a_covers_line_before_something_else_is_noticed() {
    test(|| {
        let check = |source: &str| {
            let (mut tests, mut complaints) = (Tests::new(), Vec::new());
            // Put together, so that the scan of this file does not take them for its own.
            let source = source.replace("///COVERS", "/// Covers:");
            scan("tests/it/a/mod.rs", &source, &mut tests, &mut complaints);
            (tests, complaints.len())
        };
        let name = |number| Tests::from([(number, BTreeSet::from(["a::f".to_owned()]))]);
        let test = "///COVERS 7, F-3, X1\n#[test]\n#[expect(\nunused,\n)]\nfn f() {}";
        assert_eq!(check(test), (name(3), 0));
        assert_eq!(check("///COVERS F-3\nfn f<P: Pool>() {}\non_both_pools![e, f];"), (name(3), 0));
        assert_eq!(check("///COVERS 7\nfn f() {}"), (Tests::new(), 0));
        let wrong = [
            "///COVERS F-3\nfn f() {}",
            "///COVERS F-3\nstruct S;\n#[test]\nfn f() {}",
            "///COVERS F-three\n#[test]\nfn f() {}",
            "///COVERS F-3",
        ];
        for source in wrong {
            assert_eq!(check(source), (Tests::new(), 1), "{source}");
        }
    });
}
