"""Looking into trainings of all kinds, without changing one bit of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vizsla.debugging import Tensors, open_tensors, watch
from vizsla.debugging.reductions import Reduced

EVERYTHING = (
    "losses,weights,biases,gradients,inputs,outputs,labels,predictions,relu_input,relu_output,"
    "batch_norm"
)


class Small(nn.Module):
    """A network with in-place ReLU, batch norm and dropout, on 12-pixel pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, 4)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.relu(self.norm(self.conv(pictures))).mean(dim=(2, 3))
        logits: torch.Tensor = self.fc(self.drop(features))
        return logits


def batches(count: int = 12) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield (
            torch.randn(6, 3, 12, 12, generator=chance),
            torch.randint(0, 4, (6,), generator=chance),
        )


def made(kind: type[nn.Module] = Small) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = kind()
    return network, torch.optim.Adam(network.parameters(), 1e-2)


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    step: Callable[[], Any],
) -> None:
    for pictures, labels in batches():
        optimizer.zero_grad()
        loss_fn(network(pictures), labels).backward()
        optimizer.step()
        step()


def recorded(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any
) -> Tensors:
    loss_fn = nn.CrossEntropyLoss()
    chosen = {"rules": "none", "every": 4, "capture": EVERYTHING, **settings}
    with watch(network, folder, loss_fn=loss_fn, optimizer=optimizer, **chosen) as debugger:
        train(network, optimizer, loss_fn, debugger.step)
    return open_tensors(folder)


def test_training_gives_the_same_bits_with_and_without(tmp_path: Path) -> None:
    watched, optimizer = made()
    torch.manual_seed(5)
    recorded(tmp_path / "run", watched, optimizer, every=3, whole="weights", rules="default")
    next_number = torch.rand(1)
    plain, optimizer = made()
    torch.manual_seed(5)
    train(plain, optimizer, nn.CrossEntropyLoss(), lambda: None)
    assert torch.equal(next_number, torch.rand(1))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name


def test_no_hook_is_left_behind(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    debugger = watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, capture=EVERYTHING, every=1
    )

    def fail() -> None:
        with debugger:
            network(next(batches())[0])
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, fail)
    for module in (*network.modules(), loss_fn):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert '"failed"' in (tmp_path / "run" / "outcome.json").read_text()


def test_everything_is_recorded_under_the_names_that_people_know(tmp_path: Path) -> None:
    tensors = recorded(tmp_path / "run", *made())
    assert tensors.tensor_names(collection="losses")[0] == "CrossEntropyLoss_output_0"
    assert tensors.tensor_names(collection="weights") == ["conv.weight", "norm.weight", "fc.weight"]
    assert tensors.tensor_names(collection="biases") == ["conv.bias", "norm.bias", "fc.bias"]
    assert "gradient/conv.weight" in tensors.tensor_names(collection="gradients")
    assert tensors.tensor_names(collection="inputs") == ["Small_input_0"]
    assert tensors.tensor_names(collection="outputs") == ["Small_output_0"]
    assert tensors.tensor_names(collection="relu_output") == ["relu_output_0"]
    assert tensors.tensor("conv.weight").steps() == [0, 4, 8]
    assert tensors.tensor("CrossEntropyLoss_output_0").steps("train") == list(range(12))


def test_recorded_numbers_are_those_of_the_tensors(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]] = []
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1, rules="none"
    ) as debugger:
        for pictures, labels in batches(3):
            optimizer.zero_grad()
            loss = loss_fn(network(pictures), labels)
            loss.backward()
            before = network.conv.weight.detach().clone()
            gradient = network.conv.weight.grad.detach().clone()
            optimizer.step()
            seen.append((before, gradient, network.conv.weight.detach().clone(), loss.item()))
            debugger.step()
    tensors = open_tensors(tmp_path / "run")
    for step, (before, gradient, after, loss_value) in enumerate(seen):
        weight = tensors.tensor("conv.weight").reduction_values(step)
        assert weight["mean"] == pytest.approx(before.mean().item(), abs=1e-6)
        assert weight["variance"] == pytest.approx(before.var(correction=0).item(), rel=1e-4)
        change = (after - before).abs().mean() / before.abs().mean()
        assert weight["update"] == pytest.approx(change.item(), rel=1e-4)
        slope = tensors.tensor("gradient/conv.weight").reduction_values(step)
        assert slope["l2"] == pytest.approx(gradient.norm().item(), rel=1e-5)
        assert slope["abs_mean"] == pytest.approx(gradient.abs().mean().item(), rel=1e-5)
        assert slope["max"] == pytest.approx(gradient.max().item(), rel=1e-6)
        assert tensors.losses().values[step] == pytest.approx(loss_value, rel=1e-6)
    assert tensors.learning_rates().values.tolist() == [0.01] * 3


