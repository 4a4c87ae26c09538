from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vizsla.profiling.energy import Energy, cost_of, energy_of
from vizsla.profiling.recorded import Profile

START = 1_700_000_000.0
GB = 1_000_000_000


def energy(run: Path, *nodes: list[dict[str, Any]], **about: Any) -> Energy:
    facts = {"kind": "about", "interval_ms": 60_000, "cores": 4, "machine_cores": 4}
    for number, samples in enumerate(nodes, start=1):
        lines = [facts | {"memory_bytes": 10 * GB} | about, *samples]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / f"profile-algo-{number}.jsonl").write_text(text)
    found = energy_of(Profile(run))
    assert found is not None
    return found


def an_hour(**numbers: Any) -> list[dict[str, Any]]:
    common = {"kind": "sample", "cpu": [100.0] * 4} | numbers
    return [common | {"time": START + 60 * minute} for minute in range(60)]


def test_processor_and_memory_are_estimated_by_published_coefficients(tmp_path: Path) -> None:
    found = energy(tmp_path, an_hour())
    assert found.seconds == 3600
    assert found.processor_kwh == pytest.approx(4 * 3.5 / 1000)
    assert found.memory_kwh == pytest.approx(10 * 0.000392)
    assert found.gpu_kwh == 0
    assert found.kwh == pytest.approx(0.014 + 0.00392)
    assert found.measured == 0
    assert "estimate" in found.how
    assert "PUE" in found.how


def test_idle_cores_use_less(tmp_path: Path) -> None:
    assert energy(tmp_path, an_hour(cpu=[0.0] * 4)).processor_kwh == pytest.approx(4 * 0.74 / 1000)


def test_the_power_of_graphics_cards_is_measured(tmp_path: Path) -> None:
    cards = [{"watts": 300.0}, {"watts": 100.0}, {"utilization": 50}]
    found = energy(tmp_path, an_hour(gpus=cards))
    assert found.gpu_kwh == pytest.approx(0.4)
    assert found.measured == pytest.approx(0.4 / found.kwh)
    assert "NVML" in found.how
    assert "One graphics card does not tell the power" in found.how


def test_where_rapl_can_be_read_nothing_is_estimated(tmp_path: Path) -> None:
    found = energy(tmp_path, an_hour(watts=50.0))
    assert found.kwh == found.processor_kwh == pytest.approx(0.05)
    assert found.measured == 1
    assert "RAPL" in found.how
    assert "estimate" not in found.how


def test_a_sample_without_power_is_taken_to_be_like_the_others(tmp_path: Path) -> None:
    samples = an_hour(watts=50.0)
    for sample in samples[::2]:
        del sample["watts"]
    assert energy(tmp_path, samples).processor_kwh == pytest.approx(0.05)


def test_a_pause_between_sessions_uses_nothing(tmp_path: Path) -> None:
    morning = an_hour()
    evening = [one | {"time": one["time"] + 12 * 3600} for one in morning]
    assert energy(tmp_path, morning + evening).seconds == 7200


def test_machines_are_added_up(tmp_path: Path) -> None:
    found = energy(tmp_path, an_hour(), an_hour())
    assert found.seconds == 7200
    assert found.processor_kwh == pytest.approx(2 * 4 * 3.5 / 1000)


def test_of_a_shared_machine_the_runs_part_counts(tmp_path: Path) -> None:
    samples = an_hour(cpu=[100.0] * 8, tree_cpu=0.0)
    found = energy(tmp_path, samples, machine_cores=8)
    assert found.processor_kwh == pytest.approx(4 * 0.74 / 1000)
    assert found.memory_kwh == pytest.approx(5 * 0.000392)
    limited = energy(tmp_path, samples, machine_cores=8, memory_limit_bytes=2 * GB)
    assert limited.memory_kwh == pytest.approx(2 * 0.000392)


def test_a_run_that_was_not_sampled_has_no_energy(tmp_path: Path) -> None:
    assert energy_of(Profile(tmp_path)) is None
    (tmp_path / "profile-algo-1.jsonl").write_text('{"kind":"about","interval_ms":500}\n')
    assert energy_of(Profile(tmp_path)) is None


def test_a_sample_that_knows_nothing_still_counts_its_time(tmp_path: Path) -> None:
    found = energy(tmp_path, [{"kind": "sample", "time": START}], cores=0, machine_cores=0)
    assert found.seconds == 60
    assert found.kwh > 0


def test_cost_is_time_by_price() -> None:
    assert cost_of(1800, 3.06) == pytest.approx(1.53)
