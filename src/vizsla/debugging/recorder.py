"""Beside the training: a thread that writes what was captured, judges it and tells of findings.

The training's own thread hands pieces over and goes on. Judging takes no more than a two-hundredth
of the time; what cannot be written is told of once, and training goes on without.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vizsla.debugging.answers import AnswerPieces
from vizsla.debugging.judging import Judge
from vizsla.debugging.pieces import StepPieces
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.choosing import AnyRule
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensors import Tensors
from vizsla.findings import Finding
from vizsla.runs.folder import RunFolder

_BATCH, _BATCH_S = 32, 1.0  # steps that are handed over together, and the longest wait
_WAITING = 256  # batches that may wait for a slow disk; further ones are given up
_FLUSH: list[StepPieces] = []
_FLUSH_S, _POLL_S = 5.0, 0.25
_JUDGING_SHARE = 200
_PATIENCE_S, _CLOSING_S = 30.0, 120.0
# Rules look at this many of the last steps while training goes on; afterwards at all.
_JUDGED_STEPS = 10_000


class Recorder:
    """Records and judges one run from `start` to `close`.

    `tell` is called with each new finding and `report` with whatever failed, both in the
    recorder's own thread.
    """

    def __init__(
        self,
        run: RunFolder,
        rules: Sequence[AnyRule],
        tell: Callable[[Finding], None],
        report: Callable[[str], None],
        rank: int = 0,
        tensorboard: Path | None = None,
    ) -> None:
        self._run, self._rank, self._tell, self._report = run, rank, tell, report
        self._judge = Judge(rules, run) if rules else None
        self._tensorboard_folder = tensorboard
        self._queue: queue.Queue[list[StepPieces] | threading.Event | None] = queue.Queue(_WAITING)
        self._batch: list[StepPieces] = []
        self._given_up = 0
        self._thread = threading.Thread(target=self._work, name="vizsla-debugger", daemon=True)
        self._failed = False
        self._begun = self._flushed = self._judged = time.monotonic()
        self._judging_s = 0.0

    def start(self, first_step: int, capture: Mapping[str, Any]) -> None:
        """Begin a session. Raises `StorageError` where the run cannot be written."""
        self._writer = TensorWriter(self._run.path, first_step, capture, self._rank)
        self._tensors = Tensors(self._run.path, self._rank, _JUDGED_STEPS)
        self._board = None
        if self._tensorboard_folder is not None:
            from vizsla.debugging.tensorboard import TensorBoardFiles

            self._board = TensorBoardFiles(
                self._run.path,
                Tensors(self._run.path, self._rank, _JUDGED_STEPS),
                self._tensorboard_folder,
            )
        self._thread.start()

    @property
    def next_steps(self) -> dict[str, int]:
        """Steps of each mode but training that follow those of earlier sessions."""
        return self._writer.next_steps

    def take(self, pieces: StepPieces) -> None:
        """Hand a step over; never waits."""
        self._batch.append(pieces)
        late = pieces.time - self._batch[0].time > _BATCH_S
        if late or len(self._batch) >= _BATCH or pieces.has_tensors:
            self._hand_over()

    def flush(self) -> None:
        """Have everything so far written soon; does not wait."""
        self._hand_over()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(_FLUSH)

    def judge_now(self) -> None:
        """Wait until everything so far is judged, but not for ever; for when a moment counts less
        than an epoch."""
        if not self._thread.is_alive() or self._failed:
            return
        done = threading.Event()
        self._hand_over()
        with contextlib.suppress(queue.Full):
            self._queue.put(done, timeout=_PATIENCE_S)
            done.wait(_PATIENCE_S)

    @property
    def judging_is_cheap(self) -> bool:
        """Whether judging now would take less than a fiftieth of the time since the last time."""
        return time.monotonic() - self._judged > 50 * self._judging_s

    def close(self) -> None:
        """Write and judge what is left."""
        if self._thread.is_alive():
            self._hand_over()
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=_CLOSING_S)
            self._thread.join(_CLOSING_S)
            if self._thread.is_alive():  # a disk that hangs, or a rule that does not end
                self._report(f"recording did not end within {_CLOSING_S:g} s; it is given up")
        lost, self._given_up = self._given_up, 0
        if lost:
            self._report(f"capture: {lost} steps came faster than they could be written")

    def _hand_over(self) -> None:
        batch, self._batch = self._batch, []
        if not batch or self._failed:
            return
        try:
            self._queue.put_nowait(batch)
        except queue.Full:
            self._given_up += len(batch)

    def _work(self) -> None:
        ended = False
        try:
            while (item := self._next()) is not None:
                if isinstance(item, threading.Event):
                    self._settle(item)
                    continue
                for pieces in item:
                    self._writer.add(_record_of(pieces))
                self._flush_and_judge(urgent=item is _FLUSH)
            ended = True
            self._settle(threading.Event())
        except Exception as error:  # a full disk, or a fault of ours: training goes on
            self._failed = True
            self._report(f"recording ended, and training goes on. {type(error).__name__}: {error}")
            while not ended and (item := self._queue.get()) is not None:
                if isinstance(item, threading.Event):
                    item.set()
        finally:
            if self._board is not None:
                self._board.close()

    def _settle(self, done: threading.Event) -> None:
        """Write and judge everything, and say so whatever comes of it."""
        try:
            self._writer.flush()
            self._judge_anew()
        finally:
            done.set()

    def _next(self) -> list[StepPieces] | threading.Event | None:
        """What comes next; an empty list where nothing came for a while."""
        try:
            return self._queue.get(timeout=_POLL_S)
        except queue.Empty:
            return []

    def _flush_and_judge(self, urgent: bool) -> None:
        """If it is time: often at first, when much is wrong or nothing, then every few seconds,
        and for judging as seldom as its share of the time asks for."""
        now = time.monotonic()
        wait = min(_FLUSH_S, (now - self._begun) / 10)
        if urgent or now - self._flushed >= wait:
            self._writer.flush()
            self._flushed = now
        if now - self._judged >= max(_JUDGING_SHARE * self._judging_s, wait):
            self._judge_anew()

    def _judge_anew(self) -> None:
        begun = time.monotonic()
        if self._tensors.refresh() and self._judge is not None:
            record = TrainingRecord.of(self._run, self._tensors, running=True)
            for finding in self._judge.new_findings(record):
                self._tell(finding)
        if self._board is not None:
            self._board.update()
        self._judged = time.monotonic()
        self._judging_s = self._judged - begun


def _record_of(pieces: StepPieces) -> StepRecord:
    """The step as it is written: on the host, reduced to the end."""
    reduced = pieces.reduced
    arrays = reduced.arrays()
    arrays |= {f"units/{name}": _array(one.half()) for name, one in pieces.units.items()}
    arrays |= {f"whole/{name}": _array(one) for name, one in pieces.whole.items()}
    return StepRecord(
        mode=pieces.mode,
        step=pieces.step,
        time=pieces.time,
        rate=pieces.rate,
        losses={name: _mean(many) for name, many in pieces.losses.items()},
        labels=_listed(pieces.answers, "labels"),
        predictions=_listed(pieces.answers, "predictions"),
        confidences=_listed(pieces.answers, "confidences"),
        table=tuple(reduced.rows),
        arrays=arrays,
    )


def _mean(losses: Sequence[torch.Tensor]) -> float:
    return sum(float(one) for one in losses) / len(losses)


def _array(tensor: torch.Tensor) -> Any:
    return tensor.cpu().numpy()


def _listed(answers: Sequence[AnswerPieces], what: str) -> list[Any]:
    return [number for one in answers for number in getattr(one, what).tolist()]
