"""Each rule finds its illness in a profile, and none finds anything in a healthy one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vizsla.findings import Finding
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules import DEFAULT_RULES, RULES
from vizsla.profiling.rules.choosing import choose_rules
from vizsla.runs.files import plain_number

ProfileMaker = Callable[..., ProfileRecord]
RECIPE = {"model": "resnet18", "epochs": 5, "workers": 1, "batch_size": 32, "cache": "off"}
NOISE = np.random.default_rng(0)
STEPS = 3000  # of 0.25 s: 750 s, more than the longest patience
SAMPLES = 1704  # of these and their evaluations

# A laptop that trains on its cores, and a machine with two GPUs: both as they should be.
WELL: dict[str, Any] = {
    "steps": STEPS,
    "phases": {"data_wait": 0.01, "forward": 0.09 + 5e-4 * NOISE.random(STEPS),
               "backward": 0.14, "optimiser": 0.01},
    "pauses": dict.fromkeys(range(501, STEPS, 500), ("evaluation", 20.0)),
    "startup": {"import": 3.0, "data": 0.5, "model": 0.3, "setup": 0.2, "first_step": 0.3},
    "cpu": 95.0,
    "columns": {"memory": 40.0, "own_bytes": 2e9 + 1e8 * NOISE.random(5000), "processes": 4},
    "recipe": RECIPE | {"workers": 3},
}  # fmt: skip
GPU = {"utilization": 90 + 8 * NOISE.random(5000), "memory": 60.0, "throttled": 0, "celsius": 70.0}
WELL_ON_GPU: dict[str, Any] = {
    **WELL, "cpu": 40.0, "gpus": [GPU, GPU | {"utilization": 92.0}], "device": "cuda",
}  # fmt: skip
STARVED = {"phases": {"data_wait": 0.2, "forward": 0.05}, "recipe": RECIPE}


def on_gpu(**change: Any) -> dict[str, Any]:
    return {**WELL_ON_GPU, "gpus": [GPU | change, GPU | change]}


def rise(first: float, last: float) -> np.ndarray:
    return np.linspace(first, last, SAMPLES)


def often(usual: float, other: float, every: int, count: int = STEPS) -> np.ndarray:
    return np.where(np.arange(count) % every == 0, other, usual)


# Of each rule: what makes it fire, what is found then, and a word of the advice.
ILL: dict[str, list[tuple[dict[str, Any], str]]] = {
    "batch_size": [
        (on_gpu(utilization=40.0, memory=30.0), "--batch-size 64"),
        ({"cpu": 30.0}, "--batch-size 64"),
    ],
    "cpu_bottleneck": [
        (on_gpu(utilization=5.0) | {"cpu": 97.0}, "--cache disk"),
        (STARVED | {"cpu": 97.0}, "--cache disk"),
    ],
    "io_bottleneck": [
        (on_gpu(utilization=30.0) | {"cpu": 5.0, "iowait": 40.0}, "disk is what is slow"),
        (STARVED | {"cpu": 5.0, "iowait": 40.0}, "disk is what is slow"),
    ],
    "gpu_memory_increase": [(on_gpu(memory=rise(30, 95)), "loss.detach()")],
    "low_gpu_utilization": [
        (on_gpu(utilization=40.0), "--batch-size 64"),
        (on_gpu(utilization=often(95.0, 2.0, every=4)), "loss.item()"),
        ({"cpu": 25.0, "about": {"torch_threads": 1}}, "OMP_NUM_THREADS=4"),
        ({"cpu": 25.0}, "--batch-size 64"),
    ],
    "load_balancing": [
        ({**WELL_ON_GPU, "gpus": [GPU, GPU | {"utilization": 20.0}]}, "same number of pictures"),
        ({"phases": [{"forward": 0.3, "backward": 0.1}, {"forward": 0.1, "backward": 0.3}]},
         "same number of pictures"),
    ],
    "max_initialization_time": [({"startup": {"data": 1500.0, "first_step": 9.0}}, "local disk")],
    "step_outlier": [
        ({"phases": {"forward": NOISE.choice([0.2, 2.0], STEPS, p=[0.98, 0.02])}}, "program"),
        ({"phases": {"data_wait": often(0.02, 3.0, 100), "forward": 0.2}}, "persistent_workers"),
    ],
    "dataloader": [
        (STARVED | {"cpu": 40.0}, "--workers"),
        ({"recipe": {}, "columns": {"processes": 21, "runnable": 20, "threads": 60}},
         "num_workers=4"),
    ],
    "overall_system_usage": [({}, "statistics")],
    "overall_framework_metrics": [({}, "statistics")],
    "data_starved": [
        (STARVED | {"cpu": 30.0}, "--workers 4"),
        (STARVED | {"cpu": 98.0}, "--cache disk"),
        (STARVED | {"cpu": 98.0, "recipe": RECIPE | {"cache": "disk", "train_crop": "random",
                                                     "epochs": 20}}, "--views 8"),
        (STARVED | {"cpu": 98.0, "recipe": RECIPE | {"cache": "disk", "unfreeze": "all"}},
         "store them smaller"),
        (STARVED | {"trunk": {"place": "disk"}}, "--cache memory"),
        (STARVED | {"cpu": 30.0, "recipe": {}}, "DataLoader(num_workers=4"),
        (STARVED | {"iowait": 30.0}, "disk is what is slow"),
    ],
    "thread_oversubscription": [
        ({"columns": {"runnable": 33, "threads": 40, "tree_cpu": 390.0}, "recipe": {}},
         "OMP_NUM_THREADS=4"),
        ({"columns": {"runnable": 33, "threads": 60, "tree_cpu": 390.0},
          "recipe": RECIPE | {"workers": 24}}, "--workers 4"),
        ({"about": {"torch_threads": 64}}, "OMP_NUM_THREADS=4"),
    ],
    "crowded_machine": [({"cpu": 99.0, "columns": {"tree_cpu": 120.0}}, "quiet machine")],
    "memory_leak": [
        ({"columns": {"own_bytes": rise(2e9, 5e9) + 2e8 * NOISE.random(SAMPLES),
                      "memory_bytes": rise(4e9, 7e9)}}, "item()"),
        ({"columns": {"tree_bytes": 2e9 + rise(1e9, 4e9), "own_bytes": 2e9,
                      "memory_bytes": rise(4e9, 7e9)}}, "NumPy array"),
        ({"steps": 0, "samples": 900, "startup": {}, "columns": {"tree_bytes": rise(1e9, 4e9),
          "memory_bytes": None}}, "tracemalloc"),
    ],
    "slow_start": [
        ({"startup": {"import": 4.0, "weights": 170.0, "first_step": 2.0}}, "--weights FILE"),
        ({"startup": {"import": 4.0, "first_step": 400.0}, "recipe": RECIPE | {"compile": True}},
         "--compile"),
    ],
    "thermal_throttle": [
        ({"columns": {"throttled": np.arange(STEPS) // 4, "celsius": 97.0}}, "vents"),
        (on_gpu(throttled=often(0, 1, every=3)), "vents"),
    ],
    "precision_unused": [
        ({"facts": [{"kind": "fact", "name": "bf16_gain", "gain": 1.7, "precision": "fp32",
                     "fp32_seconds": 0.17, "bf16_seconds": 0.1}]}, "--precision bf16"),
        ({"facts": [{"kind": "fact", "name": "bf16_gain", "gain": 0.6, "precision": "bf16",
                     "fp32_seconds": 0.06, "bf16_seconds": 0.1}]}, "--precision fp32"),
    ],
    "frozen_work": [
        ({"facts": [{"kind": "fact", "name": "frozen_work", "trunk_seconds_per_picture": 0.02,
                     "passes": 25_000, "saved": 20_000, "why": "cache is off"}]}, "--cache disk"),
        ({"recipe": RECIPE | {"cache": "disk", "mixup": 0.2}, "facts": [
            {"kind": "fact", "name": "frozen_work", "trunk_seconds_per_picture": 0.02,
             "saved": 20_000, "why": "pictures vary anew every epoch (views 8, say)"}]},
         "--views 8 and leave out --mixup"),
    ],
}  # fmt: skip
CASES = [
    pytest.param(name, change, words, id=f"{name}-{number}")
    for name, cases in ILL.items()
    for number, (change, words) in enumerate(cases)
]


def findings_of(wanted: str, record: ProfileRecord) -> list[Finding]:
    found = [finding for rule in choose_rules(wanted) for finding in rule.judge(record)]
    json.dumps([one.to_dict() for one in found], default=plain_number)
    return found


def test_each_rule_has_an_illness_here() -> None:
    assert set(ILL) == set(RULES)
    assert set(DEFAULT_RULES) == set(RULES) - {"overall_system_usage", "overall_framework_metrics"}


@pytest.mark.parametrize(("name", "change", "words"), CASES)
def test_rule_finds_its_illness_and_names_a_cure(
    name: str, change: dict[str, Any], words: str, make_profile: ProfileMaker
) -> None:
    record = make_profile(**{**WELL, **change})
    assert RULES[name]().applies(record) is None
    found = findings_of(name, record)
    assert found
    assert found[0].rule == name
    assert words in found[0].advice
    if found[0].measured is not None:
        assert str(found[0].measured) != "nan"


@pytest.mark.parametrize("well", [WELL, WELL_ON_GPU], ids=["cores", "GPUs"])
def test_healthy_training_has_no_findings(well: dict[str, Any], make_profile: ProfileMaker) -> None:
    assert findings_of("default", make_profile(**well)) == []


@pytest.mark.parametrize("name", RULES)
def test_rule_is_silent_where_it_says_that_it_does_not_apply(
    name: str, make_profile: ProfileMaker
) -> None:
    for given in ({}, {"samples": 50}, {"steps": 10, "phases": {"forward": 0.1}}):
        record = make_profile(**given)
        if RULES[name]().applies(record) is not None:
            assert findings_of(name, record) == []


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("gpu_memory_increase", WELL, "there is no GPU"),
        ("low_gpu_utilization", {**WELL, "steps": 100}, "8 min 30 s of steps, and these took"),
        ("batch_size", {"samples": 900}, "no GPU, and no steps were timed"),
        ("data_starved", {"samples": 900}, "no steps were timed"),
        ("dataloader", {**WELL, "trunk": {"place": "disk"}}, "without loader processes"),
        ("load_balancing", WELL, "no two"),
        ("io_bottleneck", {**WELL, "iowait": None}, "I/O wait"),
        ("thermal_throttle", {"samples": 90, "columns": {"throttled": None}}, "neither"),
        ("precision_unused", WELL, "does not compute bf16 natively"),
        ("precision_unused", {**WELL, "recipe": {}}, "own trainings alone"),
        ("frozen_work", {**WELL, "recipe": {"unfreeze": "all"}}, "no layers are frozen"),
        ("frozen_work", {**WELL, "trunk": {"place": "disk"}}, "are kept"),
        ("memory_leak", {**WELL, "pauses": {}}, "the first epoch"),
        ("memory_leak", {"samples": 9}, "it needs 10 s, and the program was sampled for 4 s"),
        ("crowded_machine", {"samples": 90}, "no steps were timed"),
        ("crowded_machine", {**WELL, "about": {"cores": 2}}, "nobody tells here what other"),
        ("slow_start", {"startup": {"import": 90.0}}, "no steps were timed"),
        ("slow_start", {**WELL, "is_over": False}, "the first epoch is not over"),
        ("thread_oversubscription", {"steps": 90, "phases": {"forward": 0.1}, "samples": 0},
         "was not sampled"),
    ],
)  # fmt: skip
def test_rule_says_why_it_cannot_judge(
    name: str, given: dict[str, Any], why: str, make_profile: ProfileMaker
) -> None:
    assert why in str(RULES[name]().applies(make_profile(**given)))
