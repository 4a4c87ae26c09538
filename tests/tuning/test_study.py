"""A study from its search to its best bundle, in real processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from vizsla import open_study, predict, train, tune
from vizsla.data.synthetic import DrawnDataset, draw_dataset
from vizsla.errors import DataError, ModelError, RunError, SettingError, WorkError
from vizsla.runs.folder import RunFolder, list_runs
from vizsla.settings import Settings, read_recipe
from vizsla.tuning.study import Study


def statuses(study: Study) -> list[str]:
    return [record.status for record in sorted(study.records, key=lambda one: one.number)]


def test_every_trial_is_a_run_with_its_own_settings(finished_study: Study) -> None:
    assert statuses(finished_study) == ["finished"] * 6
    for record in finished_study.records:
        run = finished_study.run_of(record)
        recipe = run.facts()["recipe"]
        assert {name: recipe[name] for name in record.params} == dict(record.params)
        assert recipe["unfreeze"] == "head"
        figures = {one.epoch: one.valid.accuracy for one in run.epochs()}
        assert record.curve == figures
        assert record.values == {"accuracy": max(figures.values())}
        assert run.status() == ("finished" if record == finished_study.best else "trained")


def test_the_table_ranks_the_trials(finished_study: Study) -> None:
    table = finished_study.trials
    assert list(table["accuracy"]) == sorted(table["accuracy"], reverse=True)
    assert set(table["trial"]) == set(range(6))
    assert table["trial"][0] == finished_study.best.number
    with finished_study.folder.leaderboard.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(table["trial"])
    assert [float(row["lr"]) for row in rows] == pytest.approx(list(table["lr"]))


def test_the_best_recipe_trains_to_the_same_figures(
    finished_study: Study, dogs: DrawnDataset, tmp_path: Path
) -> None:
    best = finished_study.best
    run = train(dogs.folder, read_recipe(finished_study.folder.best_recipe), runs=tmp_path)
    accuracies = {one.epoch: one.valid.accuracy for one in run.epochs()}
    assert accuracies == best.curve


def test_the_best_bundle_answers_and_only_the_best_keeps_its_weights(
    finished_study: Study, dogs: DrawnDataset
) -> None:
    picture = min((dogs.folder / "test").rglob("*.jpg"))
    for place in (finished_study.folder.path, finished_study.bundle):
        assert predict(place, [picture])[0].predicted_label in {"001", "002", "003"}
    kept = [one.number for one in finished_study.records
            if (finished_study.run_of(one).checkpoints / "best.pt").exists()]  # fmt: skip
    assert kept == [finished_study.best.number]


def test_only_the_first_trial_computes_frozen_layers(finished_study: Study) -> None:
    passes = {}
    for record in finished_study.records:
        trunk = finished_study.run_of(record).trunk()
        assert trunk is not None
        passes[record.number] = trunk["passes"]
    assert [passes[number] for number in range(1, 6)] == [0] * 5


def test_optunas_own_tools_open_the_journal(finished_study: Study) -> None:
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(finished_study.folder.journal))
    )
    (name,) = optuna.get_all_study_names(storage)
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == 6


def test_every_picture_of_a_study_can_be_drawn(finished_study: Study) -> None:
    for draw in (
        finished_study.plot_history, finished_study.plot_parallel, finished_study.plot_slice,
        finished_study.plot_contour, finished_study.plot_importances, finished_study.plot_curves,
        finished_study.plot_top,
    ):  # fmt: skip
        assert draw().to_dict()["data"]
    importances = finished_study.importances()
    assert set(importances) <= {"lr", "batch_size"}
    assert sum(importances.values()) == pytest.approx(1, abs=1e-6)


def test_a_resumed_study_goes_on_where_it_was(
    dogs: DrawnDataset, tmp_path: Path, head: Settings, search: dict[str, Any], noting
) -> None:
    first = tune(dogs.folder, search, recipe=head, studies=tmp_path, trials=2, pruner="none")
    finished = {one.number: one for one in first.records}
    again = tune(resume=first.folder.path, observers=[noting])
    assert noting.begun == []  # nothing was left to do
    assert {one.number: one for one in again.records} == finished
    more = tune(resume=first.folder.path, trials=3, observers=[noting])
    assert [trial.number for trial in noting.begun] == [2]
    assert statuses(more) == ["finished"] * 3
    assert {one.number: one for one in more.records if one.number < 2} == finished
    assert more.best_recipe == read_recipe(more.folder.best_recipe)


def command(data: Path, studies: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "vizsla.cli", "tune", str(data), "--studies", str(studies),
        "--model", "test_resnet", "--weights", "none", "--size-px", "64", "--unfreeze", "all",
        "--batch-size", "8", "--workers", "0", "--search", "lr=1e-4..1e-1:log", *more,
    ]  # fmt: skip


def study_in(studies: Path, deadline: float) -> Path:
    while time.monotonic() < deadline:
        found = [path.parent for path in studies.glob("*/study.toml")]
        if found:
            return found[0]
        time.sleep(0.02)
    raise AssertionError("no study was begun")


def wait_for_epochs(run: RunFolder, count: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        if len(run.epochs()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{run.path} has come to {len(run.epochs())} epochs")


def test_a_killed_study_loses_no_trial_and_repeats_no_number(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    deadline = time.monotonic() + 150
    arguments = ["--epochs", "20", "--trials", "3", "--pruner", "none"]
    with subprocess.Popen(
        command(dogs.folder, tmp_path, *arguments), stdout=subprocess.DEVNULL
    ) as child:
        path = study_in(tmp_path, deadline)
        wait_for_epochs(RunFolder(path / "trials" / "0001"), 5, deadline)
        (worker,) = children_of(child.pid)
        os.kill(child.pid, signal.SIGKILL)
    # What a kill in the middle of a line leaves, and a lock that nobody holds.
    with (path / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker')
    (path / "journal.log.lock").symlink_to(path / "journal.log")
    while Path("/proc", str(worker)).exists():  # it saves and leaves by itself
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = open_study(path)
    assert statuses(before) == ["finished", "stopped"]
    (first,) = [one for one in before.records if one.number == 0]
    seen = RunFolder(path / "trials" / "0001").epochs()
    study = tune(resume=path)
    assert statuses(study) == ["finished"] * 3
    assert [one for one in study.records if one.number == 0] == [first]
    epochs = RunFolder(path / "trials" / "0001").epochs()
    assert len(epochs) == 20
    assert [one.valid for one in epochs[: len(seen)]] == [one.valid for one in seen]
    assert sorted(run.name for run in list_runs(path / "trials")) == ["0000", "0001", "0002"]


def test_a_killed_trial_is_failed_and_the_study_goes_on(dogs: DrawnDataset, tmp_path: Path) -> None:
    deadline = time.monotonic() + 150
    with subprocess.Popen(
        command(dogs.folder, tmp_path, "--epochs", "12", "--trials", "3", "--pruner", "none"),
        stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        path = study_in(tmp_path, deadline)
        wait_for_epochs(RunFolder(path / "trials" / "0001"), 2, deadline)
        (worker,) = children_of(child.pid)
        os.kill(worker, signal.SIGKILL)
        output, _ = child.communicate(timeout=150)
    assert child.returncode == 0
    study = open_study(path)
    assert statuses(study) == ["finished", "failed", "finished"]
    (failed,) = [one for one in study.records if one.status == "failed"]
    assert "killed (signal 9)" in str(failed.reason)
    assert str(failed.reason) in output


def children_of(parent: int) -> list[int]:
    processes = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [int(folder.name) for folder in processes if _parent(folder) == parent]


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return -1


def test_an_interrupted_study_saves_and_says_how_to_go_on(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    deadline = time.monotonic() + 150
    with subprocess.Popen(
        command(dogs.folder, tmp_path, "--epochs", "400", "--trials", "2"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        path = study_in(tmp_path, deadline)
        wait_for_epochs(RunFolder(path / "trials" / "0000"), 2, deadline)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert f"vizsla tune --resume {path}" in errors
    assert statuses(open_study(path)) == ["stopped"]
    assert RunFolder(path / "trials" / "0000").status() == "interrupted"


def test_bad_trials_are_pruned_and_can_be_taken_up_by_hand(
    dogs: DrawnDataset, tmp_path: Path, noting
) -> None:
    base = Settings(model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=6,
                    workers=0, batch_size=8, optimizer="sgd", schedule="constant")  # fmt: skip
    study = tune(dogs.folder, {"lr": [0.02, 1e-7, 1e-8, 1e-9, 3e-9]}, recipe=base, trials=5,
                 sampler="grid", studies=tmp_path, observers=[noting])  # fmt: skip
    pruned = [one for one in study.records if one.status == "pruned"]
    assert pruned
    assert all(len(one.curve) < 6 for one in pruned)
    assert study.best.status == "finished"
    assert study.run_of(pruned[0]).status() == "pruned"


def test_a_pruned_trial_that_is_the_best_has_its_bundle(dogs: DrawnDataset, tmp_path: Path) -> None:
    class Pruning(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    base = Settings(model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=3,
                    workers=0, batch_size=8)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vizsla.tuning.sitting.build_pruner", lambda *_: Pruning())
        study = tune(dogs.folder, {"lr": [1e-3, 1e-2]}, recipe=base, trials=2, studies=tmp_path)
    assert statuses(study) == ["pruned", "pruned"]
    assert (study.bundle / "bundle.json").is_file()


def test_a_diverging_trial_is_failed_with_its_reason(dogs: DrawnDataset, tmp_path: Path) -> None:
    base = Settings(model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=6,
                    workers=0, batch_size=8, optimizer="sgd", weight_decay=10)  # fmt: skip
    study = tune(dogs.folder, {"lr": [100.0, 1e-3]}, recipe=base, sampler="grid", pruner="none",
                 studies=tmp_path)  # fmt: skip
    by_rate = {one.params["lr"]: one for one in study.records}
    assert by_rate[100.0].status == "failed"
    assert "diverged" in str(by_rate[100.0].reason)
    assert by_rate[1e-3].status == "finished"
    assert len(study.records) == 2  # a grid ends when all is tried, before ten trials
    assert [one.rule for one in study.findings()] == ["many_failures"]


def test_settings_that_contradict_one_another_cost_no_trial(
    dogs: DrawnDataset, tmp_path: Path, head: Settings, noting
) -> None:
    study = tune(dogs.folder, {"optimizer": ["adam", "sgd"], "nesterov": [True, False]},
                 recipe=head, sampler="grid", studies=tmp_path, observers=[noting],
                 pruner="none")  # fmt: skip
    assert sorted(statuses(study)) == ["finished"] * 3 + ["refused"]
    assert len(noting.begun) == 3
    (refused,) = [one for one in study.records if one.status == "refused"]
    assert "nesterov needs the optimizer sgd" in str(refused.reason)


def test_a_study_that_cannot_succeed_ends_at_once(
    dogs: DrawnDataset, tmp_path: Path, head: Settings
) -> None:
    gone = Settings(**{**head.model_dump(exclude_unset=True), "weights": str(tmp_path / "no.pth")})
    with pytest.raises(ModelError, match="no.pth"):
        tune(dogs.folder, {"lr": "1e-3..1e-2"}, recipe=gone, studies=tmp_path / "studies")
    (path,) = (tmp_path / "studies").iterdir()
    assert statuses(open_study(path)) == ["failed"]


def test_a_resumed_random_study_draws_anew(
    dogs: DrawnDataset, tmp_path: Path, head: Settings
) -> None:
    study = tune(dogs.folder, {"lr": "1e-4..1e-1:log"}, recipe=head, trials=2, sampler="random",
                 pruner="none", studies=tmp_path)  # fmt: skip
    again = tune(resume=study.folder.path, trials=4)
    assert len({record.params["lr"] for record in again.records}) == 4
    assert open_study(study.folder.path).folder.facts()["study"]["trials"] == 4


def test_a_study_whose_search_was_changed_is_refused_and_kept(
    dogs: DrawnDataset, tmp_path: Path, head: Settings, search: dict[str, Any]
) -> None:
    study = tune(dogs.folder, search, recipe=head, trials=1, studies=tmp_path)
    facts = study.folder.path / "study.toml"
    facts.write_text(facts.read_text().replace("0.0001..0.1:log", "0.001..0.1:log"))
    with pytest.raises(SettingError, match="another search"):
        tune(resume=study.folder.path, trials=2)
    assert study.folder.journal.is_file()
    assert RunFolder.open(study.folder.path / "trials" / "0000").status() == "finished"
    study.folder.journal.unlink()
    with pytest.raises(RunError, match="put the journal"):
        tune(resume=study.folder.path, trials=2)


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_other_samplers_and_hyperband_search_too(
    sampler: str, dogs: DrawnDataset, tmp_path: Path, head: Settings
) -> None:
    search = {"lr": "1e-4..1e-1:log", "weight_decay": "0.001..0.1"}
    study = tune(dogs.folder, search, recipe=head, trials=5, sampler=sampler, pruner="hyperband",
                 studies=tmp_path)  # fmt: skip
    assert set(statuses(study)) <= {"finished", "pruned"}
    assert len({record.params["lr"] for record in study.records}) == 5


def test_a_signal_to_everyone_saves_every_trial(dogs: DrawnDataset, tmp_path: Path) -> None:
    deadline = time.monotonic() + 150
    with subprocess.Popen(
        command(dogs.folder, tmp_path, "--epochs", "400", "--trials", "2"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        path = study_in(tmp_path, deadline)
        wait_for_epochs(RunFolder(path / "trials" / "0000"), 2, deadline)
        (worker,) = children_of(child.pid)
        for process in (worker, child.pid, worker):
            os.kill(process, signal.SIGTERM)
        child.wait(120)
    assert child.returncode == 143
    assert statuses(open_study(path)) == ["stopped"]
    assert RunFolder(path / "trials" / "0000").status() == "interrupted"


def test_what_is_wrong_from_the_start_makes_no_folder(
    dogs: DrawnDataset, tmp_path: Path, head: Settings, search: dict[str, Any]
) -> None:
    studies = tmp_path / "studies"
    for error, data, space, more in [
        (DataError, tmp_path / "none", search, {}),
        (SettingError, dogs.folder, {"lrr": "1..2"}, {}),
        (SettingError, dogs.folder, {}, {}),
        (SettingError, dogs.folder, search, {"sampler": "grid"}),
        (SettingError, dogs.folder, search, {"screen": 2}),
        (SettingError, dogs.folder, search, {"trails": 2}),
        (SettingError, dogs.folder, {"optimizer": ["adam", "sgd"]}, {"sampler": "cmaes"}),
        (RunError, dogs.folder, search, {"warm_start": str(tmp_path)}),
        (SettingError, dogs.folder, {"lr": [1, 2]}, {"sampler": "grid", "warm_start": "x"}),
    ]:
        with pytest.raises(error):
            tune(data, space, recipe=head, studies=studies, **more)
    assert not studies.exists()


def test_two_objectives_give_a_front(dogs: DrawnDataset, tmp_path: Path, head: Settings) -> None:
    study = tune(
        dogs.folder, {"model": ["test_resnet", "test_vit"], "lr": [1e-2, 1e-6]}, recipe=head,
        sampler="grid", objective="accuracy,latency_ms,size_mb", studies=tmp_path,
    )  # fmt: skip
    assert statuses(study) == ["finished"] * 4
    costs = {}
    for record in study.records:
        assert record.values["latency_ms"] > 0
        costs.setdefault(record.params["model"], set()).add(record.values["size_mb"])
        costs[record.params["model"]].add(record.values["latency_ms"])
    assert all(len(figures) == 2 for figures in costs.values())  # each network is measured once
    front = study.front
    assert front
    for record in study.records:
        beaten = any(
            other.values["accuracy"] >= record.values["accuracy"]
            and other.values["latency_ms"] <= record.values["latency_ms"]
            and other.values["size_mb"] <= record.values["size_mb"]
            and other.values != record.values
            for other in study.records
        )
        assert beaten == (record not in front)
        assert record.curve == {
            one.epoch: one.valid.accuracy for one in study.run_of(record).epochs()
        }
    assert study.plot_front().to_dict()["data"]
    assert study.plot_slice().to_dict()["data"]
    assert study.importances()["lr"] >= 0


def test_models_are_screened_before_their_trials(
    dogs: DrawnDataset, tmp_path: Path, head: Settings, noting
) -> None:
    study = tune(
        dogs.folder,
        {"model": ["test_resnet", "test_vit", "test_efficientnet"], "lr": [1e-2, 1e-3]},
        recipe=head, trials=3, screen=1, studies=tmp_path, observers=[noting], pruner="none",
    )  # fmt: skip
    facts = json.loads((study.folder.screening / "screening.json").read_text())
    values = [one["value"] for one in facts["models"]]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    assert {record.params["model"] for record in study.records} == {facts["models"][0]["model"]}
    again = tune(resume=study.folder.path, trials=4, observers=[noting])
    assert len(again.records) == 4
    assert sum("probing" in note for note in noting.notes) == 3  # each model once
    assert [one.model for one in again.screening] == [one["model"] for one in facts["models"]]


def test_a_study_ends_when_nothing_improves(
    dogs: DrawnDataset, tmp_path: Path, head: Settings
) -> None:
    still = Settings(**{**head.model_dump(exclude_unset=True), "optimizer": "sgd", "epochs": 2})
    study = tune(dogs.folder, {"lr": "1e-9..1e-8"}, recipe=still, trials=20, study_patience=3,
                 studies=tmp_path, pruner="none")  # fmt: skip
    assert statuses(study) == ["finished"] * 4


def test_time_ends_a_study_and_its_best_is_still_there(dogs: DrawnDataset, tmp_path: Path) -> None:
    base = Settings(model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=5000,
                    workers=0, batch_size=8)  # fmt: skip
    study = tune(dogs.folder, {"lr": "1e-3..1e-2"}, recipe=base, timeout="15s", studies=tmp_path)
    assert statuses(study) == ["stopped"]
    before = study.best.curve
    assert 0 < len(before) < 5000
    assert (study.bundle / "bundle.json").is_file()
    again = tune(resume=study.folder.path, timeout="15s")  # its best goes on all the same
    assert statuses(again) == ["stopped"]
    assert len(again.best.curve) > len(before)
    assert before.items() <= again.best.curve.items()


def test_a_warm_start_knows_what_was_found(
    finished_study: Study, dogs: DrawnDataset, tmp_path: Path, head: Settings,
    search: dict[str, Any], noting,
) -> None:  # fmt: skip
    study = tune(dogs.folder, search, recipe=head, trials=2, pruner="none", studies=tmp_path / "a",
                 warm_start=str(finished_study.folder.path))  # fmt: skip
    assert len(study.optuna.trials) == 8
    assert len(study.records) == 2  # what is known is no trial of its own
    other = draw_dataset(tmp_path / "other", breeds=3, pictures_per_breed=12, size_px=64, seed=5)
    tune(other.folder, search, recipe=head, trials=1, pruner="none", studies=tmp_path / "b",
         warm_start=str(finished_study.folder.path), observers=[noting])  # fmt: skip
    assert noting.begun[0].params == dict(finished_study.best.params)
    with pytest.raises(SettingError, match="None of the 6 finished trials"):
        tune(dogs.folder, {"lr": "0.5..1"}, recipe=head, studies=tmp_path / "c",
             warm_start=str(finished_study.folder.path))  # fmt: skip


def test_trials_that_all_fail_alike_end_the_study(
    dogs: DrawnDataset, tmp_path: Path, head: Settings
) -> None:
    base = Settings(**{**head.model_dump(exclude_unset=True), "unfreeze": "nowhere"})
    with pytest.raises((WorkError, ModelError, SettingError), match="nowhere"):
        tune(dogs.folder, {"lr": "1e-3..1e-2"}, recipe=base, studies=tmp_path)


def test_a_changed_data_set_is_no_longer_the_studys(
    tmp_path: Path, head: Settings, search: dict[str, Any]
) -> None:
    own = draw_dataset(tmp_path / "dogs", breeds=2, pictures_per_breed=10, size_px=48)
    study = tune(own.folder, search, recipe=head, trials=1, studies=tmp_path / "studies")
    min((own.folder / "train").rglob("*.jpg")).unlink()
    with pytest.raises(RunError, match="not those that the study"):
        tune(resume=study.folder.path, trials=2)
    with pytest.raises(SettingError, match="sampler"):
        tune(resume=study.folder.path, sampler="random")