def test_in_place_relu_is_seen_before_it_overwrites(tmp_path: Path) -> None:
    tensors = recorded(tmp_path / "run", *made())
    assert tensors.tensor("relu_input_0").reduction_value(0, "min") < 0
    assert tensors.tensor("relu_output_0").reduction_value(0, "min") == 0
    steps, shares = tensors.units("relu_output_0")
    assert steps.tolist() == [0, 4, 8]
    assert shares.shape == (3, 8)
    assert 0 < shares.mean() < 1


class Shared(nn.Module):
    """One layer twice, one weight in two layers, and a layer that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.relu, self.head = nn.ReLU(), nn.Linear(5, 4)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        once = self.relu(self.first(pictures.mean(dim=(1, 2))[:, :5]))
        logits: torch.Tensor = self.head(self.relu(self.second(once)))
        return logits


def test_tied_unused_and_repeated_parts_are_told_apart(tmp_path: Path) -> None:
    tensors = recorded(tmp_path / "run", *made(Shared))
    assert "first.weight" in tensors.tensor_names()
    assert "second.weight" not in tensors.tensor_names()
    assert "unused.weight" in tensors.tensor_names(collection="weights")
    assert "gradient/unused.weight" not in tensors.tensor_names()
    assert tensors.tensor_names(collection="relu_output") == ["relu_output_0", "relu_output_1"]


class Checkpointed(Small):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        inner: Callable[[torch.Tensor], torch.Tensor] = lambda x: self.relu(  # noqa: E731
            self.norm(self.conv(x))
        )
        features = checkpoint(inner, pictures, use_reentrant=False).mean(dim=(2, 3))
        logits: torch.Tensor = self.fc(features)
        return logits


class Reentrant(Checkpointed):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        needy = pictures.requires_grad_()
        features = checkpoint(self._inner, needy, use_reentrant=True).mean(dim=(2, 3))
        logits: torch.Tensor = self.fc(features)
        return logits

    def _inner(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.relu(self.norm(self.conv(pictures)))
        return features


@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
def test_what_is_computed_again_in_the_backward_pass_is_recorded_once(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    tensors = recorded(tmp_path / "run", *made(kind))
    assert tensors.tensor_names(collection="relu_output") == ["relu_output_0"]
    assert len(tensors.losses()) == 12


def test_wrapped_networks_keep_their_own_names(tmp_path: Path) -> None:
    network, optimizer = made()
    tensors = recorded(tmp_path / "run", nn.DataParallel(network), optimizer)
    assert "conv.weight" in tensors.tensor_names()
    assert "relu_output_0" in tensors.tensor_names()


def test_compiled_network_is_seen_from_outside_and_says_so(
    tmp_path: Path, caplog_lines: list[str]
) -> None:
    network, optimizer = made()
    compiled = torch.compile(network, backend="eager")
    tensors = recorded(tmp_path / "run", compiled, optimizer)
    assert "gradient/conv.weight" in tensors.tensor_names()
    assert "Small_output_0" in tensors.tensor_names()
    assert tensors.tensor_names(collection="relu_output") == []
    assert any("compiled" in line for line in caplog_lines)


def test_mixed_precision_records_true_gradients(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn, scaler = nn.CrossEntropyLoss(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1, rules="none"
    ) as debugger:
        for pictures, labels in batches(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_fn(network(pictures), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            debugger.step()
    tensors = open_tensors(tmp_path / "run")
    assert tensors.tensor("gradient/fc.weight").reduction_value(1, "l2") < 10
    assert tensors.losses().values[0] < 10


def test_accumulated_gradients_are_recorded_when_they_are_whole(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    norms, losses = [], []
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1, rules="none"
    ) as debugger:
        given = list(batches(6))
        for pair in [given[0:3], given[3:6]]:
            optimizer.zero_grad()
            values = []
            for pictures, labels in pair:
                loss = loss_fn(network(pictures), labels)
                (loss / 3).backward()
                values.append(loss.item())
            norms.append(network.fc.weight.grad.norm().item())
            losses.append(sum(values) / 3)
            optimizer.step()
            debugger.step()
    tensors = open_tensors(tmp_path / "run")
    recorded_norms = tensors.matrix("l2", names=["gradient/fc.weight"]).values[:, 0]
    assert recorded_norms.tolist() == pytest.approx(norms, rel=1e-5)
    assert tensors.losses().values.tolist() == pytest.approx(losses, rel=1e-5)


def test_without_optimizer_and_loss_both_are_still_to_be_had(tmp_path: Path) -> None:
    network, optimizer = made()
    with watch(network, tmp_path / "run", every=1, rules="none") as debugger:
        for pictures, labels in batches(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(pictures), labels)
            loss.backward()
            optimizer.step()
            debugger.record_loss(loss)
            debugger.step()
    tensors = open_tensors(tmp_path / "run")
    assert len(tensors.losses()) == 3
    assert "gradient/conv.weight" in tensors.tensor_names()


def test_evaluation_counts_its_own_steps(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=2, rules="none"
    ) as debugger:
        for _ in range(2):
            network.train()
            train(network, optimizer, loss_fn, debugger.step)
            network.eval()
            with torch.no_grad():
                for pictures, labels in batches(3):
                    loss_fn(network(pictures), labels)
    tensors = open_tensors(tmp_path / "run")
    assert tensors.steps("train") == list(range(24))
    assert tensors.steps("eval") == list(range(6))
    assert [one.step for one in tensors.evaluations()] == [11, 23]
    assert len(tensors.answers("eval")) == 6 * 6


def test_prediction_is_a_mode_that_people_set(tmp_path: Path) -> None:
    network, _ = made()
    network.eval()
    with watch(
        network, tmp_path / "run", capture="outputs", rules="none", every={"predict": 1}
    ) as debugger:
        debugger.set_mode("PREDICT")
        for pictures, _labels in batches(2):
            network(pictures)
    assert open_tensors(tmp_path / "run").tensor("Small_output_0").steps("predict") == [0, 1]


def test_listed_steps_and_ranges_are_recorded_alone(tmp_path: Path) -> None:
    ranged = recorded(tmp_path / "a", *made(), every=None, steps="2:9:3")
    listed = recorded(tmp_path / "b", *made(), every=None, steps=[1, 7])
    assert ranged.tensor("conv.weight").steps() == [2, 5, 8]
    assert listed.tensor("conv.weight").steps() == [1, 7]


def test_whole_tensors_come_back_equal(tmp_path: Path) -> None:
    network, optimizer = made()
    start = network.fc.weight.detach().clone()
    tensors = recorded(tmp_path / "run", network, optimizer, whole=["fc.weight$", "outputs"])
    assert torch.equal(torch.from_numpy(tensors.tensor("fc.weight").value(0)), start)
    assert tensors.tensor("Small_output_0").value(4, mode="train").shape == (6, 4)
    assert set(tensors.tensor("fc.weight").values()) == {0, 4, 8}


def test_budget_ends_whole_tensors_and_says_so(tmp_path: Path, caplog_lines: list[str]) -> None:
    tensors = recorded(tmp_path / "run", *made(), whole="weights", half=True, budget_mb=0.0007)
    kept = tensors.tensor("conv.weight").values()
    assert list(kept) == [0]
    assert kept[0].dtype == "float16"
    assert sum("budget" in line for line in caplog_lines) == 1
    assert tensors.tensor("conv.weight").steps() == [0, 4, 8]


def test_failure_inside_is_told_once_and_training_goes_on(
    tmp_path: Path, caplog_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Reduced, "add", fail)
    tensors = recorded(tmp_path / "run", *made())
    told = [line for line in caplog_lines if "out of order" in line]
    assert len(told) == len(set(told)) > 0
    assert all("training goes on" in line for line in told)
    assert len(tensors.losses()) == 12


def test_pattern_that_matches_nothing_is_told_with_examples(
    tmp_path: Path, caplog_lines: list[str]
) -> None:
    recorded(tmp_path / "run", *made(), capture="losses,layer9.*")
    assert any("layer9" in line and "conv.weight" in line for line in caplog_lines)


def test_frozen_weights_are_left_out_unless_named(tmp_path: Path) -> None:
    network, optimizer = made()
    for parameter in network.conv.parameters():
        parameter.requires_grad_(False)
    names = recorded(tmp_path / "a", network, optimizer).tensor_names()
    assert "conv.weight" not in names
    network, optimizer = made()
    network.conv.requires_grad_(False)
    named = recorded(tmp_path / "b", network, optimizer, capture="conv.weight")
    assert "conv.weight" in named.tensor_names()


def test_optimiser_that_calls_its_closure_is_seen(tmp_path: Path) -> None:
    network, _ = made()
    network.eval()
    optimizer = torch.optim.LBFGS(network.fc.parameters(), max_iter=2)
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1, rules="none"
    ) as debugger:
        for pictures, labels in batches(3):

            def closure(pictures: Any = pictures, labels: Any = labels) -> torch.Tensor:
                optimizer.zero_grad()
                loss: torch.Tensor = loss_fn(network(pictures), labels)
                loss.backward()
                return loss

            optimizer.step(closure)
            debugger.step()
    tensors = open_tensors(tmp_path / "run")
    assert tensors.tensor("gradient/fc.weight").steps("train") == [0, 1, 2]
    assert tensors.losses().values[0] > tensors.losses().values[-1] - 5


def test_steps_are_in_order_and_whole(tmp_path: Path) -> None:
    tensors = recorded(tmp_path / "run", *made(), every=1)
    numbers = tensors.steps()
    assert all(later > earlier for earlier, later in pairwise(numbers))


@pytest.fixture
def caplog_lines() -> Iterator[list[str]]:
    """What the debugger has logged."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, keeper = logging.getLogger("vizsla"), Keeper()
    logger.addHandler(keeper)
    yield lines
    logger.removeHandler(keeper)


