"""What looks like an illness and is none, and what nobody could make sense of: rules keep still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vizsla.errors import SettingError
from vizsla.profiling.format import SAMPLED, SAMPLED_OF_GPU, STEP_PHASES, timeline_file
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.recorded import Profile
from vizsla.profiling.rules import RULES
from vizsla.profiling.rules.choosing import choose_rules
from vizsla.profiling.rules.trend import steady_rise, theil_sen
from vizsla.runs.files import append_lines

ProfileMaker = Callable[..., ProfileRecord]
START = 1_750_000_000.0
COUNT = 2000
AT = np.arange(COUNT)
NOISE = np.random.default_rng(0)
STEPS = {"steps": COUNT, "phases": {"data_wait": 0.01, "forward": 0.24}, "recipe": {}}


def found_by(name: str, record: ProfileRecord) -> list[str]:
    return [one.meaning for rule in choose_rules(name) for one in rule.judge(record)]


NO_LEAKS = {
    "growth of the beginning": 2e9 + 1e9 * (1 - np.exp(-AT / 300)),
    "a plateau after a jump": 2e9 + 1e9 * (AT > 1200),
    "two jumps": 2e9 + 5e8 * (AT > 800) + 5e8 * (AT > 1500),
    "a sawtooth": 2e9 + 1e9 * ((AT % 300) / 300),
    "a slow sawtooth": 2e9 + 1e9 * (((AT + 300) % 900) / 900),
    "noise": 2e9 + 5e8 * NOISE.random(COUNT),
    "a little growth": np.linspace(2e9, 2.09e9, COUNT),
    "growth by less than a tenth": np.linspace(2e9, 2.18e9, COUNT),
    "less and less": np.linspace(4e9, 2e9, COUNT),
}


@pytest.mark.parametrize("kind", NO_LEAKS)
def test_memory_that_does_not_go_on_growing_is_no_leak(
    kind: str, make_profile: ProfileMaker
) -> None:
    own = NO_LEAKS[kind] + 2e7 * NOISE.random(COUNT)
    columns = {"own_bytes": own, "tree_bytes": own + 1e9, "memory_bytes": own + 4e9}
    assert found_by("memory_leak", make_profile(**STEPS, columns=columns)) == []


@pytest.mark.parametrize(
    ("machine", "leaks"),
    [
        (6e9 + 1e8 * NOISE.random(COUNT), False),
        (np.linspace(9e9, 5e9, COUNT), True),
        (6e9 + 9e9 * NOISE.random(COUNT), True),
    ],
    ids=["stands still", "falls, since others let go", "goes up and down"],
)
def test_files_that_are_mapped_are_no_leak(
    machine: Any, leaks: bool, make_profile: ProfileMaker
) -> None:
    """The system takes their pages back: they count as a process's memory, not as the machine's."""
    growing = np.linspace(1e9, 4e9, 1000)
    for columns in ({"own_bytes": growing}, {"own_bytes": 1e9, "tree_bytes": 1e9 + growing}):
        record = make_profile(**STEPS, columns=columns | {"memory_bytes": machine})
        assert bool(found_by("memory_leak", record)) == leaks


def test_leak_is_measured_under_noise(make_profile: ProfileMaker) -> None:
    samples = 1000  # of half a second each
    own = np.linspace(2e9, 3e9, samples) + 2e8 * NOISE.random(samples)
    record = make_profile(**STEPS, columns={"own_bytes": own, "memory_bytes": 5e9 + own})
    (found,) = [one for rule in choose_rules("memory_leak") for one in rule.judge(record)]
    low, high = found.evidence["mb_per_minute_low"], found.evidence["mb_per_minute_high"]
    assert low < 120 < high
    assert high - low < 20
    assert found.evidence["mb_per_1000_steps"] == pytest.approx(500, rel=0.1)


def test_slope_and_its_confidence_are_right_for_a_line() -> None:
    x = np.arange(50.0)
    trend = theil_sen(x, 3 * x)
    assert (trend.slope, trend.low, trend.high) == (3, 3, 3)
    within = 0
    for _ in range(200):
        trend = theil_sen(x, 3 * x + NOISE.normal(0, 5, 50))
        within += trend.low <= 3 <= trend.high
    assert 180 <= within <= 200
    assert steady_rise(x[:5], x[:5], 0.0, 0.0) is None


def test_busy_cores_are_no_fault_on_a_processor(make_profile: ProfileMaker) -> None:
    record = make_profile(**STEPS, cpu=100.0, columns={"runnable": 8, "threads": 40})
    assert found_by("default", record) == []


def test_short_run_is_not_judged_by_its_use(make_profile: ProfileMaker) -> None:
    short = {"steps": 100, "phases": {"forward": 0.3}, "cpu": 5.0}
    record = make_profile(**short)
    assert found_by("default", record) == []
    assert found_by("batch_size:patience=0", record)


def test_first_steps_and_those_after_pauses_are_no_outliers(make_profile: ProfileMaker) -> None:
    forward = np.full(COUNT, 0.1)
    starts = [*range(1, COUNT, 20)]
    forward[[at - 1 for at in starts]] = 5.0
    pauses = dict.fromkeys(starts[1:], ("evaluation", 1.0))
    record = make_profile(steps=COUNT, phases={"forward": forward}, pauses=pauses)
    assert found_by("step_outlier", record) == []
    unseen = make_profile(steps=COUNT, phases={"forward": forward})
    assert "about every 20 steps" in found_by("step_outlier", unseen)[0]


def test_captured_and_traced_steps_are_no_outliers(make_profile: ProfileMaker) -> None:
    debugger = np.where(AT % 50 == 0, 1.0, 0.0)
    record = make_profile(steps=COUNT, phases={"forward": 0.1, "debugger": debugger})
    assert found_by("step_outlier", record) == []
    forward = np.where((AT >= 100) & (AT < 120), 3.0, 0.1)
    record = make_profile(steps=COUNT, phases={"forward": forward})
    assert found_by("step_outlier", record)
    (record.profile.run / "trace-101-121.json.gz").touch()
    assert found_by("step_outlier", record) == []


def test_steps_that_vary_by_nature_are_no_outliers(make_profile: ProfileMaker) -> None:
    forward = 0.1 * NOISE.lognormal(0, 0.25, COUNT)
    assert found_by("step_outlier", make_profile(steps=COUNT, phases={"forward": forward})) == []


def test_one_long_wait_is_no_want_of_data(make_profile: ProfileMaker) -> None:
    wait = np.where(AT == 500, 900.0, 0.01)
    record = make_profile(steps=COUNT, phases={"data_wait": wait, "forward": 0.2})
    assert found_by("data_starved", record) == []


def test_threads_of_other_programs_are_none_of_its_business(make_profile: ProfileMaker) -> None:
    crowd = {"runnable": 64, "threads": 40, "tree_cpu": 40.0}
    assert found_by("thread_oversubscription", make_profile(**STEPS, columns=crowd)) == []


def test_threads_of_a_neighbour_are_not_taken_for_those_that_sleep(
    make_profile: ProfileMaker,
) -> None:
    """A container's neighbour of twenty threads has a third of the cores; ours sleep."""
    neighbour = {"cpu": 100.0, "columns": {"runnable": 26, "threads": 40, "tree_cpu": 265.0}}
    well = {**STEPS, "recipe": {"workers": 4}, **neighbour}
    assert found_by("thread_oversubscription", make_profile(**well)) == []
    ill = {**STEPS, "about": {"torch_threads": 24}, **neighbour}
    assert found_by("thread_oversubscription", make_profile(**ill))


