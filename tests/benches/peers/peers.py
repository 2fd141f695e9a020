"""One measurement of a Python pool, for the benchmark: the figure on standard output."""

import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor


def same(n):
    return n


def filled(n):
    return b"x" * n


class Executor:
    def __init__(self):
        self.pool = ProcessPoolExecutor(2)

    def submit(self, n, f=same):
        return self.pool.submit(f, n)

    def result(self, future):
        return future.result()

    def map(self, items):
        return self.pool.map(same, items)

    def end(self):
        self.pool.shutdown()


class Pool:
    def __init__(self, **settings):
        self.pool = multiprocessing.Pool(2, **settings)

    def submit(self, n, f=same):
        return self.pool.apply_async(f, (n,))

    def result(self, future):
        return future.get()

    def map(self, items):
        return self.pool.map(same, items)

    def end(self):
        self.pool.close()
        self.pool.join()


def micros(start):
    return (time.perf_counter() - start) * 1e6


def run(pool, jobs):
    for future in [pool.submit(n) for n in range(jobs)]:
        pool.result(future)


def warm(make):
    pool = make()
    run(pool, 100)
    return pool


def jobs(make, effort):
    pool = warm(make)
    done = 0
    start = time.perf_counter()
    while done == 0 or time.perf_counter() - start < effort["seconds"]:
        run(pool, effort["batch"])
        done += effort["batch"]
    rate = done / (time.perf_counter() - start)
    pool.end()
    return rate


def trips(make, effort):
    pool = warm(make)
    times = []
    for n in range(effort["trips"]):
        start = time.perf_counter()
        pool.result(pool.submit(n))
        times.append(micros(start))
    pool.end()
    return sorted(times)


def trip(make, effort):
    return statistics.median(trips(make, effort))


def trip_p90(make, effort):
    times = trips(make, effort)
    return times[len(times) * 9 // 10]


def map_rate(make, effort):
    # The executor sends items one by one unless told otherwise, so a hundredth of them takes as long.
    items = effort["items"] // (100 if make is Executor else 1)
    pool = warm(make)
    start = time.perf_counter()
    assert sum(pool.map(range(items))) == items * (items - 1) // 2
    rate = items / (time.perf_counter() - start)
    pool.end()
    return rate


def first(make, effort):
    times = []
    for _ in range(effort["starts"]):
        start = time.perf_counter()
        pool = make()
        pool.result(pool.submit(0))
        times.append(micros(start))
        pool.end()
    return statistics.median(times)


def life(make, effort):
    times = []
    for _ in range(effort["starts"]):
        start = time.perf_counter()
        pool = make()
        run(pool, 2)
        pool.end()
        times.append(micros(start))
    return statistics.median(times)


def fresh(make, effort):
    pool = make(maxtasksperchild=1)
    start = time.perf_counter()
    run(pool, effort["fresh"])
    rate = effort["fresh"] / (time.perf_counter() - start)
    pool.end()
    return rate


def argument(make, effort):
    data = filled(effort["bulk_bytes"])
    return bulk(make, effort, lambda pool: pool.submit(data, len))


def result(make, effort):
    return bulk(make, effort, lambda pool: pool.submit(effort["bulk_bytes"], filled))


def bulk(make, effort, submit):
    pool = warm(make)
    pool.result(submit(pool))
    start = time.perf_counter()
    for _ in range(effort["bulk_jobs"]):
        pool.result(submit(pool))
    rate = effort["bulk_jobs"] * effort["bulk_bytes"] / (time.perf_counter() - start)
    pool.end()
    return rate


if __name__ == "__main__":
    makers = {"executor": Executor, "pool": Pool}
    measures = {
        "jobs": jobs, "trip": trip, "trip-p90": trip_p90, "map": map_rate, "start": first, "life": life,
        "fresh": fresh, "argument": argument, "result": result,
    }
    print(measures[sys.argv[1]](makers[sys.argv[2]], json.loads(sys.argv[3])))
