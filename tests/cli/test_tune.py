"""`vizsla tune`, `tune show`, `report` and `job` as typed: what they print, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vizsla.cli import run as cli
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder
from vizsla.tuning.study import Study, open_study

TOY = [
    "--model", "test_resnet", "--weights", "none", "--size-px", "64", "--unfreeze", "head",
    "--epochs", "2", "--workers", "0",
]  # fmt: skip


def test_a_study_prints_its_trials_and_its_result(
    dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(
        'lr = 1e-3\nnesterov = true\n[search]\nlr = "1e-4..1e-1:log"\noptimizer = ["sgd"]\n'
    )
    code = cli(
        ["tune", str(dogs.folder), "--recipe", str(tmp_path / "recipe.toml"), *TOY,
         "--studies", str(tmp_path / "studies"), "--trials", "2", "--search",
         "batch_size=8,16", "hflip=0..0.5"]
    )  # fmt: skip
    output = capsys.readouterr()
    assert code == 0, output.err
    (path,) = (tmp_path / "studies").iterdir()
    study = open_study(path)
    assert set(study.space) == {"lr", "optimizer", "batch_size", "hflip"}
    lines = output.out.splitlines()
    assert lines[0] == f"study     {path}"
    assert sum(line.startswith("trial 0 ") for line in lines) == 2
    assert "of 2 trials over" in output.out
    assert f"{study.best.values['accuracy']:.4f}" in output.out
    for place in ("best.toml", "bundle", "leaderboard.csv"):
        assert str(path / place) in output.out
    assert cli(["train", str(dogs.folder), "--recipe", str(path / "best.toml"),
                "--runs", str(tmp_path / "runs")]) == 0  # fmt: skip
    assert cli(["runs", "list", "--runs", str(path / "trials")]) == 0
    assert "trained" in capsys.readouterr().out


def test_show_and_report_read_a_study(
    finished_study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished_study.folder.path
    assert cli(["tune", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" finished") == 6
    assert cli(["report", str(path)]) == 0
    assert str(path / "report.html") in capsys.readouterr().out
    assert "<title>" in (path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "lrr=1..2"], "Did you mean lr?"),
        (["--search", "lr=1e-3..1e-2", "--lr", "0.1"], "leave one of them out"),
        ([], "Nothing to search"),
        (["--search", "lr=1e-3..1e-2", "--timeout", "soon"], "must be a time"),
        (["--search", "lr=1e-3..1e-2", "--sampler", "grid"], "has no end"),
        (["--search", "lr=1e-3..1e-2", "--objective", "speed"], "objective"),
        (["--search", "lr=1e-3..1e-2", "--storage", "here"], "a database's address"),
        (["--search", "lr=1e-3..1e-2", "--recipe", "nowhere.toml"], "does not exist"),
        (["--resume", "studies/none"], "leave out the pictures"),
        (["--search", "model=test_resnet,test_vit", "--screen", "2"], "screen is 2"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    arguments: list[str], words: str, dogs: DrawnDataset, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = cli(["tune", str(dogs.folder), "--studies", str(tmp_path / "studies"), *arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "studies").exists()


def test_what_is_no_study_is_told_so(
    finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["tune", "show"], ["tune", "--resume"]):
        assert cli([*command, str(tmp_path)]) == 2
        assert "is not a study" in capsys.readouterr().err
    assert cli(["tune", "show", str(finished_run.path)]) == 2
    assert "It is a run" in capsys.readouterr().err


def test_a_job_is_a_training_written_down(
    dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {
        "verb": "train",
        "data": str(dogs.folder),
        "recipe": {"model": "test_resnet", "weights": "none", "size_px": 64, "epochs": 1,
                   "unfreeze": "all", "workers": 0},
        "folder": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    for _ in range(2):  # done twice it is done once
        assert cli(["job", str(tmp_path / "job.json")]) == 0, capsys.readouterr().err
    run = RunFolder.open(tmp_path / "run")
    assert run.status() == "finished"
    assert len(run.epochs()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("[]", "a JSON object"),
        ("{}", "nothing of data"),
        ('{"data": "a", "recipe": {}, "folder": "b", "datta": 1}', "Did you mean data?"),
        ('{"data": 1, "recipe": {}, "folder": "b"}', "data is 1"),
        ('{"data": "a", "recipe": {"lrr": 1}, "folder": "b"}', "Did you mean lr?"),
        ('{"data": "a", "recipe": {}, "folder": "b", "cores": 0}', "cores is 0"),
        ('{"data": "a", "recipe": {}, "folder": "b", "verb": "fly"}', "only train"),
    ],
)
def test_what_is_no_job_is_told_in_a_sentence(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(text)
    assert cli(["job", str(tmp_path / "job.json")]) == 2
    assert words in capsys.readouterr().err