@pytest.mark.parametrize("use", [{"cpu": 70.0, "columns": {"tree_cpu": 80.0}},
                                 {"cpu": 99.0, "columns": {"tree_cpu": 350.0}}])  # fmt: skip
def test_machine_with_free_cores_or_few_others_is_not_crowded(
    use: Any, make_profile: ProfileMaker
) -> None:
    assert found_by("crowded_machine", make_profile(**STEPS, **use)) == []


def test_processes_of_one_training_do_not_crowd_each_other(make_profile: ProfileMaker) -> None:
    """The first is followed, and does a quarter of what the cores do."""
    several = STEPS | {"phases": [{"forward": 0.25}] * 4}
    use = {"cpu": 99.0, "columns": {"tree_cpu": 98.0}}
    assert found_by("crowded_machine", make_profile(**several, **use)) == []
    (under_a_command,) = found_by("crowded_machine", make_profile(**several, **use, command=True))
    assert "other programs took 74 %" in under_a_command


def test_others_that_take_the_cores_are_no_bottleneck_of_the_loop(
    make_profile: ProfileMaker,
) -> None:
    waiting = {"steps": COUNT, "phases": {"data_wait": 0.2, "forward": 0.05}, "cpu": 98.0}
    record = make_profile(**waiting, columns={"tree_cpu": 60.0})
    assert found_by("cpu_bottleneck", record) == []
    (said,) = found_by("data_starved", record)
    assert "4 cores are used 98 %, of which 83 by other programs" in said


def test_outliers_on_a_crowded_machine_are_a_hint_that_says_so(make_profile: ProfileMaker) -> None:
    slow = {"steps": COUNT, "phases": {"forward": NOISE.choice([0.2, 2.0], COUNT, p=[0.98, 0.02])}}
    for own_percent, severity in ((396.0, "warning"), (100.0, "info")):
        record = make_profile(**slow, cpu=99.0, columns={"tree_cpu": own_percent})
        (found,) = [one for rule in choose_rules("step_outlier") for one in rule.judge(record)]
        assert found.severity == severity
        assert ("crowded_machine" in found.advice) == (severity == "info")


def test_processor_with_two_threads_a_core_is_full_at_half(make_profile: ProfileMaker) -> None:
    """Torch takes as many threads as there are such cores, and the system counts them twice."""
    long = STEPS | {"steps": 2 * COUNT, "cores": 8, "cpu": 49.0}
    half, few = ({"about": {"torch_threads": count}} for count in (4, 2))
    rules = "low_gpu_utilization:patience=0,batch_size"
    assert found_by(rules, make_profile(**long, **half)) == []
    assert "torch computes with 2 threads" in found_by(rules, make_profile(**long, **few))[0]
    ranks = long | {"phases": [{"forward": 0.25}] * 2}
    assert found_by(rules, make_profile(**ranks, **few)) == []


