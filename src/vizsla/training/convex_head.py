"""The best linear head on kept features, by L-BFGS: no learning rate, no epochs.

A head alone on frozen features is a multinomial logistic regression, whose loss is convex: it has
one optimum for each weight decay. It is fitted on standardised features, so that one decay suits
all of them, along a path of decays from strong to weak, each from the optimum before it; the
smallest validation loss chooses, which tells neighbours apart where the accuracies of a few
hundred pictures do not. The standardisation is folded back into the head's weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from vizsla.errors import DataError, Interrupted, ModelError
from vizsla.phases import phase
from vizsla.records import EpochRecord, SplitMetrics
from vizsla.training.evaluation import DeviceSums
from vizsla.training.loop import weights_of
from vizsla.training.setup import Setup
from vizsla.training.stopping import Ended, stop_requests

# Of standardised features and mean loss; half a decade apart.
DECAYS = tuple(10 ** (-exponent / 2) for exponent in range(1, 13))
_ITERATIONS = 150
# Candidates after the best one that are tried before the path ends.
_PATIENCE = 3
_CHUNK = 4096


@dataclass
class _Split:
    """The head's inputs (pictures, features) in float32, and labels (pictures,)."""

    inputs: torch.Tensor
    labels: torch.Tensor


def fit_head(setup: Setup) -> Ended | None:
    """Fit the head of `setup`, whose features are kept, and save the best as a training would; why
    an observer ended it, or None.

    Each decay is told of as an epoch. Raises `ModelError` unless the head is one linear layer,
    `Interrupted` after a signal.
    """
    head = _linear_head(setup)
    started = time.perf_counter()
    with phase("fit"):
        train, valid = (_split(setup, head, name) for name in ("train", "valid"))
    least, worse = math.inf, 0
    try:
        with stop_requests() as stop:
            setup.observers.on_start(setup.facts(first_epoch=0), stop=stop, parts=setup.parts(0))
            for number, (decay, iterations) in enumerate(_path(setup, head, train), start=1):
                fitted = time.perf_counter()
                with phase("evaluation"):
                    figures = [_judge(setup, head, split) for split in (train, valid)]
                better = figures[1].loss < least
                least, worse = (figures[1].loss, 0) if better else (least, worse + 1)
                setup.observers.on_epoch(
                    EpochRecord(
                        epoch=number,
                        step=iterations,
                        learning_rate=0.0,
                        weight_decay=decay,
                        train=figures[0],
                        valid=figures[1],
                        train_seconds=fitted - started,
                        valid_seconds=time.perf_counter() - fitted,
                        wait_seconds=0.0,
                        pictures_per_second=figures[0].pictures / max(fitted - started, 1e-9),
                        best=better,
                    )
                )
                if better:
                    with phase("checkpoint"):
                        setup.checkpoints.save_best(weights_of(setup.network))
                if stop.signal_number is not None:
                    raise Interrupted(stop.signal_number, "Stopped; the fit begins again.")
                if worse >= _PATIENCE or stop.reason is not None:
                    break
                started = time.perf_counter()
            # The fit has no step to go on from, so that what it has come to is its end.
            return Ended(stop.reason, at_once=False) if stop.reason is not None else None
    finally:
        setup.observers.on_end()


def _path(setup: Setup, head: nn.Linear, train: _Split) -> Iterator[tuple[float, int]]:
    """Fit for one decay after the other; each, with the iterations so far, once `head` has it."""
    scale, shift = _standardisation(train.inputs, centred=head.bias is not None)
    weight = torch.zeros_like(head.weight, requires_grad=True)
    bias = torch.zeros(len(weight), device=weight.device, requires_grad=head.bias is not None)
    parameters = [weight, bias] if head.bias is not None else [weight]
    iterations = 0
    for decay in DECAYS:
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=_ITERATIONS,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def loss(optimizer: torch.optim.LBFGS = optimizer, decay: float = decay) -> torch.Tensor:
            optimizer.zero_grad()
            # ((x - shift) / scale) W' + b, without a standardised copy of x.
            scaled = weight / scale
            logits = train.inputs @ scaled.T + (bias - scaled @ shift)
            value: torch.Tensor = setup.loss(logits, train.labels)
            value = value + decay / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with phase("fit"):
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        iterations += int(optimizer.state[weight]["n_iter"])
        with torch.no_grad():
            head.weight.copy_(weight / scale)
            if head.bias is not None:
                head.bias.copy_(bias - head.weight @ shift)
        yield decay, iterations


def _standardisation(inputs: torch.Tensor, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Deviation and mean of each feature; a constant one keeps its scale."""
    deviation, mean = torch.std_mean(inputs, dim=0, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return scale, mean if centred else torch.zeros_like(mean)


def _linear_head(setup: Setup) -> nn.Linear:
    head = setup.network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"Solver lbfgs fits one linear layer, and the head of {type(setup.network).__name__} "
            f"is {type(head).__name__}; leave solver out to train in epochs."
        )
    return head


@torch.no_grad()
def _split(setup: Setup, head: nn.Linear, split: str) -> _Split:
    """What reaches the head when the tail computes the kept outputs of a split."""
    assert setup.features is not None
    assert setup.halves is not None
    kept = setup.features.whole(split)
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    setup.halves.tail.eval()
    try:
        for chunk in torch.split(kept.pixels, _CHUNK):
            setup.halves.tail(setup.inputs(chunk).float())
    finally:
        handle.remove()
    if len(kept.labels) == 0:
        name = {"train": "training", "valid": "validation"}[split]
        raise DataError(
            f"None of the {name} pictures could be decoded; corrupt_pictures.csv in the run says "
            "why for each."
        )
    if not seen or seen[0].ndim != 2:
        raise ModelError(
            f"Solver lbfgs needs one vector a picture before the head, which "
            f"{type(setup.network).__name__} has not; leave solver out to train in epochs."
        )
    return _Split(torch.cat(seen), kept.labels.to(seen[0].device))


@torch.no_grad()
def _judge(setup: Setup, head: nn.Linear, split: _Split) -> SplitMetrics:
    sums = DeviceSums(len(setup.catalogue.classes), split.labels.device)
    logits = head(split.inputs)
    sums.add(nn.functional.cross_entropy(logits, split.labels), logits, split.labels)
    return sums.summed().summary()
