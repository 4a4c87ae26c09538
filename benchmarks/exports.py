"""What an export loses and what it saves: int8 and pruning, of three networks trained on trash6.

A MobileNetV2's head is trained on real ImageNet weights, at their 224 pixels. There are no weights
of ResNets here, so those start at random, with few epochs on small pictures: they are no good
classifiers, and the table is not about that but about what exports change. Each is exported in int8
with the default limits (what is refused is told so), and pruned by 30 % of the channels with the
default recovery and no limit. Every figure is from the verification that each export goes through:
the test split, original and export in turn, on all cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.photographs import archive, divided_copy, real_weights
from benchmarks.results import machine_facts, parser, publish

QUICK = [
    "--pictures", "64", "--resnet-px", "64", "--resnet-epochs", "1", "--head-epochs", "1",
    "--recovery-epochs", "1", "--max-loss", "1",
]  # fmt: skip
_NETWORKS = ("resnet18", "resnet50", "mobilenetv2_100")
_VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {"quantize": "int8"},  # with the limit of --max-loss
    "pruned 30 %": {"prune": 0.3, "max_loss": 1.0},
}


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        os.environ["VIZSLA_CACHE"] = str(scratch / "cache")
        data = scratch / "trash6"
        counts = divided_copy(archive("trash6"), data, options.pictures)
        exports = {
            network: _exports(network, data, scratch / network, options) for network in _NETWORKS
        }
    rows = [
        row
        for network, variants in exports.items()
        for variant, facts in variants.items()
        for row in _rows(network, variant, facts)
    ]
    header = ("network", "variant", "size", "accuracy", "same answer", "1 picture", "16 pictures",
              "layers in float", "export took")  # fmt: skip
    publish(
        "exports",
        machine,
        {
            "pictures": counts,
            "resnet_px": options.resnet_px,
            "resnet_epochs": options.resnet_epochs,
            "head_epochs": options.head_epochs,
            "recovery_epochs": options.recovery_epochs,
            "max_loss": options.max_loss,
        },
        {"exports": exports},
        [(f"Exports, judged on {counts['test']} test pictures of trash6", header, rows)],
        options.results,
    )


def _options(arguments: list[str] | None) -> Any:
    made = parser("exports", __doc__)
    made.add_argument("--pictures", type=int, default=None, help="to train on; all unless given")
    made.add_argument("--resnet-px", type=int, default=96, help="side of a ResNet's pictures")
    made.add_argument("--resnet-epochs", type=int, default=5, help="of a ResNet's training")
    made.add_argument("--head-epochs", type=int, default=5, help="of the MobileNetV2's head")
    made.add_argument("--recovery-epochs", type=int, default=10, help="after pruning")
    made.add_argument("--max-loss", type=float, default=0.01, help="that int8 may lose")
    return made.parse_args(arguments)


def _exports(network: str, data: Path, scratch: Path, options: Any) -> dict[str, Any]:
    """Train a network, export it each way, and give what each verification found."""
    import vizsla
    from vizsla.api import export
    from vizsla.bundle.format import read_facts
    from vizsla.errors import WorkError

    run = vizsla.train(data, _recipe(network, options), runs=scratch)
    found: dict[str, Any] = {}
    for variant, settings in _VARIANTS.items():
        if "prune" in settings:
            settings = {**settings, "recovery_epochs": options.recovery_epochs}
        else:
            settings = {**settings, "max_loss": options.max_loss}
        started = time.perf_counter()
        try:
            made = read_facts(export(run.path, **settings)).export
        except WorkError as error:
            found[variant] = {"refused": str(error)}
            continue
        verified = made["verification"]
        found[variant] = {
            "seconds": time.perf_counter() - started,
            "float_layers": len(made["float_layers"]),
            **{name: verified[name] for name in ("agreement", "original", "export")},
        }
    return found


def _recipe(network: str, options: Any) -> Any:
    from vizsla.settings import Recipe

    if network == "mobilenetv2_100":
        return Recipe(
            model=network, weights=str(real_weights()), unfreeze="head", epochs=options.head_epochs
        )
    return Recipe(
        model=network, weights="none", unfreeze="all", epochs=options.resnet_epochs,
        size_px=options.resnet_px, lr=1e-3,
    )  # fmt: skip


def _rows(network: str, variant: str, facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for the export, before it one for the float network that it was compared with."""
    if "refused" in facts:
        return [(network, variant, "refused", *[""] * 6)]
    return [
        (network, f"float, beside {variant}", *_figures(facts["original"], 1.0), "", ""),
        (network, variant, *_figures(facts["export"], facts["agreement"]),
         str(facts["float_layers"]), f"{facts['seconds']:.0f} s"),
    ]  # fmt: skip


def _figures(one: dict[str, Any], agreement: float) -> tuple[str, ...]:
    return (
        f"{one['bytes'] / 1e6:.2f} MB",
        f"{one['accuracy']:.4f}",
        f"{agreement:.1%}",
        f"{one['latency_ms']['1']:.1f} ms",
        f"{one['latency_ms']['16']:.0f} ms",
    )


if __name__ == "__main__":
    main()