def test_start_that_was_made_again_after_a_night_is_not_late(make_profile: ProfileMaker) -> None:
    """A training that was killed in its first epoch begins again with step 1."""
    record = make_profile(**STEPS, startup={"import": 4.0, "first_step": 1.0})
    run, later = record.profile.run, START + 40_000.0
    again = {"step": [1, 2], "time": [later + 5, later + 6], "seconds": [1.0, 1.0],
             "phases": {"forward": [1.0, 1.0]}}  # fmt: skip
    session = {"kind": "session", "time": later, "node": "algo-1", "rank": 0, "device": "cpu",
               "process_started": later}  # fmt: skip
    append_lines(timeline_file(run), [session, {"kind": "steps", **again}])
    record = ProfileRecord(Profile(run), (), {"recipe": {}})
    assert record.profile.steps().time[0] > later
    assert found_by("max_initialization_time,slow_start", record) == []


def test_gpus_of_other_people_are_none_of_its_business(make_profile: ProfileMaker) -> None:
    gpu = {"utilization": 95.0, "memory": 80.0}
    others = [gpu, *[{"utilization": 0.0, "memory": 1.0}] * 3]
    record = make_profile(**STEPS, gpus=others, device="cuda")
    assert found_by("low_gpu_utilization:patience=0,load_balancing", record) == []


def test_what_is_made_ready_is_no_slow_start(make_profile: ProfileMaker) -> None:
    startup = {"import": 4.0, "cache": 9000.0, "first_step": 0.5}
    record = make_profile(**STEPS, startup=startup)
    assert found_by("slow_start,max_initialization_time", record) == []


def test_little_frozen_work_is_let_be(make_profile: ProfileMaker) -> None:
    fact = {"kind": "fact", "name": "frozen_work", "trunk_seconds_per_picture": 0.01,
            "passes": 900, "saved": 400, "why": "cache is off"}  # fmt: skip
    gain = {"kind": "fact", "name": "bf16_gain", "gain": 1.1, "precision": "fp32"}
    assert found_by("frozen_work,precision_unused", make_profile(**STEPS, facts=[fact, gain])) == []


def test_rule_of_the_debugger_judges_no_profile() -> None:
    from vizsla.debugging.rules import RULES as OF_TENSORS

    with pytest.raises(SettingError, match="judges something else: here rules are of ProfileRule"):
        choose_rules([OF_TENSORS["overfit"]])


NUMBER = st.one_of(st.none(), st.floats(0, 1e12), st.sampled_from([0.0, -1.0, 100.0]))
COLUMNS = st.dictionaries(st.sampled_from(list(SAMPLED)), st.lists(NUMBER, min_size=1, max_size=8))
ON_GPU = st.dictionaries(st.sampled_from(list(SAMPLED_OF_GPU)), NUMBER)
PHASES = st.dictionaries(
    st.sampled_from([*STEP_PHASES, "mine"]),
    st.lists(st.floats(0, 1e4), min_size=1, max_size=5), min_size=1,
)  # fmt: skip
FACT = st.fixed_dictionaries(
    {"kind": st.just("fact"), "name": st.sampled_from(["bf16_gain", "frozen_work"])},
    optional={name: st.one_of(NUMBER, st.text(max_size=3))
              for name in ("gain", "saved", "passes", "trunk_seconds_per_picture", "why")},
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    samples=st.integers(0, 60), cores=st.integers(1, 3), columns=COLUMNS,
    gpus=st.lists(ON_GPU, max_size=2), steps=st.integers(0, 80),
    phases=st.one_of(PHASES, st.lists(PHASES, min_size=1, max_size=2)),
    about=st.dictionaries(st.sampled_from(["cores", "torch_threads", "memory_bytes"]),
                          st.integers(0, 100)),
    startup=st.dictionaries(st.sampled_from(["import", "cache", "mine"]), st.floats(0, 1e5)),
    facts=st.lists(FACT, max_size=2), recipe=st.sampled_from([{}, {"epochs": 3}, {"new": 1}]),
)  # fmt: skip
def test_no_rule_raises_whatever_was_recorded(make_profile: ProfileMaker, **given: Any) -> None:
    given["columns"] = {name: _as_column(values) for name, values in given["columns"].items()}
    record = make_profile(**given)
    for name, rule in RULES.items():
        impatient = {key: 0 for key in ("patience", "least_seconds") if key in rule.model_fields}
        for judge in (rule(), rule(**impatient)):
            reason = judge.applies(record)
            assert reason is None or (reason and not reason.endswith("."))
            found = list(judge.judge(record))
            assert not (reason and found), name
            assert all(one.meaning and one.advice for one in found)


def _as_column(values: list[float | None]) -> Any:
    return values[0] if None in values else values
