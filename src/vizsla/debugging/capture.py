"""Recording a training from inside, without changing it: hooks that look and go.

One `Capture` watches one network. It hooks the loss and the optimisers for good, which costs
microseconds, and modules only while a step that is due goes forward. Everything is reduced where it
is seen, before an in-place operation can change it. Training gives the same bits with and without:
no random number is drawn and no tensor of it written; the one thing computed beside it is the loss
in eval mode, where that is asked for. Whatever fails here is told of once and that part is switched
off. What becomes of a step's pieces is the sink's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vizsla.debugging.activations import Activations
from vizsla.debugging.answers import answers_of
from vizsla.debugging.eval_twin import eval_mode_loss
from vizsla.debugging.format import EVAL_LOSS
from vizsla.debugging.hooks import Hook
from vizsla.debugging.modules import Wanted, in_backward, is_compiled, trains, unwrapped, wanted_of
from vizsla.debugging.pieces import Batch, StepPieces, Steps
from vizsla.debugging.plan import CapturePlan
from vizsla.debugging.whole import WholeTensors
from vizsla.phases import phase

Report = Callable[[str], None]
_STEPS, _PARAMETERS = "steps", "weights and gradients"
# Steps in which no optimiser does anything before its parameters are looked at all the same.
_WAIT_STEPS = 64
_FIRST_ANSWERS = 2000


class Capture:
    """Watches `model` (computed as `computing`, where that is another module) while attached.

    `loss_fn` is a module whose output is the loss; without one, losses come by `note_loss`.
    `optimizers` tell when gradients are whole and weights change; without any, `step` looks at
    both. Steps of training are counted from `first_step`, those of other modes from `next_steps`:
    each forward pass in eval mode is a step of its own, or with `joins_evaluations` all of them
    until `take_evaluation`.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: CapturePlan,
        sink: Callable[[StepPieces], None],
        report: Report,
        *,
        loss_fn: nn.Module | None = None,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        computing: nn.Module | None = None,
        first_step: int = 0,
        next_steps: Mapping[str, int] | None = None,
        joins_evaluations: bool = False,
    ) -> None:
        self._network, self._computing = unwrapped(model), computing or model
        self._plan, self._report, self._loss_fn = plan, report, loss_fn
        self._optimizers = [getattr(one, "optimizer", one) for one in optimizers]
        self.steps = Steps(sink, plan, first_step, next_steps or {}, joins_evaluations)
        self._whole = WholeTensors(plan, report)
        self._find_wanted()
        device = None
        if isinstance(self._computing, nn.DataParallel):  # of its replicas one is enough
            device = next((one.device for one in self._network.parameters()), None)
        self._activations = Activations(plan, self._whole, self._safely, device)
        self._handles: list[RemovableHandle] = []
        self._off: set[str] = set()
        self._waited = self._answered = 0
        self._quiet = False
        self._batch: Batch | None = None

    @property
    def loss_name(self) -> str:
        """The loss as its tensors are named."""
        return type(self._loss_fn).__name__ if self._loss_fn is not None else "loss"

    def attach(self) -> None:
        """Begin to watch; what cannot be watched is reported."""
        self._tell_unseen()
        add, root = self._handles.append, self._computing
        if getattr(root, "_compiled_call_impl", None) is None:  # else hooks would be compiled, too
            add(root.register_forward_pre_hook(Hook(self._on_forward), with_kwargs=True))
            add(root.register_forward_hook(Hook(self._on_output)))
        if self._loss_fn is not None:
            add(self._loss_fn.register_forward_hook(Hook(self._on_loss), with_kwargs=True))
        for optimizer in self._optimizers:
            add(optimizer.register_step_pre_hook(Hook(self._on_update)))
            add(optimizer.register_step_post_hook(Hook(self._on_updated)))

    def detach(self) -> None:
        """Hand over what is pending and leave no hook behind."""
        self._safely(_STEPS, self.steps.close)
        self._activations.disarm()
        while self._handles:
            self._handles.pop().remove()

    def step(self) -> None:
        """The step is over: hand it over and make ready for the next."""
        if not self.steps.is_elsewhere:
            self._safely(_PARAMETERS, self._take_what_is_left)
        self._batch = None
        self._safely(_STEPS, self.steps.end)

    def set_mode(self, mode: str | None) -> None:
        """Say what steps are from now on; None lets the network say."""
        self._safely(_STEPS, self.steps.set_mode, mode)

    def take_evaluation(self) -> StepPieces:
        """What was seen of the evaluation that is over; nobody else gets it."""
        self._activations.disarm()
        return self.steps.take_evaluation()

    def note_loss(self, loss: torch.Tensor | float, name: str = "loss") -> None:
        """A loss that no module gives, or one more number of this step."""
        self._safely("losses", self.steps.add_loss, loss, name)

    def _on_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._quiet and not in_backward():
            self._safely(_STEPS, self.steps.begin_pass, self._computing.training)
            if self.steps.is_first_pass and self.steps.is_due:
                self._safely("activations", self._begin_activations, args, kwargs)
                if "batch_norm" in self._plan.collections and self.steps.mode == "train":
                    self._safely("the loss in eval mode", self._keep_batch, args, kwargs)

    def _begin_activations(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        root = type(self._network).__name__
        self._activations.begin(self._wanted, self.steps.pieces, root, (args, kwargs))

    def _keep_batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._batch = Batch.copied(args, kwargs)

    def _on_output(self, _: nn.Module, __: Any, output: Any) -> None:
        if not self._quiet and not in_backward() and self._activations.listening:
            self._safely("activations", self._activations.end, type(self._network).__name__, output)

    def _on_loss(
        self, loss_fn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._quiet or in_backward() or not isinstance(output, torch.Tensor):
            return
        self._safely(_STEPS, self.steps.begin_loss, output.requires_grad)
        name, given = f"{self.loss_name}_output_0", (*args, *kwargs.values())
        if self._plan.wants(name, "losses"):
            self.note_loss(output, name)
        # Of an evaluation all answers are taken, and at the beginning of training.
        answers = self.steps.is_due or self.steps.mode != "train" or self._answered < _FIRST_ANSWERS
        if answers and {"labels", "predictions"} & self._plan.collections:
            self._safely("labels and predictions", self._take_answers, given)
        if self._batch is not None and self.steps.mode == "train":
            self._safely("the loss in eval mode", self._take_eval_loss, loss_fn, given[1:])

    def _take_answers(self, given: tuple[Any, ...]) -> None:
        answers = answers_of(given)
        self._answered += sum(len(one.labels) for one in answers)
        self.steps.pieces.answers += answers

    def _take_eval_loss(self, loss_fn: nn.Module, targets: tuple[Any, ...]) -> None:
        batch, self._batch = self._batch, None
        assert batch is not None
        self._quiet = True
        try:  # of the bare network, since wrappers may talk to other processes
            network = unwrapped(self._computing)
            loss = eval_mode_loss(network, batch.args, batch.kwargs, loss_fn, targets)
        finally:
            self._quiet = False
        self.steps.pieces.losses[EVAL_LOSS] = [loss]

    def _on_update(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        closure = any(callable(one) for one in (*args[1:], *kwargs.values()))
        self._safely(_PARAMETERS, self._before_update, optimizer, closure)

    def _before_update(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        self.steps.note_update()
        rate = optimizer.param_groups[0]["lr"]
        far = isinstance(rate, torch.Tensor)  # and reading it may wait for a device
        if optimizer is self._optimizers[0] and (self._takes_parameters or not far):
            self.steps.train.rate = float(rate)
        if self._takes_parameters:  # a closure makes gradients anew: they are looked at in `step`
            self._take_parameters(optimizer, gradients=not closure)

    def _on_updated(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.steps.is_updating = False
        if self._takes_parameters:
            self._safely(_PARAMETERS, self._after_update, optimizer)

    def _after_update(self, optimizer: torch.optim.Optimizer) -> None:
        here = self._of(optimizer)
        for name, (parameter, _home) in self._wanted.parameters.items():
            if id(parameter) in here:
                self.steps.train.reduced.add_later(name, parameter)

    def _take_what_is_left(self) -> None:
        """Parameters that no optimiser of ours has updated in a step that is due. Where none has
        done anything, gradients are still being accumulated: its next step is due instead."""
        if not self._takes_parameters:
            return
        accumulating = bool(self._optimizers) and not self.steps.is_updated
        if accumulating and self._waited < _WAIT_STEPS:
            self._waited += 1
            return
        self._take_parameters(None)
        self._waited = 0

    @property
    def _takes_parameters(self) -> bool:
        return self._waited > 0 or self.steps.is_train_due

    def _take_parameters(
        self, optimizer: torch.optim.Optimizer | None, gradients: bool = True
    ) -> None:
        if trains(self._network) != self._trained:  # layers were frozen, unfrozen or exchanged
            self._find_wanted()
        here, scale = self._of(optimizer), _scale_of(optimizer)
        reduced, whole = self.steps.train.reduced, self.steps.train.whole
        for name, (parameter, home) in self._wanted.parameters.items():
            if id(parameter) in here and name not in reduced:
                reduced.add(name, home, parameter)
                self._whole.take(whole, name, home, parameter)
        for name, parameter in self._wanted.gradients.items() if gradients else ():
            if id(parameter) in here and name not in reduced and parameter.grad is not None:
                reduced.add(name, "gradients", parameter.grad, scale)
                self._whole.take(whole, name, "gradients", parameter.grad)

    def _of(self, optimizer: torch.optim.Optimizer | None) -> set[int]:
        """Parameters that an optimiser updates, by identity; without one, all."""
        if optimizer is None:
            return {id(one) for one in self._network.parameters()}
        return {id(one) for group in optimizer.param_groups for one in group["params"]}

    def _find_wanted(self) -> None:
        self._trained = trains(self._network)
        self._wanted: Wanted = wanted_of(
            self._network, self._plan, is_compiled(self._computing), (f"{self.loss_name}_output_0",)
        )

    def _tell_unseen(self) -> None:
        known = self._wanted.known
        for pattern in self._wanted.unmatched:
            examples = ", ".join(known[:: max(1, len(known) // 6)][:6])
            self._report(f"capture: nothing is called like {pattern!r}; there are {examples}")
        if self._wanted.compiled:
            self._report(
                f"capture: {self._wanted.compiled[0]} lies in a compiled network, of which only "
                "weights and gradients can be seen, and what goes into a torch.compile(network) "
                "as a whole and comes out; train without compile to see it"
            )

    def _safely(self, part: str, work: Callable[..., None], *arguments: Any) -> None:
        """Nothing that fails in our work reaches the training; a part that failed stays off."""
        if part in self._off:
            return
        try:
            with phase("debugger"):
                work(*arguments)
        except Exception as error:  # whatever it is, training goes on
            self._off.add(part)
            self._report(
                f"capture of {part} failed and is off from here on; training goes on. "
                f"{type(error).__name__}: {error}"
            )
            if part == _STEPS:  # without which nothing else has a place
                self.detach()


def _scale_of(optimizer: torch.optim.Optimizer | None) -> float:
    """What a gradient scaler has multiplied the gradients by, where the optimiser divides."""
    scale = getattr(optimizer, "grad_scale", None)
    return float(scale) if scale is not None else 1.0
