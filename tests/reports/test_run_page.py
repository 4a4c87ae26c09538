"""The report of a run: what each section says, and that whatever is missing is said as well."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla.findings import Finding
from vizsla.records import Note, Section, Tile
from vizsla.reports.confusion import sections_of as confusion_sections
from vizsla.reports.curves import thinned
from vizsla.reports.mistakes import thumbnail
from vizsla.reports.page import write_page
from vizsla.reports.reading import read_run
from vizsla.reports.recipe import train_command
from vizsla.reports.run_page import compose
from vizsla.runs.folder import STOPPED_BY_RULE, RunFolder
from vizsla.settings import Recipe

TITLES = [
    "Summary", "Learning curves", "Classes", "Confused classes", "Confusion matrix",
    "Most wrong pictures", "Debugger", "Profile", "Data", "Settings", "Versions and hardware",
    "Reproduce",
]  # fmt: skip
WARNING = Finding("dead_relu", "warning", "layer1", "A layer is dead.", "Lower the rate.", 0.9, 0.5)


@pytest.fixture
def small(fabricate: Callable[..., RunFolder], tmp_path: Path) -> RunFolder:
    return fabricate(tmp_path / "run", classes=6, epochs=3, steps=12)


def _composed(run: RunFolder, *findings: Any) -> tuple[str, dict[str, Section]]:
    lead, sections = compose(
        run, findings, [Section("Debugger")], [Section("Profile")], [Tile("Energy", "0.012 kWh")]
    )
    return lead, {section.title: section for section in sections}


def _tiles(section: Section) -> dict[str, str]:
    return {tile.name: tile.value for tile in section.tiles}


def _unfinished(run: RunFolder) -> RunFolder:
    shutil.rmtree(run.bundle)
    for name in ("evaluation", "predictions"):
        for path in run.path.glob(f"{name}-*"):
            path.unlink()
    return run


def test_sections_stand_in_order(finished_run: RunFolder) -> None:
    _, sections = _composed(finished_run)
    assert list(sections) == TITLES
    assert [one.mark for one in sections.values() if one.mark] == []


def test_the_summary_tells_what_the_folder_holds(finished_run: RunFolder) -> None:
    lead, sections = _composed(finished_run)
    figures = finished_run.evaluation("test") or {}
    right = f"{100 * figures['accuracy']:.1f} %"
    assert lead.startswith("Finished after 2 epochs, in ")
    assert f"The model is right on {right} of 12 test pictures." in lead
    tiles = _tiles(sections["Summary"])
    assert tiles["Accuracy"] == right
    assert (tiles["Pictures"], tiles["Model"], tiles["Energy"]) == (
        "72",
        "test_resnet",
        "0.012 kWh",
    )
    assert sections["Summary"].code.startswith(f"vizsla predict {finished_run.path} ")


def test_the_search_that_is_proposed_is_for_the_same_network(small: RunFolder) -> None:
    facts = {key: value for key, value in small.facts().items() if key != "format_version"}
    facts["recipe"] |= {"weights": "/my weights/a.safetensors", "size_px": 96, "lr": 3.0}
    small.write_facts(facts)
    line = _composed(small)[1]["Summary"].code.splitlines()[-1]
    assert shlex.split(line) == [
        "vizsla", "tune", "/data/dogImages", "--weights", "/my weights/a.safetensors",
        "--size-px", "96", "--epochs", "3", "--search", "lr=1e-4..1e-1:log",
    ]  # fmt: skip


def test_what_to_do_next_is_the_advice_of_the_worst(small: RunFolder) -> None:
    info = Finding("overfit", "info", "step 3", "It may be.", "Wait.")
    lead, sections = _composed(small, WARNING, info)
    assert lead.endswith("There is 1 warning: A layer is dead.")
    assert sections["Summary"].notes == (Note("warning", "A layer is dead.", "Lower the rate."),)
    assert sections["Summary"].code == ""
    assert [note.head for note in sections["Other findings"].notes] == [
        "dead_relu · layer1 · measured 0.9 (threshold 0.5)", "overfit · step 3",
    ]  # fmt: skip


def test_a_finding_that_a_section_tells_is_not_told_again(small: RunFolder) -> None:
    told = Section("Findings", notes=(Note("warning", "dead_relu · layer1", WARNING.meaning),))
    titles = [section.title for section in compose(small, [WARNING], [told], [], [])[1]]
    assert "Other findings" not in titles


def test_why_a_rule_stopped_it_is_told_once(small: RunFolder) -> None:
    _unfinished(small).write_outcome(STOPPED_BY_RULE, f"dead_relu: {WARNING.meaning}")
    lead, sections = _composed(small, WARNING)
    assert lead.count("A layer is dead") == 1
    assert lead.endswith("There is 1 warning.")
    assert sections["Summary"].code == ""  # to go on would only come to the same


@pytest.mark.parametrize("last", [4e9, float("nan")])
def test_a_loss_that_ran_away_is_not_to_be_gone_on_with(small: RunFolder, last: float) -> None:
    _unfinished(small)
    small.append_steps([{**_last_step(small), "step": 13, "loss": last}])
    lead, sections = _composed(small)
    assert "a loss that ran away" in lead
    assert "lower --lr" in sections["Summary"].notes[0].text
    told = [sections[one] for one in ("Summary", "Classes", "Confusion matrix", "Reproduce")]
    assert "--resume" not in "".join(f"{one.text}{one.code}" for one in told)


def _last_step(run: RunFolder) -> dict[str, Any]:
    return json.loads((run.path / "steps.jsonl").read_text().splitlines()[-1])


def test_losses_that_lie_far_apart_have_an_axis_of_powers(small: RunFolder) -> None:
    lines = (small.path / "metrics.jsonl").read_text().splitlines()
    figure = json.loads(_composed(small)[1]["Learning curves"].figure or "")
    assert "type" not in figure["layout"]["yaxis"]
    first = json.loads(lines[0])
    first["train"]["loss"] = 1e6
    (small.path / "metrics.jsonl").write_text("\n".join([json.dumps(first), *lines[1:], ""]))
    figure = json.loads(_composed(small)[1]["Learning curves"].figure or "")
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert figure["layout"]["yaxis"]["title"]["text"] == "loss"


def test_a_command_that_was_profiled_is_told_as_one(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path / "run")
    command = ["python", "my script.py", "--name", "<b>"]
    run.write_facts({"kind": "watched", "command": command, "versions": {"vizsla": "0.1.0"}})
    (run.path / "profile-algo-1.jsonl").touch()
    run.write_outcome("done")
    lead, sections = _composed(run)
    assert lead.startswith("A command that vizsla profiled: python 'my script.py' --name '<b>'. It")
    assert sections["Summary"].code == f"vizsla profile {run.path}"
    assert shlex.split(sections["Reproduce"].code) == ["vizsla", "profile", "--", *command]
    assert list(sections) == ["Summary", "Profile", "Debugger", "Versions and hardware",
                              "Reproduce"]  # fmt: skip


def test_sections_are_in_parts(small: RunFolder) -> None:
    parts = {one.title: one.part for one in _composed(small)[1].values()}
    assert [parts[one] for one in ("Summary", "Debugger", "Profile", "Reproduce")] == [
        "Result", "Training", "Time and machine", "Run",
    ]  # fmt: skip


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_run_that_goes_on_is_marked(
    fabricate: Callable[..., RunFolder], tmp_path: Path, epochs: int
) -> None:
    run = _unfinished(fabricate(tmp_path / "run", classes=6, epochs=max(epochs, 1), steps=30))
    if not epochs:
        (run.path / "metrics.jsonl").unlink()
    with run.locked():
        lead, sections = _composed(run)
    assert "Still training: this is the report so far" in lead
    assert "step 30" in lead
    assert sections["Summary"].mark == "still training"
    assert sections["Learning curves"].mark == "so far"
    assert sections["Learning curves"].figure is not None
    assert "at the end of the training" in sections["Classes"].text
    assert sections["Summary"].code == f"vizsla report {run.path}"


@pytest.mark.parametrize(
    ("status", "told", "mark"),
    [
        (None, "Interrupted after 3 epochs", "interrupted"),
        (STOPPED_BY_RULE, "Stopped by a rule after 3 epochs: overfit.", "stopped by a rule"),
        ("failed", "Failed after 3 epochs: overfit.", "failed"),
        ("pruned", "Ended early after 3 epochs: overfit.", "ended early"),
        ("trained", "Trained after 3 epochs, without a bundle yet.", ""),
    ],
)
def test_a_run_without_a_bundle_says_how_it_stands(
    small: RunFolder, status: str | None, told: str, mark: str
) -> None:
    _unfinished(small)
    if status is not None:
        small.write_outcome(status, None if status == "trained" else "overfit.")
    lead, sections = _composed(small)
    assert told in lead
    assert "The best validation accuracy so far is" in lead
    assert sections["Summary"].mark == mark
    resume = f"vizsla train --resume {small.path}"
    assert sections["Summary"].code == resume
    assert sections["Reproduce"].code.endswith(resume)
    for title in ("Classes", "Confusion matrix", "Most wrong pictures"):
        assert resume in sections[title].text


def test_a_loop_that_was_only_watched_has_a_page(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path / "run")
    run.write_facts({"kind": "watched", "recipe": {}, "model": {"architecture": "Net"}})
    lead, sections = _composed(run, WARNING)
    assert lead.startswith("A loop of your own, which vizsla watched.")
    assert "watched" in sections["Reproduce"].text
    assert "watched" in sections["Classes"].text
    assert _tiles(sections["Summary"])["Model"] == "Net"
    run.write_outcome("failed", "ValueError: odd")
    assert "It failed: ValueError: odd." in _composed(run)[0]


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path / "run")
    run.write_facts({})
    lead, sections = _composed(run)
    assert "Interrupted" in lead
    assert {"Summary", "Learning curves", "Classes", "Data", "Reproduce"} <= set(sections)
    write_page(tmp_path / "page.html", "Run", lead, list(sections.values()))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f">{title}<" in page for title in sections)


def test_damage_is_told_in_the_lead(small: RunFolder) -> None:
    with (small.path / "steps.jsonl").open("a") as file:
        file.write("{\n")
    (small.path / "corrupt_pictures.csv").write_text("path,nothing\na,b,c\n")
    (small.path / "debug.json").write_text("{")
    (small.path / "trunk.json").write_text("[")
    (small.path / "catalogue.csv").write_text("?")
    lead, sections = _composed(small)
    assert "1 line of steps.jsonl" in lead
    assert "corrupt_pictures.csv is damaged" in lead
    assert "catalogue.csv is gone or damaged" in sections["Data"].text


def test_classes_come_hardest_first(small: RunFolder) -> None:
    section = _composed(small)[1]["Classes"]
    assert section.sortable
    scores = [float(row[4]) for row in section.rows]
    assert scores == sorted(scores)
    first = json.loads((small.path / "evaluation-test.json").read_text())["per_class"]
    worst = min(first, key=lambda one: (one["f1"], one["recall"]))
    assert section.rows[0][:2] == (worst["class_name"], str(worst["pictures"]))


def test_a_class_without_pictures_is_quiet_and_last(small: RunFolder) -> None:
    facts = small.evaluation("test") or {}
    facts["confusion"][0] = [0] * 6
    facts["confusion"][0:1] = [[0] * 6]
    (small.path / "evaluation-test.json").write_text(json.dumps(facts))
    section = _composed(small)[1]["Classes"]
    assert section.rows[-1][0] == "Breed number 1"
    assert section.quiet_rows == {5}
    assert "1 class has no picture there." in section.text


def test_worst_pairs_come_first(small: RunFolder) -> None:
    facts = small.evaluation("test") or {}
    matrix = np.diag([8] * 6)
    matrix[1, 2], matrix[1, 1], matrix[3, 4] = 5, 3, 1
    facts["confusion"] = matrix.tolist()
    (small.path / "evaluation-test.json").write_text(json.dumps(facts))
    pairs, figure = confusion_sections(read_run(small))
    assert pairs.rows == (
        ("Breed number 2", "Breed number 3", "5 of 8", "62.5 %"),
        ("Breed number 4", "Breed number 5", "1 of 9", "11.1 %"),
    )
    (trace,) = json.loads(figure.figure or "")["data"]
    assert trace["text"][1] == ["", "3", "5", "", "", ""]
    assert trace["customdata"][1][2] == "5 of 8 (62.5 %)"
    assert trace["z"][0][0] == -1  # right answers are on the other side of nothing
    assert trace["z"][1][2] == 1
    assert trace["z"][0][1] is None


def test_a_matrix_of_very_many_classes_shows_the_most_confused(
    fabricate: Callable[..., RunFolder], tmp_path: Path
) -> None:
    run = fabricate(tmp_path / "run", classes=400, epochs=1, steps=1, pictures=2)
    _, matrix = confusion_sections(read_run(run))
    assert "Shown are the 150 classes of 400" in matrix.text
    assert len(json.loads(matrix.figure or "")["data"][0]["z"]) == 150


def test_most_wrong_pictures_are_there_with_what_was_answered(small: RunFolder) -> None:
    rows = (small.path / "predictions-test.csv").read_text().splitlines()[1:]
    wrong = [row.split(",") for row in rows if row.split(",")[1] != row.split(",")[2]]
    cards = _composed(small)[1]["Most wrong pictures"].pictures
    assert len(cards) == min(len(wrong), 24)
    worst = max(wrong, key=lambda row: float(row[3]))
    assert cards[0].note == worst[0]
    assert cards[0].text.endswith(f"with {100 * float(worst[3]):.1f} %")
    source = cards[0].source or ""
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert max(image.size) == 160


def test_pictures_that_are_gone_are_said_to_be(small: RunFolder) -> None:
    pictures = small.path / "pictures"
    before = _composed(small)[1]["Most wrong pictures"].pictures
    (pictures / before[0].note).write_bytes(b"no picture")
    (pictures / before[1].note).unlink()
    section = _composed(small)[1]["Most wrong pictures"]
    assert [card.source is None for card in section.pictures[:3]] == [True, True, False]
    assert "gone" in section.pictures[0].alt
    assert "2 pictures of these could not be read" in section.text


def test_thumbnails_stay_within_their_part(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert len(thumbnail(tmp_path / "noise.png")) <= 250_000 / 24 * 3 / 4


def test_all_right_has_words(small: RunFolder) -> None:
    facts = small.evaluation("test") or {}
    facts["confusion"] = np.diag([8] * 6).tolist()
    small.write_evaluation("test", facts, [("a.jpg", "x", "x", "0.9")])
    _, sections = _composed(small)
    assert "every answer is right" in sections["Confused classes"].text
    assert "every answer is right" in sections["Most wrong pictures"].text
    (small.path / "predictions-test.csv").unlink()
    assert "predictions-test.csv" in _composed(small)[1]["Most wrong pictures"].text


def test_steps_are_thinned_by_means() -> None:
    values = thinned([float(at) for at in range(36_000)])
    assert len(values) == 1000
    assert values[0] == pytest.approx(17.5)
    assert np.isnan(thinned([1.0] * 5000 + [float("nan")])).sum() == 1
    assert thinned([1.0, 2.0]).tolist() == [1.0, 2.0]


def test_tries_of_a_solver_stand_over_weight_decay(small: RunFolder) -> None:
    lines = [json.loads(line) for line in (small.path / "metrics.jsonl").read_text().splitlines()]
    for line, decay in zip(lines, (0.1, 0.01, 0.001)):
        line["weight_decay"] = decay
    (small.path / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    lead, sections = _composed(small)
    assert "3 weight decays" in lead
    figure = json.loads(sections["Learning curves"].figure or "")
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["data"][0]["x"] == [0.001, 0.01, 0.1]
    assert _tiles(sections["Summary"])["Best weight decay"] == "0.001"


def test_settings_that_were_set_come_first(small: RunFolder) -> None:
    section = _composed(small)[1]["Settings"]
    assert [row[0] for row in section.rows[:2]] == ["lr", "epochs"]
    assert section.rows[1][1:3] == ("3", "10")
    assert section.quiet_rows == frozenset(range(2, len(section.rows)))
    assert len(section.rows) == len(Recipe.model_fields)


def test_the_command_says_the_same_settings(tmp_path: Path) -> None:
    recipe = Recipe(
        model="resnet18", lr=1e-5, epochs=3, nesterov=True, optimizer="sgd", size_px=96,
        unfreeze="2",
    )  # fmt: skip
    debugger = {"debug": True, "on_finding": ["stop", "overfit:notify=http://x"]}
    line = train_command("/data/my dogs", recipe.model_dump(exclude_none=True), debugger)
    words = shlex.split(line)
    assert words[:3] == ["vizsla", "train", "/data/my dogs"]
    assert words.count("--on-finding") == 2
    assert "--debug" in words
    told = subprocess.run(
        [sys.executable, "-c", PARSED, *words[3:]], capture_output=True, text=True, check=True
    )
    assert json.loads(told.stdout) == recipe.model_dump()


# The flags, taken apart as the command line does.
PARSED = """
import json, sys
from cyclopts import App, Parameter
from typing import Annotated
from vizsla.settings import Recipe, Settings
app = App()
@app.default
def read(settings: Annotated[Settings, Parameter(name="*")] = Settings(), *, debug: bool = False,
         on_finding: list[str] | None = None):
    print(json.dumps(Recipe(**settings.model_dump(exclude_unset=True)).model_dump()))
