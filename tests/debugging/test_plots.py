"""Figures say what the reader says, whatever the numbers are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vizsla.debugging import plots
from vizsla.debugging.format import BINS
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.recording import TensorUnavailable
from vizsla.debugging.tensors import Series
from vizsla.debugging.thinning import axis_range, mass_range, rebinned, smoothed, thinned

Maker = Callable[..., TrainingRecord]
LAYERS = [f"layer{number}.conv.weight" for number in range(8)]


def trace(figure: Any, name: str) -> Any:
    """The one trace of a figure that is called so."""
    (found,) = [one for one in figure.data if one.name == name]
    return found


def series(values: Any) -> Series:
    return Series(np.arange(len(values)), np.asarray(values, float))


def test_losses_are_drawn_raw_smoothed_and_validated(make_record: Maker) -> None:
    training = [2.0 / (1 + step / 10) for step in range(40)]
    record = make_record(losses=training, eval_losses={19: 1.4, 39: 1.1})
    figure = plots.losses(record.tensors)
    raw = trace(figure, "training, each step")
    assert list(raw.y) == pytest.approx(training, rel=1e-6)
    assert list(raw.x) == list(range(40))
    assert len(trace(figure, "training").y) == 40
    valid = trace(figure, "validation")
    assert list(valid.x) == [19, 39]
    assert list(valid.y) == [1.4, 1.1]


def test_few_losses_are_not_smoothed(make_record: Maker) -> None:
    figure = plots.losses(make_record(losses=[3.0, 2.0, 1.0]).tensors)
    assert [one.name for one in figure.data] == ["training"]
    assert list(figure.data[0].y) == [3.0, 2.0, 1.0]


def test_a_huge_loss_and_a_late_explosion_leave_the_rest_readable(make_record: Maker) -> None:
    spiked = [2.0] * 50 + [1e12] + [1.0] * 49
    low, high = plots.losses(make_record(losses=spiked).tensors).layout.yaxis.range
    assert low < 1.0 < 2.0 < high < 4.0
    exploding = [-2.0] * 90 + [10.0**power for power in range(10)]
    assert plots.losses(make_record(losses=exploding).tensors).layout.yaxis.range[1] < 10.0


def test_losses_far_apart_are_drawn_by_powers_of_ten(make_record: Maker) -> None:
    diverging = [10.0**power for power in range(10)] + [float("nan")]
    figure = plots.losses(make_record(losses=diverging).tensors)
    axis = figure.layout.yaxis
    assert axis.type == "log"
    assert axis.range[0] < 0 < 9 < axis.range[1]
    assert (axis.range[1] - axis.range[0]) / axis.dtick <= 6
    assert trace(figure, "not finite").y[0] == pytest.approx(10 ** axis.range[0])
    for near in ([1.0, 999.0], [0.0, 5000.0], [-1.0, 5000.0]):
        assert plots.losses(make_record(losses=near).tensors).layout.yaxis.type is None


def test_a_loss_may_begin_far_above_where_it_stays() -> None:
    low, high = axis_range([np.concatenate([np.full(10, 7.0), np.full(90, 0.01)])]) or (0, 0)
    assert low < 0.01
    assert high > 7.0


def test_losses_that_are_no_numbers_are_marked(make_record: Maker) -> None:
    values = [1.0] * 25 + [float("nan"), float("inf"), float("-inf")]
    figure = plots.losses(make_record(losses=values).tensors)
    assert list(trace(figure, "not finite").x) == [25, 26, 27]
    assert not np.isinf(trace(figure, "training, each step").y).any()
    all_broken = plots.losses(make_record(losses=[float("nan")] * 3).tensors)
    assert list(trace(all_broken, "not finite").x) == [0, 1, 2]


@pytest.mark.parametrize("length", [2001, 50_000])
def test_long_curves_are_thinned_and_keep_their_peaks(length: int) -> None:
    values = np.sin(np.arange(length))
    values[777] = 50.0
    found = thinned(series(values), 2000)
    assert len(found) <= 2000
    assert found.values.max() == 50.0
    assert found.steps[0] == 0
    assert found.steps[-1] == length - 1
    assert (np.diff(found.steps) > 0).all()


def test_running_median_passes_over_one_huge_value() -> None:
    values = np.ones(100)
    values[50] = 1e30
    assert smoothed(series(values)).values.max() == 1.0


def test_norms_are_a_row_a_layer_in_the_order_of_the_network(make_record: Maker) -> None:
    given = {f"gradient/{name}": {"l2": np.full(5, 10.0**-row)} for row, name in enumerate(LAYERS)}
    record = make_record(tensors=given)
    heat = plots.norms(record.tensors).data[0]
    assert list(heat.y) == LAYERS
    assert np.asarray(heat.z) == pytest.approx(np.outer(-np.arange(8.0), np.ones(5)), abs=1e-6)
    matrix = record.tensors.matrix("l2", collection="gradients")
    assert np.array_equal(np.asarray(heat.customdata), matrix.values.T)
    assert list(heat.x) == matrix.steps.tolist()


def test_norms_mark_what_is_not_finite_and_keep_zeros_on_the_scale(make_record: Maker) -> None:
    given = {
        "gradient/a": {"l2": [1.0, np.inf, 1e30, 2.0]},
        "gradient/b": {"l2": [0.0, np.nan, 3.0, 4.0]},
    }
    figure = plots.norms(make_record(tensors=given).tensors)
    heat, broken = figure.data
    assert sorted(zip(broken.x, broken.y)) == [(1, "a"), (1, "b")]
    assert np.asarray(heat.z)[1, 0] == heat.zmin
    assert np.isnan(np.asarray(heat.z)[:, 1]).all()
    assert np.isfinite([heat.zmin, heat.zmax]).all()


def test_norms_of_what_numbers_are_left_are_marked_too(make_record: Maker) -> None:
    # Capture reduces the finite values and counts the others.
    given = {"gradient/a": {"l2": [1.0, 2.0, 0.0], "nans": [0, 3, 16], "infs": [0, 0, 0]}}
    heat, broken = plots.norms(make_record(tensors=given).tensors).data
    assert list(broken.x) == [1, 2]
    assert np.asarray(heat.customdata)[0, :2].tolist() == [1.0, 2.0]
    assert np.isnan(np.asarray(heat.z)[0, 2])


def test_all_broken_norms_are_still_a_figure(make_record: Maker) -> None:
    record = make_record(tensors={"gradient/a": {"l2": [np.nan, np.inf]}})
    assert len(trace(plots.norms(record.tensors), "not finite").x) == 2


def test_long_heatmaps_keep_the_largest_of_neighbouring_steps(make_record: Maker) -> None:
    norms = np.full(1000, 0.1)
    norms[501] = 9.0
    heat = plots.norms(make_record(tensors={"gradient/a": {"l2": norms}}).tensors).data[0]
    assert len(heat.x) <= 400
    assert np.asarray(heat.customdata).max() == 9.0


def test_a_narrow_colour_bar_has_round_numbers(make_record: Maker) -> None:
    for low, high in ((0.0213, 0.0331), (2.1, 2.1), (9e-6, 1e-5), (0.4, 30.0), (1e-9, 1e9)):
        given = {"gradient/a": {"l2": [low, high]}}
        bar = plots.norms(make_record(tensors=given).tensors).data[0].colorbar
        assert 2 <= len(bar.ticktext) <= 6
        assert all(float(text) == float(f"{float(text):.0e}") for text in bar.ticktext)
        assert {f"{float(text):.0e}"[0] for text in bar.ticktext} <= {"1", "2", "5"}
        assert 10 ** np.array(bar.tickvals) == pytest.approx([float(one) for one in bar.ticktext])


def test_huge_and_tiny_updates_leave_few_labels(make_record: Maker) -> None:
    given = {name: {"update": [1e-12, 1e-3, 1e12]} for name in LAYERS}
    axis = plots.updates(make_record(tensors=given).tensors).layout.yaxis
    assert axis.range[1] <= 3
    assert (axis.range[1] - axis.range[0]) / axis.dtick <= 6


def test_a_single_step_stands_alone_on_its_axis(make_record: Maker) -> None:
    tensors = make_record(steps=[7], tensors={"gradient/a": {"l2": [1.0]}, "b.weight": {}}).tensors
    figures = [
        plots.norms(tensors),
        plots.updates(tensors),
        *plots.of_tensors(tensors, "").values(),
    ]
    for figure in figures:
        assert plots.only_step(figure) == 7
        assert list(figure.layout.xaxis.tickvals) == [7]
    several = make_record(tensors={"gradient/a": {"l2": [1.0, 2.0]}}).tensors
    assert plots.only_step(plots.norms(several)) is None
    assert plots.norms(several).layout.xaxis.tickvals is None


def test_updates_are_the_median_and_band_of_layers(make_record: Maker) -> None:
    given = {
        name: {"update": np.full(4, 10.0 ** -(1 + row / 2))} for row, name in enumerate(LAYERS)
    }
    given["fc.bias"] = {"update": np.full(4, 100.0)}
    figure = plots.updates(make_record(tensors=given).tensors)
    values = [10.0 ** -(1 + row / 2) for row in range(8)]
    middle = trace(figure, "median of layers")
    assert list(middle.y) == pytest.approx([np.median(values)] * 4, rel=1e-4)
    band = trace(figure, "5 % to 95 % of layers")
    assert max(band.y) == pytest.approx(np.percentile(values, 95), rel=1e-4)
    (usual,) = figure.layout.shapes
    assert (usual.y0, usual.y1) == plots.USUAL_UPDATES


def test_updates_pass_over_steps_without_one(make_record: Maker) -> None:
    record = make_record(tensors={"a.weight": {"update": [np.inf, np.nan, 0.0, 1e-3, 2e-3]}})
    assert list(trace(plots.updates(record.tensors), "median of layers").x) == [3, 4]


def test_dead_units_are_counted_by_relu(make_record: Maker) -> None:
    units = {
        "act1_relu_output_0": [[0.5, 0.0, 0.001, 0.9], [0.5, 0.4, 0.3, 0.2]],
        "act2_relu_output_0": [[0.0, 0.0], [0.0, 1.0]],
    }
    heat = plots.dead_relus(make_record(units=units).tensors).data[0]
    assert np.asarray(heat.z).tolist() == [[0.5, 0.0], [1.0, 0.5]]
    assert list(heat.y) == ["act1_relu", "act2_relu"]


def test_histograms_are_shares_on_common_levels(make_record: Maker) -> None:
    given = {"a.weight": {"min": [-1.0, -2.0, np.nan], "max": [1.0, 2.0, np.inf]}}
    figure = plots.histograms(make_record(tensors=given).tensors, ["a.weight"])
    (heat,) = figure.data
    assert list(heat.x) == [0, 1]  # the third has no ends
    shares = np.asarray(heat.z).T
    assert shares.sum(axis=1) == pytest.approx([1.0, 0.99], abs=0.05)
    assert shares[0].max() == pytest.approx(2 * shares[1].max(), rel=0.05)


def test_histograms_of_an_explosion_leave_the_rest_readable(make_record: Maker) -> None:
    ends = np.array([1.0] * 16 + [1e12] * 4)
    given = {"a.weight": {"min": -ends, "max": ends}}
    (heat,) = plots.histograms(make_record(tensors=given).tensors, ["a.weight"]).data
    assert max(heat.y) < 2


def test_rebinning_keeps_shares() -> None:
    edges = np.linspace(-1, 3, BINS + 1)
    shares = np.random.default_rng(0).dirichlet(np.ones(BINS))
    assert rebinned(shares, edges, np.linspace(-2, 4, 50)).sum() == pytest.approx(1)
    assert rebinned(shares, edges, edges) == pytest.approx(shares)
    assert rebinned(shares, np.full(BINS + 1, 0.5), np.array([0.0, 1.0, 2.0])).tolist() == [1, 0]


def test_range_of_a_histogram_leaves_out_lone_outliers() -> None:
    shares = np.array([0.001, 0.499, 0.499, 0.001])
    low, high = mass_range(shares, np.array([-100.0, -1.0, 0.0, 1.0, 100.0]))
    assert -1.0 <= low < high <= 1.0


def test_what_was_not_recorded_has_no_traces(make_record: Maker) -> None:
    tensors = make_record(rates=[0.1, 0.1]).tensors
    for draw in (plots.losses, plots.norms, plots.updates, plots.dead_relus):
        assert not draw(tensors).data
    assert not plots.histograms(tensors, []).data


def test_few_tensors_are_drawn_as_lines_bands_and_histograms(make_record: Maker) -> None:
    given = {"conv1.weight": {"mean": [0.1, 0.2], "l2": [1.0, np.nan]}}
    record = make_record(tensors=given, losses=[2.0, 1.0])
    figures = plots.of_tensors(record.tensors, "conv1|Loss")
    assert list(figures) == ["Losses", "Means", "Norms", "Histograms"]
    assert list(figures["Losses"].data[0].y) == [2.0, 1.0]
    assert list(trace(figures["Means"], "conv1.weight").y) == pytest.approx([0.1, 0.2])
    norms = trace(figures["Norms"], "conv1.weight").y
    assert norms[0] == 1.0
    assert np.isnan(norms[1])


def test_many_tensors_are_drawn_as_a_heatmap(make_record: Maker) -> None:
    record = make_record(tensors={name: {"l2": [1.0, 2.0]} for name in LAYERS})
    figures = plots.of_tensors(record.tensors, "conv")
    assert list(figures) == ["Norms"]
    assert list(figures["Norms"].data[0].y) == LAYERS


def test_tensors_of_another_mode_are_drawn_there(make_record: Maker) -> None:
    record = make_record(tensors={"act_output_0": {"l2": [1.0]}}, collection="outputs", mode="eval")
    assert "Norms (eval)" in plots.of_tensors(record.tensors, "act")


def test_pattern_without_a_tensor_names_some(make_record: Maker) -> None:
    record = make_record(tensors={"conv1.weight": {"l2": [1.0]}})
    with pytest.raises(TensorUnavailable, match="matches 'cnov'.*conv1.weight"):
        plots.of_tensors(record.tensors, "cnov")


def test_names_are_text_and_no_markup(make_record: Maker) -> None:
    name = "gradient/<b>&amp;</b><script>.weight"
    record = make_record(tensors={name: {"l2": [1.0, 2.0]}, "gradient/b": {"l2": [1.0, 2.0]}})
    for figure in (plots.norms(record.tensors), *plots.of_tensors(record.tensors, "a").values()):
        text = figure.to_json()
        json.loads(text)
        assert "<script>" not in text.replace("\\u003c", "<").replace("\\u003e", ">")


def test_long_names_that_look_alike_in_short_stay_apart(make_record: Maker) -> None:
    names = [f"gradient/blocks.{number:09d}.attention.projection.weight" for number in (1, 21)]
    names += [f"gradient/{'x' * 20}{number}{'y' * 30}" for number in range(2)]
    record = make_record(tensors={name: {"l2": [1.0]} for name in names})
    assert len(set(plots.norms(record.tensors).data[0].y)) == 4
