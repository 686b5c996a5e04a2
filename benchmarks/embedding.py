"""What one detector takes over many calls: memory, descriptors, threads, time.

    python benchmarks/embedding.py BUNDLE
    python benchmarks/embedding.py BUNDLE --calls 10000 --threads 4 --opened

One process, one detector, images of noise, two reverse steps: what could leak does so with every
call, whatever their number. ``--threads`` lets as many threads share the detector; ``--opened``
opens and closes one for every hundred calls. The first tenth is for warming up; what grows after
it is growth.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from berdiff.runtime import Detector


def memory_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def held() -> tuple[float, int, int]:
    return memory_mib(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


class Load:
    """Calls, alone or from several threads."""

    def __init__(self, bundle: Path, threads: int, opened: bool) -> None:
        self.bundle, self.opened = bundle, opened
        self.detector = Detector.open(bundle, threads=1)
        self.settings = self.detector.settings(steps=2)
        pre = self.detector.bundle.manifest.preprocessing
        rng = np.random.default_rng(0)
        self.images = rng.random((8, 1, pre.channels, *pre.size), np.float32)
        self.expected = [self._score(number) for number in range(8)]
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.differing = 0
        self.lock = threading.Lock()

    def _score(self, number: int) -> float:
        found = self.detector.detect(self.images[number], [number], settings=self.settings)
        return float(found.score[0])

    def _one(self, number: int) -> None:
        if self._score(number % 8) != self.expected[number % 8]:
            with self.lock:
                self.differing += 1

    def run(self, calls: int) -> None:
        for start in range(0, calls, 100):
            list(self.pool.map(self._one, range(start, min(start + 100, calls))))
            if self.opened:
                self.detector.close()
                self.detector = Detector.open(self.bundle, threads=1)

    def close(self) -> None:
        self.pool.shutdown()
        self.detector.close()


def tenths(calls: int) -> Iterator[int]:
    done = 0
    for tenth in range(1, 11):
        yield calls * tenth // 10 - done
        done = calls * tenth // 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1, help="that share the detector")
    parser.add_argument("--opened", action="store_true", help="open anew every hundred calls")
    options = parser.parse_args()
    if options.calls < 10 or options.threads < 1:
        parser.error("expected 10 calls and 1 thread at least")

    load, done = Load(options.bundle, options.threads, options.opened), 0
    print("   calls   memory MiB   descriptors   threads   ms per call")
    memory = []
    for count in tenths(options.calls):
        start = time.perf_counter()
        load.run(count)
        spent, done = time.perf_counter() - start, done + count
        mib, descriptors, threads = held()
        memory.append(mib)
        each = 1000 * spent / count
        print(f"{done:8}{mib:13.1f}{descriptors:14}{threads:10}{each:14.2f}", flush=True)
    load.close()
    print(f"growth after the first tenth: {memory[-1] - memory[0]:+.1f} MiB")
    print(f"calls whose score differs from the first of its image: {load.differing}")


if __name__ == "__main__":
    main()
