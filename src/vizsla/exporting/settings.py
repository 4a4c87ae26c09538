"""Every setting of an export once, as `vizsla.settings` has those of a training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vizsla.errors import SettingError
from vizsla.settings import SettingsBase

Format = Literal["onnx", "tflite", "torchscript", "torch-export"]
# Of these formats there is int8.
_QUANTISED_FORMATS = ("onnx", "tflite")
# What means nothing by itself, and what it is about.
_SAYS_HOW = {
    "prune_method": "prune",
    "recovery_epochs": "prune",
    "calibration_pictures": "quantize",
}


class ExportSettings(SettingsBase):
    """What is made of a bundle, and how much it may lose by that."""

    to: Format = Field("onnx", description="What answers: onnx, tflite, torchscript, torch-export.")
    quantize: Literal["int8"] | None = Field(
        None,
        description="int8: weights and activations in 8 bits, of onnx or tflite; layers that cost "
        "too much stay in float.",
    )
    prune: float | None = Field(
        None,
        gt=0,
        le=0.9,
        description="Share of channels (structured) or of weights (magnitude) to remove, above 0 "
        "and at most 0.9; then the network trains on for a few epochs.",
    )
    prune_method: Literal["structured", "magnitude"] = Field(
        "structured",
        description="structured removes whole channels, which saves time; magnitude sets single "
        "weights to zero, which saves space in a compressed file alone.",
    )
    recovery_epochs: int = Field(
        10, ge=0, le=1000, description="Epochs that a pruned network trains on; 0 for none."
    )
    max_loss: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Accuracy that an export may lose, 0 to 1; five times that share of its "
        "answers may change, unless it was pruned. What loses more is refused.",
    )
    calibration_pictures: int = Field(
        256,
        ge=8,
        le=10_000,
        description="Validation pictures that int8 is calibrated on, at most; 8 to 10,000.",
    )

    @model_validator(mode="after")
    def _is_something(self) -> ExportSettings:
        if self.quantize is not None and self.to not in _QUANTISED_FORMATS:
            raise SettingError(
                f"quantize is {self.quantize} and to is {self.to}, but int8 is for "
                f"{' and '.join(_QUANTISED_FORMATS)} alone."
            )
        if self.to == "onnx" and self.quantize is None and self.prune is None:
            raise SettingError(
                "A bundle has its ONNX file already (model.onnx). Say what to change: "
                "--quantize int8, --prune 0.3, or another --to."
            )
        for name, by in _SAYS_HOW.items():
            if name in self.model_fields_set and getattr(self, by) is None:
                raise SettingError(
                    f"{name} is {getattr(self, name)}, but says how to {by}, and {by} is not "
                    f"given. Give --{by} too, or leave it out."
                )
        return self

    @property
    def name(self) -> str:
        """What is done, as the new bundle's folder is named after the old one's.

        >>> ExportSettings(prune=0.3, quantize="int8").name
        'pruned30-int8'
        """
        parts = [] if self.prune is None else [f"pruned{100 * self.prune:g}".replace(".", "_")]
        if self.prune is not None and self.prune_method == "magnitude":
            parts.append("magnitude")
        if self.to != "onnx":
            parts.append(self.to)
        if self.quantize is not None:
            parts.append(self.quantize)
        return "-".join(parts)

    @property
    def ways_out(self) -> str:
        """What to change where the export loses too much, as a sentence.

        >>> ExportSettings(prune=0.3).ways_out
        'Raise --max-loss, prune less, or recover for longer (--recovery-epochs is 10).'
        """
        ways = ["raise --max-loss"]
        if self.prune is not None:
            epochs = self.recovery_epochs
            ways += ["prune less", f"recover for longer (--recovery-epochs is {epochs})"]
        if self.quantize is not None:
            pictures = self.calibration_pictures
            ways.append(f"calibrate on more pictures (--calibration-pictures is {pictures})")
            if self.to == "tflite":
                ways.append("quantise --to onnx, where layers that hurt can stay in float")
        first, last = ", ".join(ways[:-1]), ways[-1]
        sentence = f"{first}, or {last}." if first else f"{last}."
        return sentence[0].upper() + sentence[1:]
