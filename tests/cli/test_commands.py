"""The command line: exit codes, what is printed where, and one sentence for every mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vizsla.cli import run as cli
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.files import write_text
from vizsla.runs.folder import RunFolder

SMALL = {"--model": "test_resnet", "--weights": "none", "--size-px": "64", "--workers": "0"}


@dataclass
class Answer:
    code: int
    output: str
    errors: str


Command = Callable[..., Answer]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process; a traceback would be an exception here."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        code = cli([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def train(command: Command, tmp_path: Path) -> Command:
    """`vizsla train` of a tiny network into a folder of this test."""

    def run(data: Path, *more: object) -> Answer:
        flags = [part for flag in SMALL.items() if flag[0] not in more for part in flag]
        return command("train", data, "--runs", tmp_path / "runs", *flags, *more)

    return run


@pytest.fixture(scope="module")
def picture(dogs: DrawnDataset) -> Path:
    return min((dogs.folder / "test").rglob("*.jpg"))


def assert_refused(answer: Answer, *parts: str) -> None:
    """Exit code 2 and one sentence or two on standard error, with `parts` in them."""
    assert answer.code == 2
    assert answer.output == ""
    assert answer.errors.startswith("vizsla: ")
    assert answer.errors.count("\n") == 1
    for part in parts:
        assert part in answer.errors


def draw(folder: Path, *names: str) -> Path:
    """Pictures of one colour, by their paths in `folder`."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * number % 255, 90, 160)).save(path)
    return folder


def test_no_pictures(train: Command, tmp_path: Path) -> None:
    (tmp_path / "data" / "notes").mkdir(parents=True)
    (tmp_path / "data" / "notes" / "readme.txt").write_text("nothing")
    assert_refused(train(tmp_path / "data"), "No pictures found", "one folder a class")


def test_no_such_data(train: Command, tmp_path: Path) -> None:
    assert_refused(train(tmp_path / "nowhere"), "There is no", "nowhere")


def test_no_data_named(command: Command) -> None:
    assert_refused(command("train"), "Nothing to train on")


