use procpool::*;
fn is_prime(n: u64) -> bool {
    if n < 2 {
        return false;
    }
    if n % 2 == 0 {
        return n == 2;
    }
    let mut i = 3;
    while i * i <= n {
        if n % i == 0 {
            return false;
        }
        i += 2;
    }
    true
}
fn add1(n: u64) -> u64 {
    n + 1
}
fn segv(n: u64) -> u64 {
    if n % 1000 == 7 {
        std::process::abort()
    }
    n
}
fn main() {
    procpool::init();
    let t = std::time::Instant::now();
    let pool = ProcessPool::builder().workers(2).build().unwrap();
    println!(
        "{:?}",
        pool.submit(is_prime, 112_272_535_095_293_u64).result()
    );
    println!("first {:?} {:?}", t.elapsed(), pool.stats());
    for round in 0..3 {
        let t = std::time::Instant::now();
        let n = 1_000_000;
        let f: Vec<_> = (0..n).map(|i| pool.submit(add1, i)).collect();
        let sub = t.elapsed();
        let mut sum = 0;
        for (i, f) in f.into_iter().enumerate() {
            let v = f.result().unwrap();
            assert_eq!(v, i as u64 + 1);
            sum += v;
        }
        println!(
            "{round} submit {n} in {sub:?}, all {:?} => {:.0}/s {sum}",
            t.elapsed(),
            n as f64 / t.elapsed().as_secs_f64()
        );
    }
    let t = std::time::Instant::now();
    let n = 5_000_000u64;
    let s: u64 = pool.map(add1, 0..n).map(|r| r.unwrap()).sum();
    println!("map {:.0}/s {s}", n as f64 / t.elapsed().as_secs_f64());
    let mut rt: Vec<_> = (0..2000)
        .map(|i| {
            let t = std::time::Instant::now();
            pool.submit(add1, i).result().unwrap();
            t.elapsed()
        })
        .collect();
    rt.sort();
    println!("rt median {:?} p90 {:?}", rt[1000], rt[1800]);
    let mut ok = 0;
    let mut bad = 0;
    for (i, r) in pool.map(segv, 0..10_000).chunk_size(100).enumerate() {
        match r {
            Ok(v) => {
                assert_eq!(v, i as u64);
                ok += 1
            }
            Err(e) => {
                if bad == 0 {
                    println!("{e}")
                }
                bad += 1
            }
        }
    }
    println!("{ok} ok {bad} bad {:?}", pool.stats());
    println!("{pool:?} {:?}", pool.workers());
    let f = pool
        .job(|_: ()| loop {}, ())
        .timeout(std::time::Duration::from_millis(100))
        .name("spin")
        .submit();
    println!("{}", f.result().map(|_: ()| ()).unwrap_err());
    drop(pool);
    println!("{:?}", t.elapsed());
}
