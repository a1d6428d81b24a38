"""The threads of serving: lanes that run models for callers, and one that opens models without hurting those."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

# A lane gets a third of the event loop's share where both want the same core: requests are read and refused first.
_LANE_NICE = 5
_OPENER_NICE = 10  # a third of a lane's


def open_lanes(count: int) -> ThreadPoolExecutor:
    """So many threads, all there already: one that was started by the opener would have its priority."""
    lanes = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=_stand_back, initargs=(_LANE_NICE,))
    started = threading.Barrier(count + 1)
    for _ in range(count):
        lanes.submit(started.wait)
    started.wait()
    return lanes


def open_opener() -> ThreadPoolExecutor:
    """One thread of low priority; threads that are started from it have it too."""
    return ThreadPoolExecutor(1, thread_name_prefix="opener", initializer=_stand_back, initargs=(_OPENER_NICE,))


def _stand_back(nice: int) -> None:
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(nice)  # of this thread alone, on Linux