def test_one_class(train: Command, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", "cat/1.png", "cat/2.png", "cat/3.png")
    assert_refused(train(data), "Only one class", "'cat'")


def test_a_class_of_one_picture(train: Command, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", "cat/1.png", "cat/2.png", "dog/1.png")
    assert_refused(train(data), "'dog'", "single picture")


def test_all_pictures_corrupt(train: Command, tmp_path: Path) -> None:
    data = draw(
        tmp_path / "data", *(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(4))
    )
    for path in data.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:20])
    answer = train(data)
    assert answer.code == 2
    assert "None of the training pictures could be decoded" in answer.errors
    assert answer.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model", "resnet5O"], ["no architecture 'resnet5O'", "resnet50"]),
        (["--unfreeze", "layer9"], ["unfreeze is 'layer9'", "layer4"]),
        (["--weights", "/nowhere/weights.safetensors"], ["/nowhere/weights.safetensors"]),
        (["--lr", "-1"], ["lr is -1", "above 0", "100"]),
        (["--batch-size", "0"], ["batch_size is 0", "at least 1"]),
        (["--batch_size", "0"], ["batch_size is 0", "at least 1"]),
        (["--label_smoothing", "1.5"], ["label_smoothing is 1.5", "below 1"]),
        (["--optimizer", "adma"], ["adma", "adamw"]),
        (["--warmup-epochs", "10"], ["warmup_epochs", "fewer than epochs"]),
        (["--nesterov"], ["nesterov needs"]),
        (["--epochs", "many"], ["many", "epochs"]),
        (["--batchsize", "4"], ["--batchsize", "--batch-size"]),
        (["--recipe", "/nowhere/recipe.toml"], ["/nowhere/recipe.toml", "does not exist"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_settings_that_cannot_be(
    train: Command, dogs: DrawnDataset, flags: list[str], parts: list[str]
) -> None:
    assert_refused(train(dogs.folder, *flags), *parts)


def test_weights_that_do_not_fit(train: Command, dogs: DrawnDataset, tmp_path: Path) -> None:
    save_file({"conv1.0.weight": torch.zeros(2, 3, 3, 3)}, tmp_path / "other.safetensors")
    assert_refused(
        train(dogs.folder, "--weights", tmp_path / "other.safetensors"), "other.safetensors"
    )


def test_no_run_is_left_by_a_refused_training(
    train: Command, dogs: DrawnDataset, tmp_path: Path
) -> None:
    train(dogs.folder, "--unfreeze", "layer9")
    assert not (tmp_path / "runs").exists()


def test_classes_of_run_and_data_differ(
    command: Command, finished_run: RunFolder, tmp_path: Path
) -> None:
    data = draw(tmp_path / "data", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    assert_refused(command("evaluate", finished_run.path, data), "2 classes", "3", "'cat'")


def test_a_run_of_another_version(
    command: Command, finished_run: RunFolder, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run.path, tmp_path / "runs" / finished_run.name))
    text = (copy / "run.toml").read_text()
    write_text(copy / "run.toml", text.replace("format_version = 1", "format_version = 99", 1))
    parts = ("format version 99", "Use the vizsla that wrote it")
    assert_refused(command("train", "--resume", copy), *parts)
    assert_refused(command("runs", "compare", copy, finished_run.path), *parts)


def test_a_folder_that_is_no_run(command: Command, finished_run: RunFolder, tmp_path: Path) -> None:
    assert_refused(command("train", "--resume", tmp_path), "is not a run")
    assert_refused(command("train", "--resume", finished_run.bundle), "looks like a bundle")
    assert_refused(command("predict", tmp_path / "nothing", "a.jpg"), "There is no")
    assert_refused(command("runs", "compare", finished_run.path), "two runs or more")


def test_an_unknown_command_offers_the_nearest(command: Command) -> None:
    assert_refused(command("pedict"), "pedict", "predict")


def test_training_prints_what_sagemaker_reads(train: Command, dogs: DrawnDataset) -> None:
    answer = train(dogs.folder, "--epochs", 2, "--unfreeze", "all", "--batch_size", 16)
    assert answer.code == 0
    assert answer.errors == ""
    number = r"([0-9.]+)"
    for name in ("train:loss", "validation:loss", "validation:accuracy", "validation:macro_f1"):
        found = re.findall(
            rf"^train:loss=.*?\b{name}={number}|^{name}={number}", answer.output, re.M
        )
        assert len(found) >= 2, name
    lines = [line for line in answer.output.splitlines() if line.startswith("train:loss=")]
    assert len(lines) == 2
    assert all(0 <= float(re.search(rf"validation:accuracy={number}", x)[1]) <= 1 for x in lines)
    (test,) = re.findall(rf"test:accuracy={number}", answer.output)
    assert 0 <= float(test) <= 1
    assert "\x1b" not in answer.output
    assert max(map(len, lines)) < 200


def test_predict_names_classes_and_confidences(
    command: Command, finished_run: RunFolder, picture: Path
) -> None:
    answer = command("predict", finished_run.path, picture)
    assert answer.code == 0
    assert answer.errors == ""
    first, *others = answer.output.splitlines()
    assert re.fullmatch(rf"{re.escape(str(picture))}: \w+ \(\d+\.\d%\)", first)
    assert len(others) == 2


def test_predict_json_is_one_object_a_line(
    command: Command, finished_run: RunFolder, picture: Path
) -> None:
    answer = command("predict", finished_run.bundle, picture, picture, "--top", 2, "--json")
    first, second = map(json.loads, answer.output.splitlines())
    assert answer.code == 0
    assert first == second
    assert set(first) == {"predicted_label", "class_name", "confidence", "top_k", "path"}
    assert len(first["top_k"]) == 2
    assert first["top_k"][0]["confidence"] == first["confidence"]


@pytest.mark.parametrize("as_json", [False, True])
def test_an_unreadable_picture_costs_no_other_answer(
    command: Command, finished_run: RunFolder, picture: Path, tmp_path: Path, as_json: bool
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    flags = ["--json"] if as_json else []
    answer = command("predict", finished_run.path, bad, picture, tmp_path / "gone.jpg", *flags)
    assert answer.code == 2
    assert str(picture) in answer.output
    assert "bad.jpg" in answer.errors
    assert "gone.jpg: there is no such file" in answer.errors
    if as_json:
        lines = [json.loads(line) for line in answer.output.splitlines()]
        assert ["error" in line for line in lines] == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [([], "No pictures given"), (["x.jpg", "--top", "0"], "--top is 0"), (["x.jpg"], "x.jpg")],
)
def test_predict_says_what_is_wrong(
    command: Command, finished_run: RunFolder, arguments: list[str], part: str
) -> None:
    assert_refused(command("predict", finished_run.path, *arguments), part)


def test_an_unfinished_run_says_how_to_finish_it(
    command: Command, finished_run: RunFolder, picture: Path, tmp_path: Path
) -> None:
    write_text(tmp_path / "run.toml", (finished_run.path / "run.toml").read_text())
    assert_refused(command("predict", tmp_path, picture), "vizsla train --resume")


def test_evaluate_prints_figures_for_people_and_for_metric_expressions(
    command: Command, finished_run: RunFolder, dogs: DrawnDataset
) -> None:
    answer = command("evaluate", finished_run.path, dogs.folder)
    assert answer.code == 0
    assert re.search(r"test:accuracy=([0-9.]+)", answer.output)
    names = [label.partition(".")[2] for label in dogs.classes]
    assert all(name in answer.output for name in names)


def test_evaluate_json_is_one_document(
    command: Command, finished_run: RunFolder, dogs: DrawnDataset
) -> None:
    answer = command("evaluate", finished_run.path, dogs.folder, "--split", "valid", "--json")
    figures = json.loads(answer.output)
    assert figures["split"] == "valid"
    assert figures["pictures"] == 12
    recorded = finished_run.evaluation("valid")
    assert recorded is not None
    assert figures["confusion"] == recorded["confusion"]


def test_evaluate_refuses_a_split_that_is_none(
    command: Command, finished_run: RunFolder, dogs: DrawnDataset
) -> None:
    assert_refused(
        command("evaluate", finished_run.path, dogs.folder, "--split", "dev"), "'dev'", "valid"
    )


def test_runs_list_shows_every_run_and_its_state(
    command: Command, finished_run: RunFolder, tmp_path: Path
) -> None:
    answer = command("runs", "list", "--runs", finished_run.path.parent)
    assert answer.code == 0
    row = next(line for line in answer.output.splitlines() if finished_run.name in line)
    assert "finished" in row
    assert "2/2" in row
    assert "No runs in" in command("runs", "list", "--runs", tmp_path / "none").output


def test_runs_list_survives_a_damaged_run(
    command: Command, finished_run: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.path, tmp_path / finished_run.name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.toml").write_text("not toml at all [")
    answer = command("runs", "list", "--runs", tmp_path)
    assert answer.code == 0
    assert finished_run.name in answer.output
    assert "broken" in answer.output


def test_runs_compare_shows_only_settings_that_differ(
    command: Command, finished_run: RunFolder, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run.path, tmp_path / "other"))
    text = (copy / "run.toml").read_text()
    assert "weight_decay = 0.01" in text
    write_text(copy / "run.toml", text.replace("weight_decay = 0.01", "weight_decay = 0.5"))
    answer = command("runs", "compare", finished_run.path, copy)
    assert answer.code == 0
    assert re.search(r"weight_decay.*0\.01.*0\.5", answer.output)
    assert "size_px" not in answer.output
    assert "test accuracy" in answer.output
    assert "do not compare" not in answer.output


def test_help_lists_every_command(command: Command) -> None:
    answer = command("--help")
    assert answer.code == 0
    for name in ("train", "evaluate", "predict", "runs"):
        assert re.search(rf"\b{name}\b .*\w", answer.output), name
    assert "--checkpoint-every" in command("train", "--help").output


def test_output_cut_short_by_its_reader_is_no_error(finished_run: RunFolder, picture: Path) -> None:
    program = "from vizsla.cli import main; main()"
    pictures = [str(picture)] * 40
    with subprocess.Popen(
        [sys.executable, "-c", program, "predict", str(finished_run.path), *pictures, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()  # as head does
        errors = child.stderr.read()
    assert errors == ""
    assert child.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["runs", "list"]])
def test_a_pipe_closed_before_the_first_word_is_no_error(
    finished_run: RunFolder, arguments: list[str]
) -> None:
    more = ["--runs", str(finished_run.path.parent)] if "list" in arguments else []
    program = "import sys; sys.stdin.read(); from vizsla.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        child.stdin.close()
        errors = child.stderr.read()
    assert errors == ""
