"""Every engine answers as torch does, or is not used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vizsla.data.transforms import Preprocessing
from vizsla.errors import DependencyError, ModelError
from vizsla.models import engine_choice
from vizsla.models.build import rebuild
from vizsla.models.engine_choice import EngineChooser
from vizsla.models.freezing import plan_freezing
from vizsla.models.partition import partition
from vizsla.models.trunk_engines import (
    BATCH,
    OnnxTrunk,
    OpenVinoTrunk,
    PixelTrunk,
    TorchTrunk,
    TrunkEngine,
    full_batch,
    to_onnx,
)

SIZE_PX = 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))


def trunk(architecture: str = "test_resnet", unfreeze: str = "head") -> PixelTrunk:
    torch.manual_seed(0)
    arguments = {"img_size": SIZE_PX} if "vit" in architecture else {}
    module = rebuild(architecture, arguments, 3)
    policy = plan_freezing(module, unfreeze)
    policy.apply(module)
    halves = partition(module, policy.trainable, SIZE_PX)
    assert halves is not None
    return PixelTrunk(halves.trunk.eval(), Preprocessing(size_px=SIZE_PX))


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, SIZE_PX, SIZE_PX, 3), generator=generator).byte()


def engine(name: str, module: PixelTrunk) -> TrunkEngine:
    if name == "onnxruntime":
        return OnnxTrunk(to_onnx(module))
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return OpenVinoTrunk(to_onnx(module), SIZE_PX)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("architecture", "unfreeze"),
    [
        ("test_resnet", "head"),
        ("test_resnet", "layer4"),
        ("test_vit", "head"),
        ("test_vit", "2"),
        ("test_efficientnet", "last"),
        ("test_convnext", "head"),
    ],
)
def test_engines_answer_as_torch_does(name: str, architecture: str, unfreeze: str) -> None:
    module = trunk(architecture, unfreeze)
    batch = pictures(BATCH)
    expected, got = TorchTrunk(module)(batch), engine(name, module)(batch)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_picture_gets_the_same_bits_in_any_company(name: str) -> None:
    made = engine(name, trunk())
    batch = pictures(BATCH)
    whole, part = made(batch), made(full_batch(batch[:5]))
    assert torch.equal(whole[:5], part[:5])


def test_the_fastest_is_measured_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "_TRIAL_S", 0.01)
    module = trunk()
    first = EngineChooser(module, "a network", False, False).choose("auto", pictures(8), 10_000)
    assert first.why.startswith("measured: ")
    (entry,) = json.loads((tmp_path / "cache" / "engines.json").read_text()).values()
    assert entry["engine"] == first.engine.name
    rates = entry["pictures_per_second"]
    assert max(rates, key=rates.__getitem__) == first.engine.name
    again = EngineChooser(module, "a network", False, False).choose("auto", pictures(8), 10_000)
    assert (again.engine.name, again.why) == (first.engine.name, "measured before")


def test_what_cannot_be_remembered_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "_TRIAL_S", 0.01)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "file" / "cache"))
    choice = EngineChooser(trunk(), "a network", False, False).choose("auto", pictures(8), 10_000)
    assert choice.why.startswith("measured")


def test_a_run_that_is_taken_up_again_keeps_its_engine_if_it_can() -> None:
    module = trunk()
    for before, name in (("onnxruntime", "onnxruntime"), ("none", "torch")):
        chooser = EngineChooser(module, "a network", False, False, before)
        assert chooser.choose("auto", pictures(8), 100).engine.name == name


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', '{"KEY": {"engine": "cuda"}}'])
def test_a_damaged_memory_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(engine_choice, "_TRIAL_S", 0.01)
    chooser = EngineChooser(trunk(), "a network", False, False)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "engines.json").write_text(content.replace("KEY", chooser._key))
    assert chooser.choose("auto", pictures(8), 10_000).why.startswith("measured")


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_where_bf16_is_too_far_off_an_engine_computes_in_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setattr(engine_choice, "LARGEST_ERROR", 1e-4)  # finer than bf16's own steps
    module, batch = trunk(), pictures(BATCH)
    chosen = EngineChooser(module, "a network", True, False).choose(name, batch, 100).engine
    assert chosen.name == name
    torch.testing.assert_close(chosen(batch), TorchTrunk(module)(batch), rtol=1e-3, atol=1e-4)


def test_few_passes_are_not_worth_a_trial() -> None:
    choice = EngineChooser(trunk(), "a network", False, False).choose("auto", pictures(8), 100)
    assert (choice.engine.name, choice.why) == ("torch", "few passes")


def test_a_deterministic_run_does_not_let_the_clock_choose() -> None:
    choice = EngineChooser(trunk(), "a network", False, True).choose("auto", pictures(8), 10_000)
    assert (choice.engine.name, choice.why) == ("onnxruntime", "deterministic")


def test_an_engine_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = OnnxTrunk.__call__
    monkeypatch.setattr(OnnxTrunk, "__call__", lambda self, pixels: right(self, pixels) * 1.05)
    chooser = EngineChooser(trunk(), "a network", False, True)
    with pytest.raises(ModelError, match=r"onnxruntime is off by 5\.0% .*set trunk_engine"):
        chooser.choose("onnxruntime", pictures(8), 10_000)
    assert chooser.choose("auto", pictures(8), 10_000).engine.name == "torch"


def test_an_engine_that_fails_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(engine_choice, "to_onnx", fail)
    chooser = EngineChooser(trunk(), "a network", False, True)
    with pytest.raises(ModelError, match="cannot run this network: no such operator. Set"):
        chooser.choose("onnxruntime", pictures(8), 10_000)
    assert chooser.choose("auto", pictures(8), 10_000).engine.name == "torch"


def test_an_engine_that_is_not_installed_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    chooser = EngineChooser(trunk(), "a network", False, False)
    with pytest.raises(DependencyError, match=r"pip install 'vizsla\[openvino\]'"):
        chooser.choose("openvino", pictures(8), 10_000)
