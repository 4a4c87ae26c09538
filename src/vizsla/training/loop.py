"""The training loop.

An epoch is its steps, then: evaluate, record, keep the best, save, maybe stop. A step is: load,
forward, backward, update, record. Both can be read below in that order. A step is a pure
function of the weights, the optimiser and its own number (its chance is seeded from that), so a
run that was killed and resumed computes what an uninterrupted one would have.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from vizsla.data.loader import Batch
from vizsla.errors import DataError, Interrupted, SettingError, WorkError
from vizsla.models.freezing import set_training_mode
from vizsla.phases import phase
from vizsla.records import EpochRecord, SplitMetrics
from vizsla.training.checkpoint import Checkpoint, Progress
from vizsla.training.evaluation import DeviceSums, evaluate
from vizsla.training.events import StepFacts
from vizsla.training.optim import learning_rate
from vizsla.training.setup import Setup
from vizsla.training.stopping import Ended, StopRequest, stop_requests

# An epoch's end is saved if as many times what saving takes has gone by since the last time.
_SAVING_SHARE = 9


class Trainer:
    """Trains what a `Setup` holds, from the start or from its last checkpoint."""

    def __init__(self, setup: Setup) -> None:
        self._s = setup
        self._progress = Progress()
        self._sums = self._fresh_sums()
        self._saved_at, self._save_seconds, self._unsaved = -math.inf, 0.0, False

    def fit(self) -> Ended | None:
        """Train until the last epoch, early stopping, an observer's request, or a signal; why an
        observer ended it, or None.

        Raises `Interrupted` after a signal, with everything saved; `DataError` where no picture
        of a split decodes; `StorageError` where a checkpoint cannot be written.
        """
        self._resume()
        try:
            with stop_requests() as stop:
                self._s.observers.on_start(
                    self._s.facts(self._progress.epoch),
                    stop=stop,
                    parts=self._s.parts(self._progress.step),
                )
                while not self._finished() and (stop.ended is None or self._is_amid(stop)):
                    if self._train_epoch(stop):
                        self._close_epoch()
                    self._leave_if_asked(stop)
                    if stop.at_once:
                        break
                # Whoever asks to stop a training that is finished comes too late.
                ended = None if self._finished() else stop.ended
                if self._unsaved and (ended is None or ended.at_once):
                    self._save()
                self._leave_if_asked(stop)
                return ended
        finally:
            self._s.observers.on_end()

    def _is_amid(self, stop: StopRequest) -> bool:
        """Whether an epoch in progress is still to be ended: of a run that is taken up again."""
        return not stop.at_once and (self._progress.batch > 0 or self._progress.epoch == 0)

    def _train_epoch(self, stop: StopRequest) -> bool:
        """Whether the epoch's steps are all done, and nobody asked to leave after one of them."""
        setup, progress = self._s, self._progress
        setup.train_batches.epoch, setup.train_batches.first_batch = progress.epoch, progress.batch
        set_training_mode(setup.trained)
        every = setup.recipe.checkpoint_every
        started = time.perf_counter()
        for group, wait_seconds in self._groups():
            self._step(group, started, wait_seconds)
            progress.epoch_seconds += time.perf_counter() - started
            started = time.perf_counter()
            self._unsaved = True
            leaving = stop.at_once
            now = leaving or stop.signal_number is not None
            if now or stop.checkpoint or (every and progress.step % every == 0):
                stop.checkpoint = False
                self._save()
                self._leave_if_asked(stop)
            if leaving:
                return False
        if progress.batch == 0 or int(self._sums.state()["confusion"].sum()) == 0:
            raise DataError(
                "None of the training pictures could be decoded; corrupt_pictures.csv in the run "
                "says why for each."
            )
        return True

    def _step(self, group: list[Batch], started: float, wait_seconds: float) -> None:
        """One update from the pictures of `group`, a list of one batch or as many as accumulate."""
        setup, progress = self._s, self._progress
        rate = learning_rate(
            setup.recipe, setup.peak_rate, progress.step, setup.steps_per_epoch, setup.recipe.epochs
        )
        seed_chance(setup.recipe.seed, progress.step, setup.accelerator)
        pictures = sum(len(batch.labels) for batch in group)
        loss_sum = torch.zeros((), device=setup.accelerator.device)
        for number, batch in enumerate(group, start=1):
            setup.tell_problems(batch.problems)
            if len(batch.labels):
                last = number == len(group)
                loss_sum += self._accumulate(batch, share=len(batch.labels) / pictures, sync=last)
        if pictures:
            with phase("optimiser"):
                self._update(rate)
        progress.batch += len(group)
        progress.step += 1
        progress.epoch_wait_seconds += wait_seconds
        setup.observers.on_step(
            StepFacts(
                step=progress.step,
                epoch=progress.epoch + 1,
                step_in_epoch=-(-progress.batch // setup.recipe.accumulate),
                pictures=pictures,
                learning_rate=rate,
                loss=loss_sum,
                seconds=time.perf_counter() - started,
                wait_seconds=wait_seconds,
            )
        )

    def _accumulate(self, batch: Batch, share: float, sync: bool) -> torch.Tensor:
        """Add a batch's gradients, weighing `share` of the update; its loss times that share."""
        setup = self._s
        with phase("transfer"):
            labels = batch.labels.to(setup.accelerator.device, non_blocking=True)
            inputs, targets = setup.mixer(setup.inputs(batch.pixels), labels)
        with setup.gradient_sync(sync):
            with phase("forward"):
                logits = self._answer(inputs)
                loss: torch.Tensor = setup.loss(logits, targets)
            with phase("backward"):
                setup.accelerator.backward(loss * share)
        detached = loss.detach()
        self._sums.add(detached, logits.detach(), labels)
        return detached * share

    def _answer(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (pictures, classes) in float32."""
        try:
            logits: torch.Tensor = self._s.trained(inputs).float()
        except ValueError as error:  # batch norm's, of a batch that is or has become one
            if len(inputs) > 1:
                raise
            raise SettingError(
                "A batch of one picture cannot train this network's batch norm; set batch_size "
                f"above {self._s.recipe.batch_size}."
            ) from error
        return logits

    def _update(self, rate: float) -> None:
        setup = self._s
        for group in setup.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        if setup.recipe.clip_norm is not None:
            setup.accelerator.clip_grad_norm_(setup.trained.parameters(), setup.recipe.clip_norm)
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
        if setup.average is not None:
            setup.average.update(setup.network)

    def _close_epoch(self) -> None:
        setup, progress = self._s, self._progress
        train = self._sums.summed(setup.accelerator).summary()
        started = time.perf_counter()
        with phase("evaluation"):
            valid = self._validate()
        if not math.isfinite(train.loss) or not math.isfinite(valid.loss):
            raise WorkError(
                f"Training diverged: in epoch {progress.epoch + 1} the training loss is "
                f"{train.loss:g} and the validation loss {valid.loss:g}. Lower lr, set clip_norm, "
                "or look for broken labels; the best epoch so far is in checkpoints/best.pt."
            )
        better = self._note_value(valid)
        record = EpochRecord(
            epoch=progress.epoch + 1,
            step=progress.step,
            learning_rate=float(setup.optimizer.param_groups[0]["lr"]),
            train=train,
            valid=valid,
            train_seconds=progress.epoch_seconds,
            valid_seconds=time.perf_counter() - started,
            wait_seconds=progress.epoch_wait_seconds,
            pictures_per_second=train.pictures / max(progress.epoch_seconds, 1e-9),
            best=better,
        )
        setup.observers.on_epoch(record)
        if better and setup.accelerator.is_main_process:
            averaged = setup.average.module if setup.average is not None else None
            with phase("checkpoint"):
                setup.checkpoints.save_best(weights_of(averaged or setup.network))
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.epoch_seconds = progress.epoch_wait_seconds = 0.0
        self._sums = self._fresh_sums()
        self._unsaved = True
        if time.perf_counter() - self._saved_at >= _SAVING_SHARE * self._save_seconds:
            self._save()

    def _validate(self) -> SplitMetrics:
        setup = self._s
        evaluation = evaluate(
            setup.judged,
            setup.valid_loader,
            setup.inputs,
            len(setup.catalogue.classes),
            setup.accelerator,
            tell=setup.observers.on_judged,
        )
        setup.tell_problems(evaluation.problems)
        metrics = evaluation.sums.summary()
        if metrics.pictures == 0:
            raise DataError("None of the validation pictures could be decoded.")
        return metrics

    def _note_value(self, valid: SplitMetrics) -> bool:
        """Whether this epoch is the best so far, by the figure that the recipe monitors."""
        progress = self._progress
        figure = getattr(valid, self._s.recipe.monitor)
        value = -figure if self._s.recipe.monitor == "loss" else figure
        risen = progress.best_value is None or value > progress.best_value
        better = risen or (value == progress.best_value and valid.loss < progress.best_loss)
        if better:
            progress.best_value, progress.best_loss = value, valid.loss
            progress.best_epoch = progress.epoch + 1
        progress.epochs_without_better = 0 if risen else progress.epochs_without_better + 1
        return better

    def _finished(self) -> bool:
        patience = self._s.recipe.patience
        stale = patience is not None and self._progress.epochs_without_better >= patience
        return stale or self._progress.epoch >= self._s.recipe.epochs

    def _groups(self) -> Iterator[tuple[list[Batch], float]]:
        """The epoch's remaining batches by update, with the seconds spent waiting for them."""
        with phase("data_wait"):  # which starts the loader's processes
            batches = iter(self._s.train_loader)
        while True:
            started = time.perf_counter()
            with phase("data_wait"):
                accumulated = zip(range(self._s.recipe.accumulate), batches, strict=False)
                group = [batch for _, batch in accumulated]
            if not group:
                return
            yield group, time.perf_counter() - started

    def _save(self) -> None:
        setup = self._s
        if not setup.accelerator.is_main_process:
            return
        started = time.perf_counter()
        setup.observers.on_save()
        averaged = setup.average.module if setup.average is not None else None
        with phase("checkpoint"):
            setup.checkpoints.save_last(
                Checkpoint(
                    progress=self._progress,
                    sums=self._sums.state(),
                    network=weights_of(setup.network),
                    averaged=weights_of(averaged) if averaged is not None else None,
                    optimizer=setup.optimizer.state_dict(),
                )
            )
        self._saved_at, self._unsaved = time.perf_counter(), False
        self._save_seconds = self._saved_at - started

    def _resume(self) -> None:
        checkpoint = self._s.checkpoints.load_last()
        if checkpoint is None:
            return
        self._progress = checkpoint.progress
        if self._s.accelerator.is_main_process:  # they are of all processes together
            self._sums.load_state(checkpoint.sums)
        self._s.network.load_state_dict(checkpoint.network)
        self._s.optimizer.load_state_dict(checkpoint.optimizer)
        if self._s.average is not None and checkpoint.averaged is not None:
            self._s.average.module.load_state_dict(checkpoint.averaged)

    def _leave_if_asked(self, stop: StopRequest) -> None:
        if stop.signal_number is not None:
            if self._unsaved:
                self._save()
            raise Interrupted(
                stop.signal_number,
                f"Stopped after step {self._progress.step}; everything is saved.",
            )

    def _fresh_sums(self) -> DeviceSums:
        return DeviceSums(len(self._s.catalogue.classes), self._s.accelerator.device)


def seed_chance(seed: int, step: int, accelerator: Accelerator) -> None:
    """Seed every global generator for one step: dropout, MixUp and erasing draw from them."""
    entropy = [seed, 1, step, accelerator.process_index]
    state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    # Not torch.manual_seed, which without a GPU notes the call with its stack for later: almost
    # a millisecond a step, and memory that grows with them.
    torch.default_generator.manual_seed(state)
    if accelerator.device.type != "cpu":
        torch.get_device_module(accelerator.device).manual_seed(state)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's state dict on the host."""
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
