"""A bundle answers: pictures in, predictions out, by ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from vizsla.bundle.format import ONNX_FILE, BundleFacts, check_files, read_facts
from vizsla.data.decode import decode, to_rgb
from vizsla.errors import BundleError, PictureError, SettingError
from vizsla.metrics import log_softmax
from vizsla.records import Prediction, RankedClass

Picture = str | os.PathLike[str] | bytes | Image.Image
Pictures = list[Picture] | tuple[Picture, ...]


class Predictor:
    """Answers for pictures with the network of a bundle. Safe to call from several threads.

    >>> load_bundle("runs/…/bundle").predict("doberman.jpg").class_name  # doctest: +SKIP
    'Doberman_pinscher'
    """

    def __init__(self, folder: Path, facts: BundleFacts, threads: int | None = None) -> None:
        self.folder = folder
        self.facts = facts
        self._session = open_session(folder / ONNX_FILE, threads)
        answers = self._session.get_outputs()[0].shape[-1]
        if answers != len(facts.classes):
            raise BundleError(
                f"{folder / ONNX_FILE} tells {answers} classes apart and bundle.json names "
                f"{len(facts.classes)}; the bundle is not whole."
            )

    @overload
    def predict(self, pictures: Picture, top_k: int = 5) -> Prediction: ...

    @overload
    def predict(self, pictures: Pictures, top_k: int = 5) -> list[Prediction]: ...

    def predict(
        self, pictures: Picture | Pictures, top_k: int = 5
    ) -> Prediction | list[Prediction]:
        """The answer for one picture (a path, its bytes, or a Pillow image), or for each of
        several, in one batch. Raises `PictureError` for one that does not decode."""
        if top_k < 1:
            raise SettingError(f"top_k is {top_k}, but must be at least 1.")
        if isinstance(pictures, str | bytes | os.PathLike | Image.Image):
            return self.predict([pictures], top_k)[0]
        several = list(pictures)
        if not several:
            return []
        probabilities = self.probabilities(np.stack([self.prepare(one) for one in several]))
        return [
            self.ranked(row, top_k, _path_of(one))
            for row, one in zip(probabilities, several, strict=True)
        ]

    def prepare(self, picture: Picture) -> NDArray[np.float32]:
        """The network's input (3, size, size) for a picture."""
        preprocessing = self.facts.preprocessing
        if isinstance(picture, Image.Image):
            image = to_rgb(picture)
        else:
            image = decode(picture, at_least_px=preprocessing.decode_px)
        return preprocessing.normalise(np.asarray(preprocessing.fit(image)))

    def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's own outputs (batch, classes) for prepared inputs (batch, 3, size, size)."""
        logits: NDArray[np.float32] = self._session.run(["logits"], {"pixels": inputs})[0]
        return logits

    def log_probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Log-probabilities (batch, classes) of prepared inputs (batch, 3, size, size)."""
        return log_softmax(self.logits(inputs) / self.facts.temperature)

    def probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities (batch, classes) of prepared inputs (batch, 3, size, size)."""
        result: NDArray[np.float64] = np.exp(self.log_probabilities(inputs))
        return result

    def ranked(self, row: NDArray[np.float64], top_k: int, path: str | None = None) -> Prediction:
        """The prediction that one picture's probabilities (classes,) mean."""
        order = np.argsort(-row, kind="stable")[:top_k]
        ranking = tuple(
            RankedClass(label.code, label.name, float(row[at]))
            for at, label in ((int(at), self.facts.classes[at]) for at in order)
        )
        best = ranking[0]
        return Prediction(best.label, best.class_name, best.confidence, ranking, path)


def open_session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """The network of an ONNX file, to run on the processor with `threads` threads (None: all
    cores). Raises `BundleError` where it cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # Its threads spin between two steps of a run, which is faster than sleeping, but after a run
    # they would take the cores from those that decode the next picture.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's own exceptions share no public base.
    except Exception as error:
        raise BundleError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None


def load_bundle(
    path: str | os.PathLike[str], *, threads: int | None = None, check: bool = False
) -> Predictor:
    """The predictor of a bundle, or of a finished run's bundle.

    `threads` is the number that one answer may use (all cores by default); `check` compares every
    file with its recorded hash first. Raises `BundleError`.
    """
    folder = bundle_folder(Path(path))
    facts = read_facts(folder)
    if check:
        check_files(folder, facts)
    return Predictor(folder, facts, threads)


def bundle_folder(path: Path) -> Path:
    """The bundle in `path`: itself, or that of a finished run or study. Raises `BundleError`."""
    if not path.exists():
        raise BundleError(f"There is no {path}. See: vizsla runs list")
    for kind, command in (("run", "train"), ("study", "tune")):
        if (path / f"{kind}.toml").is_file():
            if not (path / "bundle").is_dir():
                raise BundleError(
                    f"The {kind} {path} has no bundle: it was stopped before its end. Finish it "
                    f"with: vizsla {command} --resume {path}"
                )
            return path / "bundle"
    return path


def prepared_batches(
    predictor: Predictor, paths: Iterable[Path], batch_size: int = 32, threads: int | None = None
) -> Iterator[list[NDArray[np.float32] | PictureError]]:
    """Inputs of many pictures, decoded in threads a batch ahead; an error stands for itself."""

    def prepare(path: Path) -> NDArray[np.float32] | PictureError:
        try:
            return predictor.prepare(path)
        except PictureError as error:
            return error

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting: list[Any] = []
        for path in paths:
            waiting.append(pool.submit(prepare, path))
            if len(waiting) == 2 * batch_size:
                yield [future.result() for future in waiting[:batch_size]]
                del waiting[:batch_size]
        while waiting:
            yield [future.result() for future in waiting[:batch_size]]
            del waiting[:batch_size]


def _path_of(picture: Picture) -> str | None:
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else None
