"""Each rival's virtual environment, made on first use, and the command that starts its server.

ONNX Runtime, NumPy and Pillow are of the versions that vizsla's environment has, so that decoding
and network are as fast. `SETUPS` are (workers, threads of each, largest batch); the benchmark tries
all of them and keeps the best.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.child_process import REPOSITORY

SETUPS = ((1, 2, 8), (2, 1, 8), (2, 1, 1))
Setup = tuple[int, int, int]


@dataclass(frozen=True)
class Rival:
    """`installs` are calls of pip, one after the other."""

    name: str
    program: str
    installs: tuple[tuple[str, ...], ...]
    ready_path: str = "/ping"

    def command(self, folder: Path, bundle: Path, port: int, setup: Setup) -> list[str]:
        workers, threads, batch = map(str, setup)
        program = REPOSITORY / "benchmarks" / "rivals" / f"{self.program}_server.py"
        return [
            str(_python(folder / self.program)), str(program), str(bundle), "--port", str(port),
            "--workers", workers, "--threads", threads, "--batch", batch,
        ]  # fmt: skip


RIVALS = (
    Rival("LitServe 0.2.19", "litserve", (("litserve==0.2.19",),)),
    Rival(
        "BentoML 1.4.40",
        "bentoml",
        # 1.4.40 asks for a newer certifi than some indexes have, and needs nothing else that
        # 1.4.39 does not.
        (("bentoml==1.4.39",), ("--no-deps", "bentoml==1.4.40")),
        "/readyz",
    ),
    Rival("Ray Serve 2.60.0", "ray_serve", (("ray[serve]==2.60.0",),)),
)


def environment() -> dict[str, str]:
    """What a rival's process needs to find vizsla's NumPy-only modules and the benchmark's."""
    return {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}"}


def prepare(folder: Path) -> None:
    """Make the environments that `folder` lacks."""
    same = [f"{name}=={version(name)}" for name in ("onnxruntime", "numpy", "pillow")]
    for rival in RIVALS:
        place = folder / rival.program
        done = place / ".installed"
        if done.exists():
            continue
        print(f"serving: installing {rival.name} …", file=sys.stderr, flush=True)
        venv.create(place, with_pip=True, clear=True)
        for arguments in rival.installs:
            more = [] if "--no-deps" in arguments else same
            subprocess.run(
                [_python(place), "-m", "pip", "install", "--quiet", *arguments, *more], check=True
            )
        done.touch()


def _python(place: Path) -> Path:
    return place / "bin" / "python"
