"""One round of a Python pool, for peers.rs: the measures as JSON on standard output."""

import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor


def same(n):
    return n


class Executor:
    def __init__(self):
        self.pool = ProcessPoolExecutor(2)

    def submit(self, n):
        return self.pool.submit(same, n)

    def result(self, future):
        return future.result()

    def map(self, items):
        return self.pool.map(same, items)

    def end(self):
        self.pool.shutdown()


class Pool:
    def __init__(self):
        self.pool = multiprocessing.Pool(2)

    def submit(self, n):
        return self.pool.apply_async(same, (n,))

    def result(self, future):
        return future.get()

    def map(self, items):
        return self.pool.map(same, items)

    def end(self):
        self.pool.close()
        self.pool.join()


def micros(start):
    return (time.perf_counter() - start) * 1e6


def measure(make, effort):
    first, life = [], []
    for _ in range(effort["starts"]):
        start = time.perf_counter()
        pool = make()
        pool.result(pool.submit(0))
        first.append(micros(start))
        pool.end()
        start = time.perf_counter()
        pool = make()
        futures = [pool.submit(n) for n in range(2)]
        for future in futures:
            pool.result(future)
        pool.end()
        life.append(micros(start))

    pool = make()
    for future in [pool.submit(n) for n in range(100)]:
        pool.result(future)

    jobs = 0
    start = time.perf_counter()
    while jobs == 0 or time.perf_counter() - start < effort["seconds"]:
        for future in [pool.submit(n) for n in range(effort["batch"])]:
            pool.result(future)
        jobs += effort["batch"]
    jobs_rate = jobs / (time.perf_counter() - start)

    trips = []
    for n in range(effort["trips"]):
        start = time.perf_counter()
        pool.result(pool.submit(n))
        trips.append(micros(start))
    trips.sort()

    # The executor sends items one by one unless told otherwise, so a hundredth of them takes as long.
    items = effort["items"] // (100 if make is Executor else 1)
    start = time.perf_counter()
    assert sum(pool.map(range(items))) == items * (items - 1) // 2
    map_rate = items / (time.perf_counter() - start)
    pool.end()
    return {
        "jobs": jobs_rate,
        "trip": statistics.median(trips),
        "trip_p90": trips[len(trips) * 9 // 10],
        "map": map_rate,
        "first": statistics.median(first),
        "life": statistics.median(life),
    }


if __name__ == "__main__":
    makers = {"executor": Executor, "pool": Pool}
    print(json.dumps(measure(makers[sys.argv[1]], json.loads(sys.argv[2]))))
