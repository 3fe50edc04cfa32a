"""The workers: one thread loads, compiles and draws a first picture of each size while requests
wait; then each worker draws one request at a time.

    LOADING, WARMING | READY | DRAINING       or FAILED, with why
"""

import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from dit_cachegraph.api import check, request
from dit_cachegraph.serving.ask import Ask
from dit_cachegraph.serving.job import Done, Job, Step, Stopped, png_of
from dit_cachegraph.serving.limits import Limits, Refused
from dit_cachegraph.serving.studio import Painter, Preview, Studio

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("dit_cachegraph.serving")
_CANCELLED = "the request was cancelled"
_STOP_SECONDS = 3.0


class Stage(enum.Enum):
    """How far the server is."""

    LOADING = "loading the model"
    WARMING = "compiling, and drawing a first picture"
    READY = "ready"
    DRAINING = "stopping"
    FAILED = "failed"


class Pool:
    """Draws jobs in `num_workers` threads, in the order in which they came. `on_loaded` is called
    with what was loaded, before anything is drawn; `target` is that."""

    def __init__(
        self,
        studio: Studio,
        limits: Limits,
        num_workers: int,
        on_loaded: Callable[[object], None],
    ) -> None:
        self.studio, self.limits = studio, limits
        self.stage, self.failure = Stage.LOADING, ""
        self.target: object = None
        self._num_workers, self._on_loaded = num_workers, on_loaded
        # The cores are shared. Where a thread has another number, Dynamo compiles anew.
        self._num_threads = max(1, torch.get_num_threads() // num_workers)
        self._began = time.monotonic()
        self._lock = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._threads: list[threading.Thread] = []
        self._is_stopped = False
        self._last_seconds = 1.0

    def start(self) -> None:
        """Load the model in a thread of its own, and return at once."""
        self._begin(threading.Thread(target=self._warm_up, name="warm-up", daemon=True))

    def wait_until_warm(self) -> None:
        """Return once it draws.

        Raises:
            RuntimeError: the model can't be served.
        """
        with self._lock:
            self._lock.wait_for(lambda: self.stage not in (Stage.LOADING, Stage.WARMING))
        if self.stage is Stage.FAILED:
            raise RuntimeError(f"the model can't be served: {self.failure}")

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    @property
    def num_waiting(self) -> int:
        """Those whose turn hasn't come."""
        return len(self._waiting)

    def submit(self, job: Job) -> int:
        """Let a job wait for its turn; returns how many are before it.

        Raises:
            Refused: 503, where too many wait, or the server stops or has failed.
        """
        with self._lock:
            if self.stage is Stage.FAILED:
                raise Refused(503, f"the model can't be served: {self.failure}", 60)
            if self.stage is Stage.DRAINING:
                raise Refused(503, "the server stops: ask another one, or come again", 10)
            num_before = len(self._waiting)
            if num_before >= self.limits.max_waiting:
                seconds = self._last_seconds * num_before / self._num_workers
                told = f"{num_before} requests wait already, as many as may: come again"
                raise Refused(503, told, max(1, round(seconds)))
            self._waiting.append(job)
            self._lock.notify()
        return num_before

    def cancel(self, job_id: str) -> bool:
        """End a job wherever it is; False if there is none of that name."""
        with self._lock:
            found = next((j for j in (*self._waiting, *self._running) if j.id == job_id), None)
            if found is None:
                return False
            found.is_cancelled = True
            is_waiting = found in self._waiting
            if is_waiting:
                self._waiting.remove(found)
                self._lock.notify_all()
        if is_waiting:
            _end(found, Refused(409, _CANCELLED))
        return True

    def drain(self) -> None:
        """Take no more, and return once all is drawn, or it has taken too long."""
        with self._lock:
            self.stage = Stage.DRAINING
            is_idle = self._lock.wait_for(
                lambda: not self._waiting and not self._running, self.limits.drain_seconds
            )
            left = [] if is_idle else [*self._waiting, *self._running]
        for job in left:
            self.cancel(job.id)
        with self._lock:
            self._lock.notify_all()

    def stop(self) -> bool:
        """Draw no further, whatever was taken. True once no thread is at work; False where one
        still is after a moment, since it loads or compiles, or is within a step."""
        with self._lock:
            self.stage, self._is_stopped = Stage.DRAINING, True
            left = [*self._waiting, *self._running]
            self._lock.notify_all()
        for job in left:
            self.cancel(job.id)
        until = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _begin(self, thread: threading.Thread) -> None:
        self._threads.append(thread)
        thread.start()

    def _go_on(self, _: Preview) -> None:
        if self._is_stopped:
            raise Stopped

    def _warm_up(self) -> None:
        torch.set_num_threads(self._num_threads)
        try:
            self.target = self.studio.load()
            self._on_loaded(self.target)
            painters = [self.studio.painter() for _ in range(self._num_workers)]
            self._advance(Stage.WARMING)
            for ask in self.studio.samples():
                handle = request("warm-up")
                with handle:
                    picture = painters[0].paint(ask, self._go_on)
                handle.end()
                _check_size(picture, ask)
                check(self.target)
        except Stopped:
            return
        except Exception as error:
            log.exception("the model can't be served")
            self._fail(f"{type(error).__name__}: {error}")
            return
        self._advance(Stage.READY)
        for i, painter in enumerate(painters):
            name, args = f"painter {i}", (painter,)
            self._begin(threading.Thread(target=self._work, name=name, args=args, daemon=True))

    def _advance(self, stage: Stage) -> None:
        with self._lock:
            if self.stage is not Stage.DRAINING:
                self.stage = stage
            self._lock.notify_all()
        log.info("%s (%.0f s since the start)", stage.value, self.seconds)

    def _fail(self, why: str) -> None:
        with self._lock:
            self.stage, self.failure = Stage.FAILED, why
            jobs = list(self._waiting)
            self._waiting.clear()
            self._lock.notify_all()
        for job in jobs:
            _end(job, Refused(503, f"the model can't be served: {why}", 60))

    def _work(self, painter: Painter) -> None:
        torch.set_num_threads(self._num_threads)
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self.stage is Stage.DRAINING)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._running.add(job)
            began = time.monotonic()
            event = _drawn(painter, job)
            with self._lock:
                self._running.discard(job)
                self._last_seconds = time.monotonic() - began
                _end(job, event)
                self._lock.notify_all()


def _check_size(picture: "Image", ask: Ask) -> None:
    """Raises: ValueError, where a pipeline has rounded a size to one that it draws."""
    if ask.width is not None and picture.size != (ask.width, ask.height):
        width, height = picture.size
        raise ValueError(
            f"asked for {ask.width} x {ask.height} it draws {width} x {height}: give a size that "
            f"it draws, as --size {width}x{height}"
        )


def _drawn(painter: Painter, job: Job) -> Done | Refused:
    """What became of a job."""
    handle, num_seen = job.handle, 0

    def on_step(preview: Preview) -> None:
        nonlocal num_seen
        if job.is_cancelled:
            raise Stopped
        report = handle.report
        num_steps = report.num_hits + report.num_computed
        decisions = report.steps[len(report.steps) - (num_steps - num_seen) :]
        num_seen = num_steps
        job.tell(Step(preview, decisions))

    try:
        with handle:
            picture = painter.paint(job.ask, on_step)
        return Done(png_of(picture), handle.report)
    except Stopped:
        return Refused(409, _CANCELLED)
    except Exception:
        log.exception("request %s failed", job.id)
        return Refused(500, "the model failed; the server's log has why")


def _end(job: Job, event: Done | Refused) -> None:
    job.handle.end()
    job.tell(event)
