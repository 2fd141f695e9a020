//! A test file that lacks the line `procpool::testing!();`.

use procpool::ProcessPool;

/// Goal: under libtest, too, a pool that could have no workers is refused, and the error names the line to add.
#[test]
fn the_error_names_the_line_to_add() {
    let error = ProcessPool::new().unwrap_err();
    assert!(error.is_init_missing());
    assert!(error.to_string().contains("procpool::testing!();"), "{error}");
}
