"""Every setting of a training once: name, default, unit, range and help.

A `Recipe` is the whole; the groups that it is composed of are what the code below it asks for,
so that the optimiser's builder sees the optimiser's settings and no more. The field names are
the keys of a recipe file, the keyword arguments in Python and, with hyphens or underscores, the
flags of the command line. Reading and writing files of recipes is here too; what a setting
*does* lives with the code that obeys it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vizsla.errors import SettingError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Corrupt = Literal["skip", "repair", "fail"]
Crop = Literal["center", "squash", "pad"]
TrainCrop = Literal["same", "random"]
Policy = Literal["none", "randaugment", "autoaugment", "trivialaugment"]
Optimizer = Literal["adam", "adamw", "sgd", "lamb"]
Schedule = Literal["cosine", "onecycle", "step", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
TrunkEngine = Literal["auto", "torch", "onnxruntime", "openvino"]
Cache = Literal["disk", "memory", "off"]
Solver = Literal["gradient", "lbfgs"]
Monitor = Literal["accuracy", "macro_f1", "loss"]
ClassBalance = Literal["none", "loss", "sampling"]


class SettingsBase(BaseModel):
    """Frozen, closed to unknown names, and with errors that a person can act on."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingError(_explain(error, type(self))) from None


class ModelSettings(SettingsBase):
    """The network and which part of it trains."""

    model: str = Field("resnet50", description="Any timm architecture, such as resnet50.")
    weights: str = Field(
        "pretrained",
        description="pretrained (from the hub), a local .safetensors or .pth file, or none.",
    )
    unfreeze: str = Field(
        "head",
        description="What trains: head, last (head and last stage), all, a module prefix such as "
        "layer4, or a number of stages counted from the end.",
    )
    drop_rate: float = Field(0.0, ge=0, lt=1, description="Dropout before the head, 0 to 1.")
    drop_path_rate: float = Field(0.0, ge=0, lt=1, description="Stochastic depth, 0 to 1.")


class PictureSettings(SettingsBase):
    """How a picture becomes an input, in training, evaluation and serving alike."""

    size_px: int | None = Field(
        None, ge=16, le=2048, description="Input side in pixels; by default the weights' own."
    )
    crop: Crop = Field(
        "center",
        description="center cuts the middle, squash resizes without keeping the aspect, pad "
        "keeps the whole picture on a grey ground.",
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="Share kept by a centre crop; by default the weights' own."
    )
    corrupt: Corrupt = Field(
        "skip", description="Pictures that do not decode: skip, repair what is there, or fail."
    )


class AugmentSettings(SettingsBase):
    """How a training picture is varied."""

    train_crop: TrainCrop = Field(
        "same", description="same as in evaluation, or a random resized crop."
    )
    crop_scale_min: float = Field(
        0.35, gt=0, le=1, description="Smallest share of the area that a random crop keeps."
    )
    hflip: float = Field(0.5, ge=0, le=1, description="Probability of a mirror image.")
    vflip: float = Field(0.0, ge=0, le=1, description="Probability of an upside-down image.")
    augment: Policy = Field("none", description="Policy of colour and shape changes.")
    augment_magnitude: int = Field(9, ge=0, le=10, description="Strength of randaugment, 0 to 10.")
    random_erasing: float = Field(
        0.0, ge=0, le=1, description="Probability that a random rectangle is erased."
    )
    mixup: float = Field(0.0, ge=0, le=10, description="MixUp's alpha; 0 is off.")
    cutmix: float = Field(0.0, ge=0, le=10, description="CutMix's alpha; 0 is off.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing, 0 to 1.")
    views: int = Field(
        0,
        ge=0,
        le=1000,
        description="Random views of each training picture that are drawn once, besides itself "
        "and its mirror image, so that frozen layers see each of them once; epochs take turns "
        "over them.",
    )


