"""How much of the trunk engine's own speed is left when pictures are read, decoded and kept.

The engine first runs on pictures that are decoded already, then on files: read, decoded, mirrored,
put through it and kept in memory, as before a training. Both in one process, in turns, several
rounds; the share is that of the medians.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.photographs import archive, real_weights
from benchmarks.results import machine_facts, parser, publish, verdict

QUICK = ["--rounds", "1", "--pictures", "32"]
TARGET_SHARE = 0.85


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    measured = {name: _measure(name, options) for name in options.only}
    settings = {"pictures": options.pictures, "rounds": options.rounds, "engine": options.engine}
    publish(
        "extraction", machine, settings, {"measured": measured}, [_table(measured)], options.results
    )


def _measure(name: str, options: Any) -> dict[str, Any]:
    from vizsla import Recipe
    from vizsla.data.fixed_views import FixedViews
    from vizsla.data.loader import Draw, PictureDataset
    from vizsla.data.sources import open_source
    from vizsla.data.splits import divide
    from vizsla.models.build import build_network
    from vizsla.models.engine_choice import EngineChooser
    from vizsla.models.freezing import plan_freezing
    from vizsla.models.partition import partition
    from vizsla.models.trunk_engines import BATCH, PixelTrunk
    from vizsla.training.trunk_pass import TrunkPass, WantedViews

    recipe = Recipe(model="mobilenetv2_100", weights=str(real_weights()))
    catalogue = divide(open_source(archive(name)), 0)
    network = build_network(recipe, recipe, len(catalogue.classes))
    module = network.module.to(memory_format=torch.channels_last)
    policy = plan_freezing(module, "head")
    policy.apply(module)
    halves = partition(module, policy.trainable, network.preprocessing.size_px)
    assert halves is not None
    pictures = PictureDataset(catalogue, network.preprocessing)
    wanted = WantedViews(pictures, FixedViews(recipe, network.preprocessing, 0))
    wanted.read_digests()
    trunk = PixelTrunk(halves.trunk.eval(), network.preprocessing)
    chooser = EngineChooser(trunk, halves.trunk_structure(), bf16=False, deterministic=False)
    rows = np.linspace(0, len(catalogue) - 1, BATCH).astype(int)
    decoded = torch.from_numpy(
        np.stack([pictures[Draw(int(row), 0, 0)].pixels for row in rows])  # type: ignore[arg-type]
    )
    choice = chooser.choose(options.engine, decoded, 10**6)
    missing = wanted.rows < options.pictures

    class Chosen:
        def choose(self, *_: object) -> Any:
            return choice

    alone, extracting = [], []
    for _ in range(options.rounds):
        batches = max(1, int(missing.sum()) // BATCH)
        started = time.perf_counter()
        for _ in range(batches):
            choice.engine(decoded)
        alone.append(batches * BATCH / (time.perf_counter() - started))
        one_pass = TrunkPass(wanted, Chosen(), options.engine, None)  # type: ignore[arg-type]
        kept = []
        started = time.perf_counter()
        for _, outputs in one_pass.compute(missing, lambda _: False, lambda: False):
            kept.append(outputs)
        extracting.append(one_pass.passes / (time.perf_counter() - started))
    return {
        "engine": choice.engine.name,
        "views": int(missing.sum()),
        "alone_per_second": alone,
        "extracting_per_second": extracting,
        "share": statistics.median(extracting) / statistics.median(alone),
    }


def _table(measured: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    header = [
        "data",
        "engine",
        "views",
        "engine alone, views/s",
        "from files",
        "share",
        "target",
        "",
    ]
    rows = [
        [
            name,
            facts["engine"],
            f"{facts['views']:,}",
            f"{statistics.median(facts['alone_per_second']):.0f}",
            f"{statistics.median(facts['extracting_per_second']):.0f}",
            f"{facts['share']:.0%}",
            f"≥ {TARGET_SHARE:.0%}",
            verdict(facts["share"], TARGET_SHARE, at_most=False),
        ]
        for name, facts in measured.items()
    ]
    return "MobileNetV2, head: trunk passes", header, rows


def _options(arguments: list[str] | None) -> Any:
    made = parser("extraction", __doc__)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--pictures", type=int, default=400, help="first so many of the catalogue")
    made.add_argument("--engine", default="auto")
    made.add_argument("--only", nargs="+", default=["pets5", "trash6"])
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