def test_steps_of_an_accumulation_wait_for_the_update(tmp_path: Path) -> None:
    """Where each batch is a step, gradients are recorded when the optimiser takes them."""
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    whole = []
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=4, rules="none"
    ) as debugger:
        for number, (pictures, labels) in enumerate(batches(12), start=1):
            loss_fn(network(pictures), labels).backward()
            if number % 3 == 0:
                whole.append(network.fc.weight.grad.norm().item())
                optimizer.step()
                optimizer.zero_grad()
            debugger.step()
    norms = open_tensors(tmp_path / "run").tensor("gradient/fc.weight")
    assert norms.steps() == [2, 5, 8]
    found = [norms.reduction_value(step, "l2") for step in norms.steps()]
    assert found == pytest.approx(whole[:3], rel=1e-5)


def test_parameters_of_an_idle_optimiser_are_seen_in_the_end(tmp_path: Path) -> None:
    network, optimizer = made()
    with watch(
        network, tmp_path / "run", loss_fn=nn.CrossEntropyLoss(), optimizer=optimizer, rules="none"
    ) as debugger:
        for pictures, _labels in list(batches(1)) * 70:
            network(pictures)
            debugger.step()
    assert open_tensors(tmp_path / "run").tensor("fc.weight").steps()


def test_network_can_be_copied_and_saved_while_it_is_watched(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1) as one:
        pictures, labels = next(batches())
        loss_fn(network(pictures), labels).backward()
        best = copy.deepcopy(network)
        torch.save(network, tmp_path / "network.pt")
        copy.deepcopy(loss_fn)
        best.train()
        best(pictures)
        one.step()
    assert len(open_tensors(tmp_path / "run").losses()) == 1


