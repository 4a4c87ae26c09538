"""Makes `import torchvision` work beside a torch without CUDA. Import this before timm.

A torchvision built for CUDA cannot load its compiled part where torch lacks CUDA, and its Python
part then fails on `operator torchvision::nms does not exist`. Declaring the two missing schemas
lets the import succeed; nothing in vizsla calls either operator. Where the compiled part does
load, it declares them itself, and nothing is done here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

# Both untyped in torch.
_Library: Any = torch.library.Library
_load_library: Any = torch.ops.load_library


def _compiled_part_loads() -> bool:
    """Whether torchvision's own operators can be had; loading them twice does no harm."""
    spec = find_spec("torchvision")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for compiled in (path for place in places for path in Path(place).glob("_C.*")):
        try:
            _load_library(compiled)
        except OSError:
            return False
        return True
    return False


def _declare_missing_operators() -> Any:
    if torch.version.cuda is not None or _compiled_part_loads():
        return None
    library: Any = _Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# Kept for the life of the process: the declarations go when the library object does.
_library = _declare_missing_operators()