app(sys.argv[1:], result_action="return_value")
"""


def test_versions_are_pinned_without_a_build_s_own_suffix(small: RunFolder) -> None:
    code = _composed(small)[1]["Reproduce"].code
    assert code.splitlines()[0] == "pip install vizsla==0.1.0 torch==2.13.0"
    assert code.splitlines()[1] == "vizsla train /data/dogImages --lr 0.003 --epochs 3"


def test_the_command_observes_as_the_run_did(small: RunFolder) -> None:
    (small.path / "debug.json").write_text('{"debug": true, "rules": "overfit"}')
    (small.path / "profile.json").write_text('{"profile": true, "trace_steps": "2:4"}')
    line = _composed(small)[1]["Reproduce"].code.splitlines()[1]
    assert line.endswith("--debug --rules overfit --profile --trace-steps 2:4")
    (small.path / "profile.json").write_text("{")
    line = _composed(small)[1]["Reproduce"].code.splitlines()[1]
    assert line.endswith("--debug --rules overfit")


def test_data_tells_of_imbalance_and_of_pictures_of_no_use(small: RunFolder) -> None:
    from vizsla.records import PictureProblem

    small.write_problems([PictureProblem("a<b>.jpg", "truncated", "skipped")])
    _, sections = _composed(small)
    assert "The largest class, Breed number 6, has 31 training pictures" in sections["Data"].text
    assert sections["Data"].figure is not None
    assert sections["Corrupt pictures"].rows == (("a<b>.jpg", "skipped", "truncated"),)


def test_classes_alike_need_no_figure(finished_run: RunFolder) -> None:
    section = _composed(finished_run)[1]["Data"]
    assert "Each class has" in section.text
    assert section.figure is None


def test_names_in_figures_are_escaped(small: RunFolder) -> None:
    path = small.path / "evaluation-test.json"
    path.write_text(path.read_text().replace("Breed number 3", "<b>bold</b> <script>"))
    catalogue = small.catalogue.read_text().replace("003.Breed number 3", "003.<b>bold</b>")
    small.catalogue.write_text(catalogue)
    _, sections = _composed(small)
    for title in ("Confusion matrix", "Data"):
        figure = json.loads(sections[title].figure or "")
        told = json.dumps(figure["data"])
        assert "&lt;b&gt;bold" in told
        assert "<b>" not in told


def test_a_large_run_is_built_fast_and_small(large_run: RunFolder, tmp_path: Path) -> None:
    _composed(large_run)  # imports aside
    started = time.process_time()
    lead, sections = compose(large_run, [], [], [], [])
    write_page(tmp_path / "page.html", large_run.name, lead, sections)
    assert time.process_time() - started < 3  # 0.6 s on two cores at rest
    assert (tmp_path / "page.html").stat().st_size < 5_500_000


def test_a_report_needs_no_torch(finished_run: RunFolder) -> None:
    script = (
        "import sys; from pathlib import Path; from vizsla.reports.run_page import compose; "
        "from vizsla.runs.folder import RunFolder; "
        "compose(RunFolder.open(Path(sys.argv[1])), [], [], [], []); "
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(finished_run.path)], check=True)
