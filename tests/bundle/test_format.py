"""`bundle.json` comes back as it was written, and whatever is wrong with a bundle is told."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.bundle.format import BundleFacts, check_files, describe_files, read_facts
from vizsla.bundle.predictor import load_bundle
from vizsla.data.transforms import Preprocessing
from vizsla.errors import BundleError
from vizsla.records import ClassLabel
from vizsla.runs.files import write_json
from vizsla.runs.folder import RunFolder

FACTS = BundleFacts(
    architecture="test_resnet",
    arguments={"pad_type": "same"},
    classes=(ClassLabel.from_folder("001.Affenpinscher"), ClassLabel.from_folder("Zoë's dog")),
    preprocessing=Preprocessing(size_px=64, crop="pad", mean=(0.1, 0.2, 0.3)),
    recipe={"epochs": 3, "lr": None},
    metrics={"valid": {"accuracy": 0.5}},
    data={"fingerprint": "abc", "split_seed": None},
    created="2026-11-21T10:00:00+00:00",
    vizsla="0.1.0",
    temperature=1.5,
    abstention_threshold=0.4,
)


def _written(folder: Path, content: dict[str, Any]) -> Path:
    write_json(folder / "bundle.json", content)
    return folder


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    assert read_facts(_written(tmp_path, FACTS.to_dict())) == FACTS


def test_export_comes_back_and_older_readers_never_meet_an_empty_one(tmp_path: Path) -> None:
    exported = replace(FACTS, export={"format": "onnx", "verification": {"agreement": 0.98}})
    assert read_facts(_written(tmp_path, exported.to_dict())) == exported
    assert "export" not in FACTS.to_dict()


def test_facts_of_a_training_are_complete(finished_run: RunFolder) -> None:
    facts = read_facts(finished_run.bundle)
    assert facts.architecture == "test_resnet"
    assert [label.code for label in facts.classes] == ["001", "002", "003"]
    assert facts.preprocessing.size_px == 64
    assert set(facts.metrics) == {"valid", "test"}
    assert facts.recipe["epochs"] == 2
    assert facts.data["fingerprint"] == finished_run.facts()["data"]["fingerprint"]
    names = {"model.onnx", "model.safetensors", "model.pth", "card.md", "code/inference.py"}
    assert names <= set(facts.files)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_bundle_of_another_version_is_told(tmp_path: Path, version: Any) -> None:
    folder = _written(tmp_path, {**FACTS.to_dict(), "format_version": version})
    with pytest.raises(BundleError, match=f"format version {version}, and this vizsla reads"):
        read_facts(folder)


def test_folder_without_facts_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: it has no bundle.json"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format_version":1}']
)
def test_damaged_facts_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError):
        read_facts(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(name=st.sampled_from(["classes", "preprocessing"]), value=_JSON)
@settings(max_examples=80, deadline=None)
def test_any_value_in_the_facts_is_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any
) -> None:
    folder = _written(tmp_path_factory.mktemp("facts"), {**FACTS.to_dict(), name: value})
    try:
        read_facts(folder)
    except BundleError as error:
        told = str(error)
    else:
        return
    assert "is damaged" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size_px", "x"), ("size_px", 0), ("size_px", 10**9), ("size_px", 64.5), ("crop", "round"),
        ("interpolation", None), ("crop_pct", 0), ("crop_pct", "x"), ("mean", []), ("mean", [1, 2]),
        ("mean", ["a", "b", "c"]), ("std", [0.2, 0.2, 0]), ("std", [0.2, 0.2, float("nan")]),
    ],
)  # fmt: skip
def test_preprocessing_that_prepares_no_picture_is_told(
    tmp_path: Path, name: str, value: Any
) -> None:
    facts = FACTS.to_dict()
    facts["preprocessing"][name] = value
    with pytest.raises(BundleError, match="is damaged"):
        read_facts(_written(tmp_path, facts))


@pytest.mark.parametrize("name", [name for name in asdict(FACTS) if name not in (
    "temperature", "abstention_threshold", "files", "export"
)])  # fmt: skip
def test_missing_fact_is_told(tmp_path: Path, name: str) -> None:
    content = FACTS.to_dict()
    del content[name]
    with pytest.raises(BundleError, match=f"is damaged: .*{name}"):
        read_facts(_written(tmp_path, content))


@pytest.fixture
def bundle(finished_run: RunFolder, tmp_path: Path) -> Path:
    """A copy of a real bundle, to spoil."""
    return Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))


def test_untouched_files_pass_the_check(bundle: Path) -> None:
    check_files(bundle, read_facts(bundle))
    assert describe_files(bundle) == read_facts(bundle).files


@pytest.mark.parametrize("name", ["model.onnx", "model.pth", "card.md", "code/inference.py"])
def test_changed_file_is_caught(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} is not the file.*damaged"):
        check_files(bundle, read_facts(bundle))
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(bundle, check=True)


def test_missing_file_is_caught(bundle: Path) -> None:
    (bundle / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"lacks model\.safetensors"):
        load_bundle(bundle, check=True)


@pytest.mark.parametrize("files", [["model.onnx"], {"model.onnx": {}}, {"model.onnx": "abc"}])
def test_damaged_list_of_files_is_told(bundle: Path, files: Any) -> None:
    facts = replace(read_facts(bundle), files=files)
    _written(bundle, {**facts.to_dict(), "files": files})
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(bundle, check=True)


def test_broken_network_is_told(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"not a network")
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded"):
        load_bundle(bundle)