def test_network_compiled_in_place_is_left_whole(tmp_path: Path, caplog_lines: list[str]) -> None:
    network, optimizer = made()
    network.compile(backend="eager", fullgraph=True)
    tensors = recorded(tmp_path / "run", network, optimizer, capture="gradients,losses,relu_output")
    assert tensors.losses().steps.tolist() == list(range(12))
    assert "gradient/conv.weight" in tensors.tensor_names()
    assert any("compiled" in line for line in caplog_lines)


def test_part_that_is_compiled_keeps_its_name(tmp_path: Path) -> None:
    network, optimizer = made()
    network.conv = torch.compile(network.conv, backend="eager")
    names = recorded(tmp_path / "run", network, optimizer).tensor_names()
    assert "gradient/conv.weight" in names
    assert not [name for name in names if "_orig_mod" in name]


def test_evaluation_in_the_midst_of_a_step_is_none_of_training(tmp_path: Path) -> None:
    """Between the update and `step`, and of other networks by the same loss."""
    network, optimizer = made()
    loss_fn, average = nn.CrossEntropyLoss(), made()[0].eval()
    losses = []
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1, rules="none"
    ) as debugger:
        for pictures, labels in batches(4):
            network.train()
            optimizer.zero_grad()
            loss = loss_fn(network(pictures), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            network.eval()
            with torch.no_grad():
                loss_fn(network(1000 * pictures), labels)
                loss_fn(network(2000 * pictures), labels)
            debugger.step()
            with torch.no_grad():
                loss_fn(average(3000 * pictures), labels)
    tensors = open_tensors(tmp_path / "run")
    assert tensors.losses().values.tolist() == pytest.approx(losses, rel=1e-5)
    assert tensors.steps("eval") == list(range(12))
    assert [one.step for one in tensors.evaluations()] == [0, 1, 2, 3]


def test_modes_set_by_hand_do_not_mix(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1, rules="none"
    ) as debugger:
        for _ in range(2):
            debugger.set_mode("TRAIN")
            train(network, optimizer, loss_fn, debugger.step)
            debugger.set_mode("EVAL")
            for pictures, labels in batches(3):
                loss_fn(network(pictures), labels)
    tensors = open_tensors(tmp_path / "run")
    assert tensors.steps("train") == list(range(24))
    assert tensors.steps("eval") == list(range(6))


def test_steps_without_anything_recorded_are_counted(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=2,
        capture="gradients", rules="none",
    ) as debugger:  # fmt: skip
        for number, (pictures, labels) in enumerate(batches(6)):
            network.train()
            optimizer.zero_grad()
            loss_fn(network(pictures), labels).backward()
            optimizer.step()
            if number in (1, 3):
                network.eval()
                with torch.no_grad():
                    network(pictures)
            debugger.step()
    assert open_tensors(tmp_path / "run").steps("train") == [0, 2, 4]


def test_steps_called_in_an_evaluation_are_none_of_training(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, rules="none"
    ) as debugger:
        for _ in range(2):
            network.train()
            train(network, optimizer, loss_fn, debugger.step)
            network.eval()
            with torch.no_grad():
                for pictures, _labels in batches(3):
                    network(pictures)
                    debugger.step()
                for pictures, labels in batches(2):
                    loss_fn(network(pictures), labels)
                    debugger.step()
    tensors = open_tensors(tmp_path / "run")
    assert tensors.steps("train") == list(range(24))
    assert len(tensors.losses("eval")) == 4


def test_training_in_eval_mode_is_training(tmp_path: Path) -> None:
    network, optimizer = made()
    network.eval()
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=4, rules="none",
        capture="losses,weights,relu_output",
    ) as debugger:  # fmt: skip
        train(network, optimizer, loss_fn, debugger.step)
        with torch.no_grad():
            for pictures, labels in batches(2):
                loss_fn(network(pictures), labels)
    tensors = open_tensors(tmp_path / "run")
    assert tensors.steps("train") == list(range(12))
    assert tensors.steps("eval") == [0, 1]
    assert tensors.tensor("relu_output_0").steps("train")[-2:] == [4, 8]


