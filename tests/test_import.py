"""Importing the package is light, and a bundle answers where the heavy packages are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vizsla
import vizsla.debugging
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder

PUBLIC = [
    "Prediction",
    "Predictor",
    "Recipe",
    "Run",
    "RunFolder",
    "Settings",
    "Study",
    "VizslaError",
    "__version__",
    "debug",
    "evaluate",
    "export",
    "load_bundle",
    "open_run",
    "open_study",
    "predict",
    "report",
    "serve",
    "train",
    "tune",
]
NOT_FOR_ANSWERS = ("torch", "torchvision", "timm", "pydantic", "rich", "cyclopts", "accelerate")


def _python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_brings_in_no_other_package() -> None:
    code = "import sys, json; import vizsla; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(_python(code))}
    assert not loaded & {*NOT_FOR_ANSWERS, "numpy", "PIL", "onnxruntime", "onnx", "filelock"}


def test_who_leads_a_study_needs_no_torch() -> None:
    code = "import sys, vizsla.cli.tune, vizsla.cli.tuning_progress, vizsla.tuning.sitting\n"
    code += "import json; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(_python(code))}
    assert not loaded & {"torch", "torchvision", "timm", "accelerate", "pandas", "plotly"}


def test_debugger_is_imported_when_it_is_used() -> None:
    code = "import sys, vizsla.debugging, json; print(json.dumps(sorted(sys.modules)))"
    assert "torch" not in json.loads(_python(code))
    assert vizsla.debugging.__all__ == sorted(vizsla.debugging.__all__)
    for name in vizsla.debugging.__all__:
        assert getattr(vizsla.debugging, name) is not None


def test_public_names_are_pinned_and_sorted() -> None:
    assert vizsla.__all__ == PUBLIC
    assert vizsla.__all__ == sorted(vizsla.__all__)
    assert dir(vizsla) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves(name: str) -> None:
    assert getattr(vizsla, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        _ = vizsla.tain  # type: ignore[attr-defined]


def test_bundle_answers_without_the_training_packages(
    finished_run: RunFolder, dogs: DrawnDataset
) -> None:
    picture = next(Path(dogs.folder, "test").rglob("*.jpg"))
    code = f"""
import sys
for name in {NOT_FOR_ANSWERS}:
    sys.modules[name] = None
from vizsla import load_bundle
print(load_bundle(sys.argv[1]).predict(sys.argv[2]).predicted_label)
"""
    assert _python(code, finished_run.path, picture).strip() in {"001", "002", "003"}