class OptimizerSettings(SettingsBase):
    """How the weights are updated."""

    solver: Solver = Field(
        "gradient",
        description="gradient trains in epochs; lbfgs finds the best linear head at once (needs "
        "unfreeze head) and takes the weight decay with the smallest validation loss.",
    )
    optimizer: Optimizer = Field("adamw", description="Optimiser.")
    lr: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Peak learning rate; by default a rate that suits the optimiser and how "
        "much of the network trains.",
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="Weight decay; biases have none.")
    eps: float = Field(1e-8, gt=0, le=1, description="Epsilon of adam, adamw and lamb.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    nesterov: bool = Field(False, description="Nesterov momentum for sgd.")
    schedule: Schedule = Field("cosine", description="Learning rate over the run.")
    warmup_epochs: float = Field(0.0, ge=0, le=1000, description="Linear warm-up, in epochs.")
    step_epochs: float = Field(
        10.0, gt=0, le=100_000, description="Epochs between the drops of the step schedule."
    )
    step_factor: float = Field(
        0.1, gt=0, lt=1, description="Factor of each drop of the step schedule."
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest gradient norm; longer gradients are scaled down to it."
    )
    accumulate: int = Field(
        1, ge=1, le=4096, description="Batches whose gradients make one update."
    )


class LoopSettings(SettingsBase):
    """How long and how the training runs."""

    epochs: int = Field(10, ge=1, le=100_000, description="Passes over the training split.")
    batch_size: int = Field(32, ge=1, le=65_536, description="Pictures a batch, on each device.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of split, order, weights and chance.")
    deterministic: bool = Field(
        False, description="Refuse operations whose result may differ between two runs."
    )
    precision: Precision = Field(
        "auto", description="auto takes bf16 where the processor computes it natively."
    )
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Average the weights with this decay and evaluate those."
    )
    monitor: Monitor = Field("accuracy", description="Validation figure that picks the best.")
    patience: int | None = Field(
        None, ge=1, description="Stop after so many epochs without a better one."
    )
    class_balance: ClassBalance = Field(
        "none", description="Answer to imbalance: weigh the loss, or draw rare classes more."
    )
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="Steps between checkpoints; by default each epoch's end, as far as that takes "
        "no more than a tenth of the time.",
    )
    cache: Cache = Field(
        "disk",
        description="Where outputs of frozen layers, or decoded pictures, are kept so that they "
        "are made once: disk (for later runs too), memory (for this run), off.",
    )
    cache_gb: float = Field(
        20.0,
        gt=0,
        le=1_000_000,
        description="Most that the cache folder may hold; what was not used longest goes first.",
    )
    trunk_engine: TrunkEngine = Field(
        "auto",
        description="What runs the frozen layers; auto tries what is installed and takes the "
        "fastest that answers as torch does.",
    )
    workers: int | None = Field(
        None, ge=0, le=256, description="Loader processes; by default chosen from the cores."
    )


# The last base's fields come first.
class Settings(LoopSettings, OptimizerSettings, AugmentSettings, PictureSettings, ModelSettings):
    """Every setting, each checked alone: what flags say before they are joined with a recipe."""


class Recipe(Settings):
    """Everything that decides a training, given the data.

    >>> Recipe(model="resnet18", epochs=5).batch_size
    32
    """

    @model_validator(mode="after")
    def _settings_agree(self) -> Recipe:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs the optimizer sgd with a momentum above 0")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs:g}) must be fewer than epochs ({self.epochs})"
            )
        if self.views and self.unfreeze == "all":
            raise ValueError(
                "views are for frozen layers, and unfreeze is all; leave one of them out"
            )
        if self.solver == "lbfgs":
            self._check_convex()
        return self

    def _check_convex(self) -> None:
        """The solver needs frozen layers, fixed views and one smooth convex loss."""
        if self.unfreeze != "head":
            raise ValueError(f"solver lbfgs needs unfreeze head, and unfreeze is {self.unfreeze}")
        if self.cache == "off":
            raise ValueError("solver lbfgs trains on kept outputs; set cache to disk or memory")
        for name in ("mixup", "cutmix", "random_erasing", "drop_rate", "ema_decay"):
            if getattr(self, name):
                raise ValueError(f"{name} means nothing to solver lbfgs; leave one of them out")
        if (self.train_crop, self.augment, self.vflip) != ("same", "none", 0) and not self.views:
            raise ValueError("solver lbfgs needs pictures in fixed views; set views to 4, say")
        if self.class_balance == "sampling":
            raise ValueError("solver lbfgs sees each picture alike; set class_balance to loss")

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with some settings changed, checked anew."""
        return Recipe(**{**self.model_dump(exclude_unset=True), **changes})

    def to_toml(self) -> str:
        """Every setting that has a value, in the form that `read_recipe` takes."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


