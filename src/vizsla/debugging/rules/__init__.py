"""The rules by name. A family lies in a file; `choosing.py` makes rules from what people type."""

from __future__ import annotations

from vizsla.debugging.rules.activations import BatchNormMismatch, DeadRelu, SaturatedActivation
from vizsla.debugging.rules.answers import ClassImbalance, Confusion
from vizsla.debugging.rules.base import DebugRule
from vizsla.debugging.rules.confidence import CalibrationDrift, LabelNoise
from vizsla.debugging.rules.continuity import DivergedFromCheckpoint, StalledTraining
from vizsla.debugging.rules.gradients import (
    PoorWeightInitialization,
    VanishingGradient,
    WeightUpdateRatio,
)
from vizsla.debugging.rules.inputs import CheckInputImages
from vizsla.debugging.rules.learning_rate import LearningRateTooHigh, LearningRateTooLow
from vizsla.debugging.rules.losses import LossNotDecreasing, Overfit, Overtraining
from vizsla.debugging.rules.tensors import (
    AllZero,
    ExplodingTensor,
    SimilarAcrossRuns,
    TensorVariance,
    UnchangedTensor,
)

_ALL: tuple[type[DebugRule], ...] = (
    VanishingGradient, ExplodingTensor, DeadRelu, SaturatedActivation, PoorWeightInitialization,
    WeightUpdateRatio, AllZero, TensorVariance, UnchangedTensor, LossNotDecreasing, Overfit,
    Overtraining, ClassImbalance, Confusion, CheckInputImages, SimilarAcrossRuns, StalledTraining,
    DivergedFromCheckpoint, LabelNoise, CalibrationDrift, BatchNormMismatch, LearningRateTooHigh,
    LearningRateTooLow,
)  # fmt: skip

RULES: dict[str, type[DebugRule]] = {rule.name: rule for rule in _ALL}

# What is judged unless rules are named: quiet on a healthy training, and fed by the collections
# that are captured anyway.
DEFAULT_RULES: tuple[str, ...] = (
    "vanishing_gradient", "exploding_tensor", "weight_update_ratio", "all_zero",
    "unchanged_tensor", "loss_not_decreasing", "overfit", "overtraining", "class_imbalance",
    "check_input_images", "stalled_training", "diverged_from_checkpoint", "label_noise",
    "calibration_drift", "learning_rate_too_high", "learning_rate_too_low",
)  # fmt: skip

__all__ = ["DEFAULT_RULES", "RULES"]
