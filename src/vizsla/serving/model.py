"""A bundle that is being served: its predictor, the engine that was chosen, and its batcher.

A server holds one in a `Holder`, which a new one replaces while requests go on: those whose
pictures have come are answered by the old one, which is closed when its last answer has been given.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vizsla.bundle.format import FACTS_FILE
from vizsla.bundle.predictor import Predictor, bundle_folder, load_bundle
from vizsla.checksum import sha256_of
from vizsla.data.cores import available_cores
from vizsla.data.decode import decode
from vizsla.errors import BundleError, PictureError, WorkError
from vizsla.metrics import log_softmax
from vizsla.serving.batching import Batcher, Listener
from vizsla.serving.engine_choice import Choice, choose_engine
from vizsla.serving.engines import KINDS, Pixels
from vizsla.serving.settings import ServeSettings

# Pillow's names of what a request may hold. Others are never tried: one of Pillow's readers, for
# one, runs a program. Their modules are imported here, or the first request would wait for all.
FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)

# For threads at the end, when every request has been answered or given up.
_LAST_S = 2.0

# Past this, one step of work means that a thread hangs.
STUCK_S = 60.0


class ServedModel:
    """Answers for pictures in bytes. Make it with `load`, which answers a first picture."""

    def __init__(
        self, predictor: Predictor, choice: Choice, settings: ServeSettings, listener: Listener
    ) -> None:
        threads = threads_of_worker(settings.workers)
        self.predictor, self.choice = predictor, choice
        self.engine = KINDS[choice.name](predictor, threads)
        self.name = name_of(predictor.folder)
        self.digest = sha256_of(predictor.folder / FACTS_FILE)
        self._most_pixels = settings.most_pixels
        self._batcher = Batcher(
            self._prepared,
            self._answered,
            listener,
            decoders=threads,
            lanes=threads,
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1e3,
            capacity=settings.queue,
        )

    @classmethod
    def load(cls, folder: Path, settings: ServeSettings, listener: Listener) -> ServedModel:
        """The model of the bundle in `folder`, after every file's hash was compared and a picture
        was answered. Raises `BundleError` where the bundle is damaged or does not answer."""
        threads = threads_of_worker(settings.workers)
        try:
            predictor = load_bundle(folder, threads=1, check=True)
            choice = choose_engine(predictor.folder, settings.engine, threads, settings.max_batch)
            served = cls(predictor, choice, settings, listener)
        except OSError as error:  # a file that may not be read, or is replaced at this moment
            raise BundleError(f"The bundle {folder} cannot be read: {error.strerror}.") from None
        try:
            served._warm_up()
        except (PictureError, WorkError) as error:
            served._batcher.close()
            raise BundleError(f"The bundle {folder} does not answer: {error}") from None
        return served

    @property
    def under_way(self) -> int:
        """How many pictures wait for their answers."""
        return self._batcher.under_way

    @property
    def is_alive(self) -> bool:
        """Whether the threads that decode and answer are at work."""
        return self._batcher.is_alive(STUCK_S)

    def submit(
        self, bodies: Sequence[bytes], deadline: float
    ) -> list[asyncio.Future[NDArray[np.float64]]]:
        """A future for each picture's probabilities (classes,); it raises `PictureError` where the
        picture does not decode, and `DeadlinePassed` where it was not its turn by `deadline`
        (seconds of `time.monotonic`). Raises `Overloaded`."""
        return self._batcher.submit(bodies, deadline)

    def told(self, outcome: NDArray[np.float64] | BaseException, top_k: int) -> Any:
        """The prediction that probabilities (classes,) mean, or the `PictureError` itself; any
        other exception is raised."""
        if isinstance(outcome, PictureError):
            return outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return self.predictor.ranked(outcome, top_k)

    async def close(self, timeout_s: float = 60.0) -> None:
        """Give the answers that are under way, for so long at most, then end the threads."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._batcher.close, timeout_s)

    def _prepared(self, body: bytes) -> Pixels:
        preprocessing = self.predictor.facts.preprocessing
        image = decode(
            body,
            at_least_px=preprocessing.decode_px,
            most_pixels=self._most_pixels,
            formats=FORMATS,
        )
        return preprocessing.normalise(np.asarray(preprocessing.fit(image)))

    def _answered(self, inputs: Sequence[Pixels], alone: bool) -> NDArray[np.float64]:
        stacked = np.stack(inputs) if len(inputs) > 1 else inputs[0][None]  # which copies nothing
        logits = self.engine(stacked, alone)
        probabilities: NDArray[np.float64] = np.exp(
            log_softmax(logits / self.predictor.facts.temperature)
        )
        return probabilities

    def _warm_up(self) -> None:
        """Take a picture the way that all will go, alone and in a batch."""
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), (120, 90, 60)).save(picture, "JPEG")
        prepared = self._prepared(picture.getvalue())
        for inputs, alone in (([prepared], True), ([prepared] * 2, False)):
            try:
                answers = self._answered(inputs, alone)
            except Exception as error:  # whatever an engine raises
                raise WorkError(str(error).splitlines()[0]) from error
            if not np.isfinite(answers).all():
                raise WorkError("its answers are no numbers.")


class Holder:
    """The model that is being served now; another takes its place without losing a request."""

    def __init__(self, folder: Path, settings: ServeSettings, listener: Listener) -> None:
        self.folder = folder
        self.current = ServedModel.load(folder, settings, listener)
        self._settings, self._listener = settings, listener
        self._swapping = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def reload(self) -> bool:
        """Take the bundle that lies in the folder now, if it is another one than before.

        Raises `BundleError` where it is damaged; the old one then stays.
        """
        async with self._swapping:
            loop = asyncio.get_running_loop()
            digest = await loop.run_in_executor(None, digest_of, self.folder)
            if digest == self.current.digest:
                return False
            load = partial(ServedModel.load, self.folder, self._settings, self._listener)
            old, self.current = self.current, await loop.run_in_executor(None, load)
            task = loop.create_task(old.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            return True

    async def close(self) -> None:
        """End the threads, after every answer that somebody still waits for."""
        await asyncio.gather(self.current.close(_LAST_S), *self._closing)


def threads_of_worker(workers: int) -> int:
    """How many threads each of so many processes may compute with."""
    return max(1, available_cores() // workers)


def name_of(bundle: Path) -> str:
    """What a bundle is called in answers: its run's name, and what makes it another one."""
    bundle = bundle.resolve()
    if not bundle.name.startswith("bundle"):
        return bundle.name
    return bundle.parent.name + bundle.name.removeprefix("bundle")


def digest_of(folder: Path) -> str:
    """The SHA-256 of a bundle's facts, which hold the hashes of its other files.

    Raises `BundleError` where there is no bundle.
    """
    try:
        return sha256_of(bundle_folder(folder) / FACTS_FILE)
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: {error.strerror}.") from None