AnyRecipe = TypeVar("AnyRecipe", bound=Settings)


def read_recipe(path: Path) -> Recipe:
    """The recipe of a TOML file: top-level keys are settings; tables are left to others."""
    return _read_settings(path, Recipe)


def read_unjoined(path: Path) -> Settings:
    """The settings of a recipe file, each checked alone, for a search to join them."""
    return _read_settings(path, Settings)


def _read_settings(path: Path, kind: type[AnyRecipe]) -> AnyRecipe:
    keys = _read_toml(path)
    try:
        return kind(**{key: value for key, value in keys.items() if not isinstance(value, dict)})
    except SettingError as error:
        raise SettingError(f"In the recipe {path}: {error}") from None


def read_search(path: Path) -> dict[str, Any]:
    """The `[search]` table of a recipe file as it stands there; empty where there is none."""
    table = _read_toml(path).get("search", {})
    if not isinstance(table, dict):
        raise SettingError(f"In the recipe {path}: search is {table!r}, but must be a table.")
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"The recipe {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"The recipe {path} cannot be read as TOML: {error}.") from None


_RANGE_WORDS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}


def _explain(error: ValidationError, settings: type[BaseModel]) -> str:
    """Pydantic's complaint as sentences: setting, value, range, way out."""
    return " ".join(_explain_one(dict(entry), settings) for entry in error.errors())


def _explain_one(entry: dict[str, Any], settings: type[BaseModel]) -> str:
    name = str(entry["loc"][0]) if entry["loc"] else ""
    kind, context = entry["type"], entry.get("ctx", {})
    value = _shown(entry.get("input"))
    if kind == "extra_forbidden":
        return f"There is no setting {name!r}.{nearest(name, settings.model_fields)}"
    if kind == "value_error":
        return str(context["error"]).rstrip(".") + "."
    if kind == "literal_error":
        return f"{name} is {value}, but must be one of {context['expected']}."
    if kind in _RANGE_WORDS:
        allowed = _RANGE_WORDS[kind].format(**context)
        return f"{name} is {value}, but must be {allowed}{_whole_range(settings, name)}."
    wanted = entry["msg"].removeprefix("Input should be ").split(",")[0]
    return f"{name} is {value}, but must be {wanted}."


def _shown(value: Any) -> str:
    """The value as it was typed: a number that came as text without quotes."""
    try:
        float(value)
    except (TypeError, ValueError):
        return repr(value)
    return str(value)


def _whole_range(settings: type[BaseModel], name: str) -> str:
    """The allowed range in brackets, from the field's own declaration."""
    bounds: dict[str, Any] = {}
    for constraint in settings.model_fields[name].metadata:
        for key in ("gt", "ge", "lt", "le"):
            if getattr(constraint, key, None) is not None:
                bounds[key] = getattr(constraint, key)
    low = "(" + str(bounds["gt"]) if "gt" in bounds else "[" + str(bounds.get("ge", "-∞"))
    high = f"{bounds['lt']})" if "lt" in bounds else f"{bounds.get('le', '∞')}]"
    return f" (range {low}, {high})" if bounds else ""
