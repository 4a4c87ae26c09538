"""Every command and snippet of the README, run as it stands but on toy data and a toy network."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vizsla import open_run
from vizsla.cli import run
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder
from vizsla.tuning.study import Study

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = "runs/2026-11-21-103525-mobilenetv2_100"
DEBUGGED = "runs/2026-11-21-170430-mobilenetv2_100"
PROFILED = "runs/2026-11-21-203000-mobilenetv2_100"
STUDY = "studies/2026-11-21-133259-mobilenetv2_100"

# What a command of the README says, and what the test puts in its place to take seconds.
TOY = ["--model", "test_resnet", "--weights", "none", "--size-px", "64", "--epochs", "1"]
REPLACED = ("--model", "--weights", "--epochs", "--size-px", "--trials")


def code_lines(text: str) -> list[str]:
    return [line[4:].removeprefix("$ ") for line in text.splitlines() if line.startswith("    ")]


COMMANDS = [line for line in code_lines(README) if line.startswith("vizsla ")]


@pytest.fixture
def desk(
    tmp_path: Path, dogs: DrawnDataset, finished_run: RunFolder, debugged_run: RunFolder,
    profiled_run: RunFolder, finished_study: Study, monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A folder in which the README's names exist."""
    for name in ("dogImages", "pets5"):
        shutil.make_archive(str(tmp_path / name), "zip", dogs.folder)
    (tmp_path / "photos").symlink_to(dogs.folder)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    shutil.copytree(finished_run.path, tmp_path / RUN)
    shutil.copytree(debugged_run.path, tmp_path / DEBUGGED)
    shutil.copytree(profiled_run.path, tmp_path / PROFILED)
    (tmp_path / "count.py").write_text("print(sum(range(1000)))\n")
    shutil.copytree(finished_study.folder.path, tmp_path / STUDY)
    for name in ("A", "B"):
        (tmp_path / "runs" / name).symlink_to(finished_run.path)
    picture = next((dogs.folder / "test" / dogs.classes[0]).iterdir())
    for name in ("doberman.jpg", "american_bulldog_101.jpg"):
        shutil.copyfile(picture, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_block(beginning: str) -> str:
    """The snippet of the README that begins so."""
    block = re.search(rf"    {beginning} .*?\n\n", README, re.DOTALL)
    assert block is not None
    return "\n".join(line.removeprefix("    ") for line in block[0].splitlines())


def made_small(command: str) -> list[str]:
    words = shlex.split(command)[1:]
    if words[:2] == ["tune", "--resume"]:  # of six trials
        return [*words[:-1], "7"]
    if words[0] not in ("train", "tune") or "--resume" in words or "show" in words:
        return words
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in REPLACED and before not in REPLACED
    ]
    few = ["--trials", "2"] if words[0] == "tune" else []
    return [*kept, *TOY, "--workers", "0", *few]


def test_the_readme_has_commands_of_every_verb() -> None:
    verbs = {command.split()[1] for command in COMMANDS}
    assert verbs >= {"train", "tune", "report", "predict", "evaluate", "runs", "debug", "profile"}
    assert verbs >= {"export", "serve"}


@pytest.mark.parametrize("command", [one for one in COMMANDS if " serve " not in one])
def test_a_command_of_the_readme_works(
    command: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made_small(command)) == 0, capsys.readouterr().err


def test_the_python_of_the_readme_works(desk: Path) -> None:
    source = python_block("from vizsla import")
    toy = 'model="test_resnet", weights="none", size_px=64, workers=0, epochs=1'
    source, changes = re.subn(r'model="resnet18", epochs=5', toy, source)
    assert changes == 1
    exec(compile(source, "README.md", "exec"), {})


def test_the_server_of_the_readme_answers_its_curl_and_its_client(desk: Path) -> None:
    (command,) = (one for one in COMMANDS if " serve " in one)
    (curl,) = (line for line in code_lines(README) if line.startswith("curl "))
    shutil.copytree(desk / RUN / "bundle", desk / RUN / "bundle-int8")
    served = [sys.executable, "-m", "vizsla.cli", *shlex.split(command)[1:], "--port", "0"]
    with subprocess.Popen(served, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(line.split()[1] for line in server.stdout if line.startswith("address"))
        try:
            asked = shlex.split(curl.replace("http://127.0.0.1:8080", address))
            said = subprocess.run([*asked, "-sS"], capture_output=True, check=True).stdout
            names: dict[str, Any] = {}
            *others, last = python_block("from vizsla.serving import").strip().splitlines()
            source = "\n".join([*others, f"found = {last}"]).replace(
                "http://127.0.0.1:8080", address
            )
            exec(compile(source, "README.md", "exec"), names)
        finally:
            server.terminate()
    assert server.returncode == 0
    assert json.loads(said)["class_name"] == names["found"]


def test_the_loop_of_the_readme_is_watched(desk: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    names = {
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loader": [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))] * 3,
    }
    exec(compile(python_block("from vizsla.debugging import"), "README.md", "exec"), names)
    assert (desk / "runs" / "mine" / "tensors.jsonl").is_file()


def test_the_loop_of_the_readme_is_profiled(desk: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    names = {
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
        "loader": [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))] * 3,
    }
    exec(compile(python_block("from vizsla.profiling import"), "README.md", "exec"), names)
    assert len(open_run(desk / "runs" / "timed").profile.steps()) == 3


def test_the_demonstration_learns_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--folder", str(tmp_path)]) == 0  # 1 below 90 % validation accuracy
    printed = capsys.readouterr().out
    assert "is a Waffle_Shepherd" in printed
    assert str(tmp_path) in printed.replace("\n", "")
