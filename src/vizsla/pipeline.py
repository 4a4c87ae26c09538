"""A training from its data to its bundle, stage by stage.

    look      find and divide the pictures, judge the data set
    build     network and weights
    train     the loop, from the start or the last checkpoint
    finish    evaluate the best weights exactly, export, write the bundle

Each stage leaves its result in the run folder, so that a resumed job skips what is done. With
several processes all of them train, and the main one alone writes.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from vizsla.bundle.format import ONNX_FILE, BundleFacts
from vizsla.data.cache import in_use
from vizsla.data.catalogue import Catalogue
from vizsla.data.cores import available_cores
from vizsla.data.integrity import CATALOGUE_RULES
from vizsla.data.loader import Draw, PictureDataset
from vizsla.data.sources import open_source
from vizsla.data.splits import divide
from vizsla.data.transforms import Preprocessing
from vizsla.errors import RunError, WorkError
from vizsla.exporting.bundle_files import write_bundle
from vizsla.exporting.verify import verify_onnx
from vizsla.findings import judge_all
from vizsla.metrics import per_class
from vizsla.models.build import Network, build_network, check_architecture, rebuild
from vizsla.models.freezing import plan_freezing
from vizsla.phases import phase
from vizsla.records import SPLITS
from vizsla.runs.catalogue import reopened
from vizsla.runs.files import storage_error
from vizsla.runs.folder import STOPPED_BY_RULE, WATCHED, RunFolder
from vizsla.settings import Recipe
from vizsla.training.checkpoint import CheckpointStore
from vizsla.training.convex_head import fit_head
from vizsla.training.evaluation import InputMaker, evaluate
from vizsla.training.events import Observer, Observers
from vizsla.training.feed import evaluation_loader
from vizsla.training.loop import Trainer
from vizsla.training.recording import RunRecorder
from vizsla.training.setup import Setup, prepare, refuse_fatal, start_accelerator
from vizsla.training.stopping import Ended
from vizsla.version import __version__

# Real pictures on which the exported network must answer as the trained one.
_VERIFIED_PICTURES = 8


@dataclass
class TrainingJob:
    """One training and the folder that it fills. Make it with `started` or `resumed`."""

    run_folder: RunFolder
    recipe: Recipe
    catalogue: Catalogue
    network: Network
    accelerator: Accelerator
    observers: list[Observer] = field(default_factory=list)

    @classmethod
    def started(
        cls,
        data: str | os.PathLike[str],
        recipe: Recipe,
        runs: Path,
        observers: Iterable[Observer],
        folder: Path | None = None,
    ) -> TrainingJob:
        """A new job: looks at the data, builds the network, makes the run folder: `folder`, or a
        new one in `runs`."""
        check_architecture(recipe.model)
        accelerator = start_accelerator(recipe)
        with phase("data"), accelerator.main_process_first():  # one unpacks, the others find it
            catalogue = divide(open_source(data), recipe.seed)
        torch.manual_seed(recipe.seed)
        with phase("model"):
            network = build_network(recipe, recipe, len(catalogue.classes))
        plan_freezing(network.module, recipe.unfreeze)  # a bad name fails before anything is made
        names = [""]
        if accelerator.is_main_process:
            run = RunFolder.at(folder) if folder else RunFolder.create(runs, recipe.model)
            try:
                catalogue.write_csv(run.catalogue)
            except OSError as error:
                raise storage_error(run.catalogue, error) from error
            run.append_findings(judge_all(CATALOGUE_RULES, catalogue))
            run.write_facts(_facts(data, recipe, catalogue, network, accelerator))
            names = [str(run.path)]
        broadcast_object_list(names)
        run = RunFolder(Path(names[0]))
        return cls(run, recipe, catalogue, network, accelerator, list(observers))

    @classmethod
    def resumed(cls, run: RunFolder, observers: Iterable[Observer]) -> TrainingJob:
        """The job of an earlier run, to go on from its last checkpoint.

        Raises `RunError` or `DataError` where the run, its data or its checkpoint is gone or has
        changed, or where the run is of a loop that is not vizsla's.
        """
        facts = run.facts()
        if facts.get("kind") == WATCHED:
            raise RunError(
                f"The run {run.path} is of a loop of your own, which vizsla only watched: go on by "
                "running that loop, with watch(..., first_step=STEP)."
            )
        recipe = Recipe(**facts["recipe"])
        accelerator = start_accelerator(recipe)
        with phase("data"):
            catalogue = reopened(run, facts)
        torch.manual_seed(recipe.seed)
        with phase("model"):
            if (run.checkpoints / "last.pt").exists():
                network = _network_of(facts, len(catalogue.classes))
            else:  # stopped in its first epoch: the start is made again, from the same seed
                network = build_network(recipe, recipe, len(catalogue.classes))
        return cls(run, recipe, catalogue, network, accelerator, list(observers))

    def complete(self, train: bool = True, bundle: bool = True) -> RunFolder:
        """Do what is left to do, holding the run's lock; without `bundle` training alone, without
        `train` the bundle alone, of the best weights so far."""
        if self.run_folder.is_finished:
            return self.run_folder
        with self._sole_writer(), in_use(self.catalogue.root):
            train = train and (self.run_folder.outcome() or {}).get("status") != "trained"
            if train:
                self.run_folder.forget_outcome()
            observers = Observers([*self._own_observers(), *self.observers])
            observers.on_run(self.run_folder)
            checkpoints = CheckpointStore(self.run_folder.checkpoints)
            setup = prepare(
                self.network, self.catalogue, self.recipe, checkpoints, observers,
                self.accelerator, (self.run_folder.trunk() or {}).get("engine"),
            )  # fmt: skip
            ended = self._trained(setup) if train else None
            setup.stop_loading()
            if self.accelerator.is_main_process:
                if ended is not None and ended.at_once:
                    self.run_folder.write_outcome(STOPPED_BY_RULE, ended.reason)
                elif bundle:
                    with phase("final"):
                        self._finish(setup)
                elif train:
                    reason = ended.reason if ended is not None else None
                    self.run_folder.write_outcome("pruned" if ended else "trained", reason)
            self.accelerator.wait_for_everyone()
        return self.run_folder

    def _trained(self, setup: Setup) -> Ended | None:
        """Train; why an observer ended it, or None. A training that diverged has failed."""
        try:
            return fit_head(setup) if setup.recipe.solver == "lbfgs" else Trainer(setup).fit()
        except WorkError as error:
            if self.accelerator.is_main_process:
                self.run_folder.write_outcome("failed", str(error))
            raise

    def _finish(self, setup: Setup) -> None:
        best = setup.checkpoints.load_best()
        if best is None:
            raise RunError(
                f"{self.run_folder.checkpoints / 'best.pt'} is gone, and with it the best weights. "
                "Train anew."
            )
        network = _network_of(self.run_folder.facts(), len(self.catalogue.classes))
        for module in (network.module, setup.network):
            module.load_state_dict(best)
        metrics: dict[str, Any] = {}
        for split in ("valid", "test"):
            if len(self.catalogue.rows(split)):
                metrics[split] = self._evaluate(network, setup, split)
                setup.observers.on_evaluation(split, metrics[split])
        write_bundle(
            network.module,
            self._bundle_facts(network, metrics),
            self.run_folder.bundle,
            check=lambda folder: self._verify(network, folder / ONNX_FILE),
        )
        setup.observers.on_bundle(self.run_folder)

    def _evaluate(self, network: Network, setup: Setup, split: str) -> dict[str, Any]:
        """Evaluate a split in float32, write its files, and return its figures."""
        device, catalogue = self.accelerator.device, self.catalogue
        result = setup.judge_kept(split)
        if result is None:
            loader = evaluation_loader(
                network.preprocessing, catalogue, self.recipe, catalogue.rows(split)
            )
            result = evaluate(
                network.module.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
                loader,
                InputMaker(network.preprocessing, device),
                len(catalogue.classes),
                self.accelerator,
                exact=True,
            )
        told = {problem.path for problem in self.run_folder.problems()}
        new = [problem for problem in result.problems if problem.path not in told]
        if new:
            setup.observers.on_problems(new)
            refuse_fatal(new)
        figures = asdict(result.sums.summary())
        answers = np.concatenate(result.probabilities) if result.probabilities else np.zeros((0, 1))
        self.run_folder.write_evaluation(
            split,
            {
                "split": split,
                **figures,
                "per_class": per_class(result.sums.confusion, catalogue.classes),
                "confusion": result.sums.confusion.tolist(),
                "skipped": [asdict(problem) for problem in result.problems],
            },
            [
                (catalogue.paths[row], *_answer(catalogue, row, answer))
                for row, answer in zip(result.rows, answers, strict=True)
            ],
        )
        return figures

    def _bundle_facts(self, network: Network, metrics: dict[str, Any]) -> BundleFacts:
        facts = self.run_folder.facts()
        return BundleFacts(
            architecture=network.architecture,
            arguments=network.arguments,
            classes=self.catalogue.classes,
            preprocessing=network.preprocessing,
            recipe=facts["recipe"],
            metrics=metrics,
            data={key: facts["data"].get(key) for key in ("fingerprint", "division", "split_seed")},
            created=_now(),
            vizsla=__version__,
        )

    def _verify(self, network: Network, path: Path) -> None:
        """Hold the exported network against the trained one on the first pictures that decode."""
        dataset = PictureDataset(self.catalogue, network.preprocessing, self.recipe.corrupt)
        loaded = (dataset[Draw(int(row), 0, 0)].pixels for row in self.catalogue.rows("valid"))
        pixels = list(islice((one for one in loaded if one is not None), _VERIFIED_PICTURES))
        inputs = network.preprocessing.normalise(np.stack(pixels))
        self.run_folder.append_findings(verify_onnx(network.module.cpu(), path, inputs))

    def _own_observers(self) -> list[Observer]:
        return [RunRecorder(self.run_folder)] if self.accelerator.is_main_process else []

    def _sole_writer(self) -> contextlib.AbstractContextManager[None]:
        main = self.accelerator.is_main_process
        return self.run_folder.locked() if main else contextlib.nullcontext()


def _facts(
    data: str | os.PathLike[str],
    recipe: Recipe,
    catalogue: Catalogue,
    network: Network,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The content of `run.toml`. TOML knows no null: what is unknown is left out."""
    source = Path(data).expanduser().resolve()
    facts: dict[str, Any] = {
        "created": _now(),
        "recipe": recipe.model_dump(exclude_none=True),
        "data": {
            "source": str(source),
            "root": str(catalogue.root.resolve()),
            "fingerprint": catalogue.fingerprint(),
            "division": catalogue.fingerprint(divided=True),
            "classes": [label.folder for label in catalogue.classes],
            "pictures": {split: len(catalogue.rows(split)) for split in SPLITS},
        },
        "model": {
            "architecture": network.architecture,
            "arguments": network.arguments,
            "weights": network.weights_origin,
            "preprocessing": network.preprocessing.to_dict(),
        },
        "versions": {
            "vizsla": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": version("timm"),
        },
        "hardware": {
            "device": str(accelerator.device),
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "processes": accelerator.num_processes,
            "precision": "bf16" if accelerator.mixed_precision == "bf16" else "fp32",
        },
    }
    if catalogue.split_seed is not None:
        facts["data"]["split_seed"] = catalogue.split_seed
    if network.weights_hash is not None:
        facts["model"]["weights_sha256"] = network.weights_hash
    return facts


def _network_of(facts: dict[str, Any], class_count: int) -> Network:
    """The run's network with random weights, for weights from a checkpoint."""
    model = facts["model"]
    return Network(
        module=rebuild(model["architecture"], model["arguments"], class_count),
        architecture=model["architecture"],
        arguments=model["arguments"],
        preprocessing=Preprocessing.from_dict(model["preprocessing"]),
        weights_origin=model["weights"],
        weights_hash=model.get("weights_sha256"),
    )


def _answer(
    catalogue: Catalogue, row: int, probabilities: NDArray[np.float32]
) -> tuple[str, str, str]:
    """Label, predicted label and confidence of one picture, for the table of predictions."""
    best = int(probabilities.argmax())
    label = catalogue.classes[catalogue.labels[row]].folder
    return label, catalogue.classes[best].folder, f"{probabilities[best]:.6f}"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