def test_layers_that_are_unfrozen_later_are_recorded_from_then_on(tmp_path: Path) -> None:
    network, optimizer = made()
    network.conv.requires_grad_(False)
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, every=1, rules="none"
    ) as debugger:
        for number, (pictures, labels) in enumerate(batches(4)):
            if number == 2:
                network.conv.requires_grad_(True)
            optimizer.zero_grad()
            loss_fn(network(pictures), labels).backward()
            optimizer.step()
            debugger.step()
    tensors = open_tensors(tmp_path / "run")
    assert tensors.tensor("gradient/conv.weight").steps() == [2, 3]


def test_evaluations_go_on_counting_in_the_next_session(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    for first in (0, 3):
        with watch(
            network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, first_step=first,
            rules="none",
        ) as debugger:  # fmt: skip
            network.train()
            for pictures, labels in batches(3):
                loss_fn(network(pictures), labels).backward()
                optimizer.step()
                debugger.step()
            network.eval()
            with torch.no_grad():
                loss_fn(network(pictures), labels)
    assert open_tensors(tmp_path / "run").steps("eval") == [0, 1]


def test_labels_given_by_name_are_seen(tmp_path: Path) -> None:
    network, _ = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(network, tmp_path / "run", loss_fn=loss_fn, every=1, rules="none") as debugger:
        pictures, labels = next(batches())
        loss_fn(network(pictures), target=labels)
        debugger.step()
    assert open_tensors(tmp_path / "run").answers().labels.tolist() == labels.tolist()


def test_failure_that_loses_count_ends_the_capture(
    tmp_path: Path, caplog_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("lost count")

    monkeypatch.setattr("vizsla.debugging.pieces.Steps.end", fail)
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer) as debugger:
        train(network, optimizer, loss_fn, debugger.step)
        assert not network._forward_hooks
    assert sum("lost count" in line for line in caplog_lines) == 1


def test_long_evaluation_before_step_is_captured_as_seldom_as_any(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, rules="none",
        every={"train": 1, "eval": 5}, capture="losses,outputs",
    ) as debugger:  # fmt: skip
        pictures, labels = next(batches())
        loss_fn(network(pictures), labels).backward()
        optimizer.step()
        network.eval()
        with torch.no_grad():
            for pictures, labels in batches(12):
                loss_fn(network(pictures), labels)
        debugger.step()
    tensors = open_tensors(tmp_path / "run")
    assert tensors.tensor("Small_output_0").steps("eval") == [0, 5, 10]
    assert tensors.steps("eval") == list(range(12))


def test_targets_made_by_the_network_itself_leave_training_training(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.MSELoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, rules="none"
    ) as debugger:
        for pictures, _labels in batches(4):
            answers = network(pictures)
            with torch.no_grad():
                targets = network(pictures.flip(3))
            loss_fn(answers, targets).backward()
            optimizer.step()
            debugger.step()
    tensors = open_tensors(tmp_path / "run")
    assert tensors.losses("train").steps.tolist() == [0, 1, 2, 3]
    assert len(tensors.losses("eval")) == 0


def test_another_network_s_losses_are_steps_of_their_own(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn, average = nn.CrossEntropyLoss(), made()[0].eval()
    network.eval()
    with (
        watch(network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, rules="none"),
        torch.no_grad(),
    ):
        for one in (network, average):
            for pictures, labels in batches(2):
                loss_fn(one(pictures), labels)
    assert open_tensors(tmp_path / "run").losses("eval").steps.tolist() == [0, 1, 2, 3]


def test_predictions_without_a_loss_are_counted(tmp_path: Path) -> None:
    network, _ = made()
    network.eval()
    with (
        watch(
            network, tmp_path / "run", capture="outputs", rules="none", every={"predict": 4}
        ) as debugger,
        torch.no_grad(),
    ):
        debugger.set_mode("predict")
        for pictures, _labels in batches(9):
            network(pictures)
    assert open_tensors(tmp_path / "run").steps("predict") == [0, 4, 8]


def test_last_evaluation_is_not_lost(tmp_path: Path) -> None:
    network, optimizer = made()
    loss_fn = nn.CrossEntropyLoss()
    with watch(
        network, tmp_path / "run", loss_fn=loss_fn, optimizer=optimizer, rules="none",
        capture="gradients,predictions", every=1000, first_step=1,
    ):  # fmt: skip
        pictures, labels = next(batches())
        F.cross_entropy(network(pictures), labels).backward()
        optimizer.step()
        network.eval()
        with torch.no_grad():
            loss_fn(network(pictures), labels)
    assert len(open_tensors(tmp_path / "run").answers("eval")) == len(labels)
