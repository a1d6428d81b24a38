"""Runs of models under watch: what runs now and since when, what went wrong lately, and an end to a run that hangs.

ONNX Runtime looks at `RunOptions.terminate` between two operators, in the bodies of loops too. A run that sits inside
one operator ends when that does.
"""

import threading
import time
import weakref

import onnxruntime as ort

# On the event loop only runs below plan.INLINE_BATCH_S are planned: one that takes this long stops the whole process.
INLINE_LIMIT_S = 1.0
_CHECKS = 8  # in the shortest limit
_FATAL = 4  # ONNX Runtime's level: errors are raised, and strangers' values must not fill the log


class _Running:
    """A run under way."""

    __slots__ = ("ended", "options", "started", "thread")

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        self.options.log_severity_level = _FATAL
        self.thread = threading.get_ident()
        self.started = time.perf_counter()
        self.ended = False


class RunWatch:
    """The runs of one model, in whichever thread.

    `limit_s` is for a run in a lane, INLINE_LIMIT_S for one in `loop_thread`.
    """

    def __init__(self, limit_s: float, loop_thread: int) -> None:
        self._limit_s = limit_s
        self._loop_thread = loop_thread
        self._running: set[_Running] = set()
        self._sessions: list[weakref.ref[object]] = []
        self.good_at = time.perf_counter()  # end of the last run that gave an answer
        self.failures = 0  # runs in a row that failed, other than by their values
        self.ended = 0  # runs that were ended because they took too long
        self.ended_inline = threading.Event()  # one of them on the event loop

    def opened(self, session: object) -> None:
        """The model has one more session."""
        self._sessions.append(weakref.ref(session))

    def freed(self) -> bool:
        """True once the model's sessions are gone: a lane's thread lets go of one a moment after its last answer."""
        return all(session() is None for session in self._sessions)

    def begin(self) -> _Running:
        """A run begins in this thread; its `options` are to be given to ONNX Runtime."""
        run = _Running()
        self._running.add(run)
        return run

    def finish(self, run: _Running) -> None:
        """The run is over, well or not."""
        self._running.discard(run)

    def good(self) -> None:
        """A run gave an answer."""
        self.failures = 0
        self.good_at = time.perf_counter()

    def end_overdue(self, now: float) -> None:
        """Tell the runs that take too long to end; called from the limiter's thread."""
        for run in self._running.copy():
            inline = run.thread == self._loop_thread
            if not run.ended and now - run.started > (min(INLINE_LIMIT_S, self._limit_s) if inline else self._limit_s):
                if inline:
                    self.ended_inline.set()
                self.ended += 1
                run.ended = run.options.terminate = True


class RunLimiter:
    """A thread that ends overdue runs: the event loop cannot, as it may be where one hangs."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._watches: dict[int, weakref.ref[RunWatch]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._check, name="run limiter", daemon=True)
        self._thread.start()

    def watch(self, loop_thread: int) -> RunWatch:
        """A watch for a model that is about to be loaded; it ends with the model."""
        watch = RunWatch(self._limit_s, loop_thread)
        key = id(watch)
        self._watches[key] = weakref.ref(watch, lambda _: self._watches.pop(key, None))
        return watch

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def _check(self) -> None:
        every_s = min(self._limit_s, INLINE_LIMIT_S) / _CHECKS
        while not self._stop.wait(every_s):
            now = time.perf_counter()
            for reference in list(self._watches.values()):
                if watch := reference():
                    watch.end_overdue(now)
