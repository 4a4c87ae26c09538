"""A bundle in words, for the person who finds it: `card.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vizsla import words
from vizsla.bundle.format import BundleFacts


def model_card(facts: BundleFacts) -> str:
    """What the model is, how well it does, and what an export of it cost."""
    lines = [
        f"# {facts.architecture} for {len(facts.classes)} classes",
        "",
        f"Made by vizsla {facts.vizsla} on {facts.created}.",
        "",
        "| split | accuracy | top-5 | macro F1 | loss | pictures |",
        "|---|---|---|---|---|---|",
    ]
    for split, figures in facts.metrics.items():
        shares = " | ".join(
            f"{figures[name]:.4f}" for name in ("accuracy", "top5_accuracy", "macro_f1", "loss")
        )
        lines.append(f"| {split} | {shares} | {figures['pictures']} |")
    preprocessing = facts.preprocessing
    lines += [
        "",
        *(_export_lines(facts.export) if facts.export else []),
        f"Input: RGB, {preprocessing.size_px} by {preprocessing.size_px} pixels, "
        f"{preprocessing.crop} crop, {preprocessing.interpolation}.",
        f"Weights at the start: {facts.recipe.get('weights', 'unknown')}; "
        f"trained: {facts.recipe.get('unfreeze', 'unknown')}.",
        "",
        "It answers with one of its own classes to any picture whatever; confidences are not "
        "calibrated. It was judged on pictures like those it was trained on and on no others.",
        "",
        "Classes: " + ", ".join(f"{label.name}" for label in facts.classes) + ".",
        "",
        "    vizsla predict . picture.jpg",
        "",
    ]
    return "\n".join(lines)


def _export_lines(export: Mapping[str, Any]) -> list[str]:
    verified = export["verification"]
    lines = [
        f"## Exported: {described(export)}",
        "",
        f"`{export['file']}` against the bundle that it was made from, on "
        f"{verified['pictures']} {verified['split']} pictures, with {verified['threads']} threads:",
        "",
        "| | original | export |",
        "|---|---|---|",
        *(f"| {name} | {before} | {after} |" for name, before, after in comparison_rows(verified)),
        "",
        f"The same first answer for {verified['agreement']:.1%} of the pictures; no probability "
        f"differs by more than {verified['largest_probability_difference']:.3f}.",
        "",
    ]
    if pruned := export["pruned"]:
        lines += [_pruning(pruned), ""]
    if export["float_layers"]:
        lines += ["Layers left in float: " + ", ".join(export["float_layers"]) + ".", ""]
    if export["notes"]:
        lines += [" ".join(export["notes"]), ""]
    return lines


def _pruning(pruned: Mapping[str, Any]) -> str:
    before, after = (f"{pruned[f'parameters_{when}']:,}" for when in ("before", "after"))
    epochs = words.counted(pruned["recovery_epochs"], "epoch")
    return " ".join(
        [f"Pruned from {before} parameters to {after}, recovered for {epochs}.", *pruned["notes"]]
    )


def described(export: Mapping[str, Any]) -> str:
    """What was done, in words: `onnx, int8, 30 % of the channels pruned`."""
    parts = [str(export["format"])]
    if export["quantized"]:
        parts.append(str(export["quantized"]))
    if pruned := export["pruned"]:
        what = "channels" if pruned["method"] == "structured" else "weights"
        parts.append(f"{100 * pruned['amount']:g} % of the {what} pruned")
    return ", ".join(parts)


def comparison_rows(verified: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, original's figure and export's of everything that is compared."""
    pair = (verified["original"], verified["export"])
    sizes = [words.size(one["bytes"]) for one in pair]
    rows = [("size", *sizes), ("accuracy", *(f"{one['accuracy']:.4f}" for one in pair))]
    for count in pair[0]["latency_ms"]:
        spans = [words.duration(one["latency_ms"][count] / 1000) for one in pair]
        rows.append((f"time of {words.counted(int(count), 'picture')}", *spans))
    return rows  # type: ignore[return-value]
