"""Makes `import torchvision` work beside a torch without CUDA. Import this before timm.

torchvision's compiled part cannot load where torch lacks CUDA, and its Python part then fails
on `operator torchvision::nms does not exist`. Declaring the two missing schemas lets the import
succeed; nothing in vizsla calls either operator. Only in that case is anything declared.
"""

from __future__ import annotations

from typing import Any

import torch

_Library: Any = torch.library.Library  # untyped


def _declare_missing_operators() -> Any:
    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return None
    library: Any = _Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# Kept for the life of the process: the declarations go when the library object does.
_library = _declare_missing_operators()
