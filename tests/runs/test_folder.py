"""The run folder: made once, written by one, read by anyone at any time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vizsla.errors import InputError, RunError, StorageError
from vizsla.findings import Finding
from vizsla.records import EpochRecord, PictureProblem, SplitMetrics
from vizsla.runs import folder as folder_module
from vizsla.runs.folder import RunFolder, list_runs

NOW = datetime(2026, 11, 21, 10, 30, 5)
FIGURES = SplitMetrics(loss=0.5, accuracy=0.75, top5_accuracy=1.0, macro_f1=0.7, pictures=8)


def _epoch(number: int, step: int = 3) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        step=step,
        learning_rate=0.01,
        train=FIGURES,
        valid=FIGURES,
        train_seconds=1.5,
        valid_seconds=0.5,
        wait_seconds=0.1,
        pictures_per_second=20.0,
        best=number == 1,
    )


def _finding(where: str, measured: float = 1.0) -> Finding:
    return Finding("imbalance", "warning", where, "It means this.", "Do that.", measured)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "runs", "test_resnet", NOW)
    made.write_facts({"recipe": {"epochs": 2}, "versions": {"vizsla": "9.9"}})
    return made


def test_name_tells_time_and_model(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "deep" / "runs", "hf/vit.../tiny model", NOW)
    assert run.name == "2026-11-21-103005-hf-vit...-tiny-model"
    assert run.checkpoints.is_dir()


def test_names_never_clash(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path, "resnet50", NOW).name for _ in range(3)]
    stem = "2026-11-21-103005-resnet50"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]


def test_parent_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match="could not be written"):
        RunFolder.create(tmp_path / "runs", "resnet50", NOW)


def test_folder_is_a_run_once_its_facts_are_written(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path, "resnet50", NOW)
    with pytest.raises(RunError, match=r"is not a run: it has no run\.toml"):
        RunFolder.open(made.path)
    assert list_runs(tmp_path) == []
    made.write_facts({"recipe": {"model": "resnet50"}})
    assert RunFolder.open(made.path) == made
    assert list_runs(tmp_path) == [made]
    assert made.facts()["recipe"] == {"model": "resnet50"}


def test_bundle_taken_for_a_run_is_told(finished_run: RunFolder) -> None:
    with pytest.raises(RunError, match="It looks like a bundle"):
        RunFolder.open(finished_run.bundle)


def test_run_of_another_version_is_told_with_who_wrote_it(run: RunFolder) -> None:
    text = (run.path / "run.toml").read_text()
    (run.path / "run.toml").write_text(text.replace("format_version = 1", "format_version = 7"))
    with pytest.raises(RunError, match=r"format version 7, .* reads version 1.*wrote it \(9\.9\)"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("content", [b"format_version = ", b"\xff\xfe\x00"])
def test_damaged_facts_are_told(run: RunFolder, content: bytes) -> None:
    (run.path / "run.toml").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.toml cannot be read"):
        RunFolder.open(run.path)


def test_epochs_come_back_as_they_were(run: RunFolder) -> None:
    assert run.epochs() == []
    for number in (1, 2):
        run.append_epoch(_epoch(number))
    assert run.epochs() == [_epoch(1), _epoch(2)]


def test_later_line_of_an_epoch_or_step_wins(run: RunFolder) -> None:
    for record in (_epoch(1), _epoch(2, step=5), _epoch(2, step=6)):
        run.append_epoch(record)
    assert [record.step for record in run.epochs()] == [3, 6]
    run.append_steps([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    run.append_steps([{"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}])
    assert [line["loss"] for line in run.steps()] == [3.0, 1.0, 0.5]


def test_epoch_cut_off_by_a_kill_is_skipped_and_not_glued(run: RunFolder) -> None:
    run.append_epoch(_epoch(1))
    run.append_epoch(_epoch(2))
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert run.epochs() == [_epoch(1)]
    run.append_epoch(_epoch(2, step=9))
    assert run.epochs() == [_epoch(1), _epoch(2, step=9)]


def test_each_finding_is_told_once_as_it_was_last(run: RunFolder) -> None:
    run.append_findings([])
    assert not (run.path / "findings.jsonl").exists()
    run.append_findings([_finding("train"), _finding("valid")])
    run.append_findings([_finding("train", measured=2.0)])
    told = [(line["where"], line["measured"]) for line in run.findings()]
    assert told == [("train", 2.0), ("valid", 1.0)]


def test_problems_with_odd_names_come_back(run: RunFolder) -> None:
    problems = [
        PictureProblem('train/a,b "c".jpg', "cut off,\nsaid Pillow", "skipped"),
        PictureProblem("train/ö.jpg", "no picture", "repaired"),
    ]
    assert run.problems() == []
    run.write_problems(problems)
    assert run.problems() == problems


def test_evaluation_comes_back_with_its_table(run: RunFolder) -> None:
    assert run.evaluation("test") is None
    run.write_evaluation("test", {"accuracy": 0.5}, [("a,b.jpg", "dog", "cat", "0.9")])
    assert run.evaluation("test") == {"accuracy": 0.5}
    table = (run.path / "predictions-test.csv").read_text().splitlines()
    assert table == ["path,label,predicted,confidence", '"a,b.jpg",dog,cat,0.9']


def test_damaged_evaluation_is_told(run: RunFolder) -> None:
    (run.path / "evaluation-test.json").write_text("{")
    with pytest.raises(RunError, match=r"evaluation-test\.json is damaged"):
        run.evaluation("test")


_HOLDER = """
import sys
from pathlib import Path
from vizsla.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_is_gone(run: RunFolder) -> None:
    command = [sys.executable, "-c", _HOLDER, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="is being trained by another process"), run.locked():
            pass
        assert run.status() == "running"
        holder.kill()  # as a crash would: the lock must not outlive its holder
        holder.wait()
    with run.locked():
        pass
    assert run.status() == "interrupted"


def test_lock_is_released_after_an_error(run: RunFolder) -> None:
    with pytest.raises(KeyError), run.locked():
        raise KeyError("a bug")
    with run.locked():
        assert run.status() == "running"


def test_status_of_a_finished_run(finished_run: RunFolder, tmp_path: Path) -> None:
    assert finished_run.status() == "finished"
    copy = RunFolder(Path(shutil.copytree(finished_run.path, tmp_path / "copy")))
    (copy.bundle / "bundle.json").unlink()
    assert copy.status() == "interrupted"


def test_folder_that_cannot_be_written_is_told_and_still_listed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReadOnly:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def acquire(self) -> None:
            raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folder_module, "FileLock", ReadOnly)
    with pytest.raises(StorageError, match="Read-only file system"), run.locked():
        pass
    assert run.status() == "interrupted"


def test_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    for hour in (12, 9, 15):
        made = RunFolder.create(tmp_path, "resnet50", NOW.replace(hour=hour))
        made.write_facts({})
    (tmp_path / "something_else").mkdir()
    assert [run.name[11:13] for run in list_runs(tmp_path)] == ["09", "12", "15"]
    assert list_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize("use", [lambda run: run.facts(), lambda run: RunFolder.open(run.path)])
def test_folder_that_is_gone_is_an_input_error(
    tmp_path: Path, use: Callable[[RunFolder], object]
) -> None:
    with pytest.raises(InputError):
        use(RunFolder(tmp_path / "gone"))


def test_asking_for_the_status_clears_nothing_away(run: RunFolder) -> None:
    scratch = run.path / ".outcome.json.1.part"  # of a loop that only holds the profile's lock
    scratch.write_text("{")
    assert run.status() == "interrupted"
    assert scratch.exists()
    with run.locked():
        assert not scratch.exists()
