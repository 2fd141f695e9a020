//! The tests are in `it/`, the fault programs in `workers/`, the benchmark in `benches/`.
