"""How captured tensors lie in a run folder, and what things are called there.

    tensors.jsonl            a line a step: losses, learning rate, labels and answers, and where the
                             step's tensors lie; lines that begin a session or a table of names
    tensors/*.safetensors    of some steps each: reductions, histograms, whole tensors

A *table* lists tensors (name, collection, the shape they first had, dtype) in the order of a step's
rows; it is written once and named by its checksum. A step's arrays are called `MODE/STEP/what`:

    reductions   float32 (tensors, STORED)     histograms   uint16 (tensors, BINS)
    units/NAME   float16 (units,)              whole/NAME   a whole tensor

Files are complete before a line names them, so that a reader believes lines alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FORMAT_VERSION = 1

Mode = Literal["train", "eval", "predict"]
MODES: tuple[Mode, ...] = ("train", "eval", "predict")
# Of all modes together, numbered by the steps of all.
GLOBAL = "global"


class modes:  # noqa: N801  (the name that smdebug's users import)
    """The modes by their names of old."""

    TRAIN, EVAL, PREDICT = MODES
    GLOBAL = GLOBAL


COLLECTIONS = {
    "losses": "what the loss function gives",
    "weights": "parameters that train, biases aside",
    "biases": "parameters that train and are called bias",
    "gradients": "of every parameter that trains, as the optimiser takes them",
    "inputs": "what goes into the network",
    "outputs": "what comes out of it",
    "labels": "the classes that the loss is told",
    "predictions": "the classes that the network answers, with their confidence",
    "relu_input": "what goes into each ReLU",
    "relu_output": "what comes out of each ReLU",
    "tanh_input": "what goes into each tanh",
    "sigmoid_input": "what goes into each sigmoid",
    "batch_norm": "the loss of the same batch in eval mode, which takes another forward pass",
}
# Collections of numbers in the lines, not of tensors in the files.
IN_LINES = ("losses", "labels", "predictions")

# The columns of a step's reductions, the last the number of values. Exact over the whole tensor,
# but for the quantiles, the share of zeros (which is 1 only where all are) and the update (the
# optimiser's change of a weight over the weight, by their mean absolute values): these are of at
# most SAMPLED values at even distances.
STORED = (
    "mean", "std", "min", "max", "l1", "l2", "quantile_5", "median", "quantile_95", "zeros", "nans",
    "infs", "update", "size",
)  # fmt: skip
REDUCTIONS = (*STORED[:-1], "variance", "abs_mean")
SAMPLED = 4096
BINS = 32

# A row of a step's table: name, collection, shape, dtype.
Row = tuple[str, str, tuple[int, ...], str]

GRADIENT = "gradient/"
EVAL_LOSS = "eval_mode_loss"


def lines_file(run: Path, rank: int = 0) -> Path:
    """The lines of one process; the first one's go by the plain name."""
    return run / (f"tensors-rank{rank}.jsonl" if rank else "tensors.jsonl")


def tensors_folder(run: Path, rank: int = 0) -> Path:
    return run / (f"tensors-rank{rank}" if rank else "tensors")
