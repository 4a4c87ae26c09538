"""The page for users of SageMaker Debugger: everything that it says to write here is run."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import vizsla
from vizsla.cli import run
from vizsla.data.synthetic import DrawnDataset
from vizsla.debugging import Debugger, create_trial, modes, watch
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.choosing import choose_rules

PAGE = (
    Path(__file__).resolve().parents[2] / "docs" / "migrating-from-sagemaker-debugger.md"
).read_text(encoding="utf-8")
# Code in the first column of SageMaker's names is theirs, in the second ours, and so is what begins
# like this among the words on what differs.
OURS = ("vizsla ", "vizsla.", "watch(", "create_trial(", "trial.", "debugger.")
# What the page's later calls of `watch` leave out.
HOOKED = "loss_fn=criterion, optimizer=optimizer"
BUILT_IN = {
    "vanishing_gradient", "exploding_tensor", "dead_relu", "saturated_activation",
    "poor_weight_initialization", "weight_update_ratio", "all_zero", "tensor_variance",
    "unchanged_tensor", "loss_not_decreasing", "overfit", "overtraining", "class_imbalance",
    "confusion", "check_input_images", "similar_across_runs", "stalled_training_rule",
}  # fmt: skip
TOY = [
    "--model", "test_resnet", "--weights", "none", "--unfreeze", "all", "--size-px", "32",
    "--epochs", "1", "--workers", "0", "--precision", "fp32",
]  # fmt: skip


class Row(NamedTuple):
    table: str
    theirs: str
    ours: str
    differs: str


def rows() -> Iterator[Row]:
    table = ""
    for before, line in zip(["", *PAGE.splitlines()], PAGE.splitlines(), strict=False):
        if line.startswith("|---"):
            table = before.split("|")[1].strip()
        elif line.startswith("| ") and " | vizsla | " not in line:
            cells = re.split(r" \|(?: |$)", line.removeprefix("| "))
            yield Row(table, *cells[:3])


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def snippets() -> Iterator[str]:
    for row in rows():
        if row.table != "rule_configs":
            yield from code_in(row.ours)
        yield from (one for one in code_in(row.differs) if one.startswith(OURS))


SNIPPETS = list(dict.fromkeys(snippets()))
COMMANDS = [one for one in SNIPPETS if one.startswith("vizsla ")]
PYTHON = [one for one in SNIPPETS if not one.startswith("vizsla ")]
RULES = [one for row in rows() if row.table == "rule_configs" for one in code_in(row.ours)]


def block(beginning: str) -> str:
    """The indented block that begins so."""
    lines = PAGE[PAGE.index(f"    {beginning}") :].splitlines()
    kept = []
    for line in lines:
        if line and not line.startswith("    "):
            break
        kept.append(line.removeprefix("    "))
    return "\n".join(kept)


IMPORTS = block("import vizsla\n")
OWN_RULE = block("from vizsla.debugging import DebugRule")
LOOP = block("with watch(model")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.relu(self.conv1(pictures)).mean(dim=(2, 3)))
        return logits


def made() -> dict[str, Any]:
    torch.manual_seed(0)
    model = Network()
    return {
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loader": [(torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,))) for _ in range(25)],
    }


def train(names: dict[str, Any], debugger: Debugger, steps: int = 25) -> None:
    model, criterion, optimizer = names["model"], names["criterion"], names["optimizer"]
    for number, (pictures, labels) in enumerate(names["loader"][:steps]):
        optimizer.zero_grad()
        criterion(model(pictures), labels).backward()
        optimizer.step()
        debugger.step()
        if number % 10 == 9:
            model.eval()
            with torch.no_grad():
                criterion(model(pictures), labels)
            model.train()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small recording with everything that the page asks for. Do not change it."""
    folder, names = tmp_path_factory.mktemp("recorded") / "mine", made()
    settings: dict[str, Any] = {"every": 10, "whole": "fc.weight", "rules": "all"}
    with watch(
        names["model"], folder, loss_fn=names["criterion"], optimizer=names["optimizer"], **settings
    ) as debugger:
        train(names, debugger)
    return folder


@pytest.fixture
def desk(
    recorded: Path, dogs: DrawnDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder in which the page's names exist."""
    (tmp_path / "photos").symlink_to(dogs.folder)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(recorded)
    (tmp_path / "my_rules.py").write_text(OWN_RULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_every_built_in_rule_is_on_the_page() -> None:
    named = [code_in(row.theirs)[0] for row in rows() if row.table == "rule_configs"]
    assert set(named) == BUILT_IN
    assert len(RULES) == len(named) == len(BUILT_IN)


def test_the_page_has_code_of_every_kind() -> None:
    assert len(COMMANDS) > 15
    assert len(PYTHON) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_the_right_works(
    command: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)[1:]
    toy = TOY if words[0] == "train" else []
    assert run([*words, *toy]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_on_the_right_judges(
    rule: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["debug", "runs/mine", "--rule", rule]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("snippet", PYTHON)
def test_python_on_the_right_works(snippet: str, desk: Path, recorded: Path) -> None:
    names = made()
    exec(IMPORTS, names)
    names |= {
        "folder": desk / "new" if snippet.startswith("watch(") else recorded,
        "trial": create_trial(recorded),
        "record": TrainingRecord.read(recorded),
        "LargeGradient": runpy.run_path("my_rules.py")["LargeGradient"],
    }
    if snippet.startswith("debugger."):
        with watch(names["model"], desk / "new") as debugger:
            eval(snippet, {**names, "debugger": debugger})
        return
    if " import " in snippet:
        exec(snippet, names)
        return
    if "loss_fn" not in snippet:
        snippet = snippet.replace("watch(model, folder", f"watch(model, folder, {HOOKED}")
    value = eval(snippet, names)
    if isinstance(value, Debugger):
        with value:
            train(names, value, steps=3)
        assert vizsla.open_run(desk / "new").tensors.steps("train") == [0, 1, 2]


def test_the_loop_on_the_page_records(desk: Path) -> None:
    names = {**made(), "folder": desk / "new", "watch": watch}
    exec(LOOP, names)
    assert len(vizsla.open_run(desk / "new").tensors.losses()) == 25


def test_rule_of_the_page_finds_large_gradients(recorded: Path, desk: Path) -> None:
    found = vizsla.debug(recorded, "my_rules.py:LargeGradient:limit=0.001")
    assert {one.rule for one in found} == {"large_gradient"}
    assert not vizsla.debug(recorded, "my_rules.py:LargeGradient:limit=1000")


def test_steps_are_numbered_as_the_page_says(recorded: Path) -> None:
    trial = create_trial(recorded)
    weight = trial.tensor("fc.weight")
    assert trial.steps() == list(range(25))
    assert trial.steps(mode=modes.GLOBAL) == list(range(27))  # with 2 of evaluation
    assert trial.steps(mode=modes.TRAIN) == list(range(25))
    assert weight.steps() == weight.steps(mode=modes.TRAIN) == [0, 10, 20]
    assert weight.steps(mode=modes.GLOBAL) == [0, 11, 22]
    assert weight.prev_steps(20, 2) == [10, 20]
    assert set(weight.values()) == {0, 10, 20}
    assert trial.modes() == ["train", "eval"]
    assert trial.loaded_all_steps


def test_rules_on_the_right_keep_the_defaults() -> None:
    given = {"only_nan", "regex", "collection", "max_threshold", "min_threshold", "num_steps"}
    given |= {"other_runs", "stop"}
    for text in RULES:
        (rule,) = choose_rules(text)
        changed = rule.model_dump(exclude_defaults=True)
        assert set(changed) <= given
