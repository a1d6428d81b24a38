"""The threads of serving: lanes that run models for callers, and one that opens models without hurting those."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

_NICE = 10  # a tenth of the share of a thread that serves, where both want the same core


def open_lanes(count: int) -> ThreadPoolExecutor:
    """So many threads, all there already: one that was started by the opener would have its priority."""
    lanes = ThreadPoolExecutor(count, thread_name_prefix="lane")
    started = threading.Barrier(count + 1)
    for _ in range(count):
        lanes.submit(started.wait)
    started.wait()
    return lanes


def open_opener() -> ThreadPoolExecutor:
    """One thread of low priority; threads that are started from it have it too."""
    return ThreadPoolExecutor(1, thread_name_prefix="opener", initializer=_stand_back)


def _stand_back() -> None:
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
