"""Whole tensors, kept on request and within a budget."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vizsla.debugging.plan import CapturePlan


class WholeTensors:
    """Copies what a plan wants whole to the host, until its budget is full."""

    def __init__(self, plan: CapturePlan, report: Callable[[str], None]) -> None:
        self._plan, self._report = plan, report
        self._left = plan.budget_mb * 1e6

    @torch.no_grad()
    def take(
        self, into: dict[str, torch.Tensor], name: str, collection: str, tensor: torch.Tensor
    ) -> None:
        if self._left <= 0 or not self._plan.wants_whole(name, collection):
            return
        copy = tensor.detach().to("cpu", copy=True)
        if copy.is_sparse:
            copy = copy.to_dense()
        if self._plan.half and copy.is_floating_point():
            copy = copy.to(torch.float16)
        elif copy.dtype == torch.bfloat16:  # which NumPy has not
            copy = copy.float()
        self._left -= copy.numel() * copy.element_size()
        if self._left <= 0:
            self._report(
                f"capture: the budget of {self._plan.budget_mb:g} MB for whole tensors is full; "
                "of the rest reductions alone are kept (capture_budget_mb)"
            )
            return
        into[name] = copy.contiguous()
