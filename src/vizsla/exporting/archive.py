"""A bundle as `model.tar.gz`, which SageMaker unpacks to `/opt/ml/model` before a container serves.

At its root lies a bundle that answers by itself: `bundle.json`, the network, the card and `code/`.
The weights for training on (`model.safetensors`, `model.pth`) and files for other runtimes stay
behind, since every instance of an endpoint fetches the archive before it answers; `bundle.json`
in the archive lists the files that are there, so that their hashes can be checked at the other
end. The same bundle gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any

from vizsla.bundle.format import FACTS_FILE
from vizsla.bundle.predictor import load_bundle
from vizsla.errors import BundleError
from vizsla.runs.files import storage_error, write_whole

_STAYS_BEHIND = (".pth", ".pt", ".pt2", ".safetensors", ".tflite")
_NEEDED = ("code/inference.py", "code/requirements.txt")
_COMPRESSION = 6  # weights hardly shrink; more only takes longer


def write_archive(bundle: Path, path: Path) -> Path:
    """Write the archive of `bundle` (a bundle, or a finished run) to `path`, by rename.

    Returns `path`. Raises `BundleError` for a bundle that is damaged, does not load or has no
    code to answer with, and `StorageError` where the archive cannot be written.
    """
    predictor = load_bundle(bundle, check=True)  # nothing is shipped that does not load
    folder = predictor.folder
    facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    names = sorted(name for name in facts["files"] if not name.endswith(_STAYS_BEHIND))
    if missing := [name for name in _NEEDED if name not in names]:
        raise BundleError(
            f"The bundle {folder} lacks {missing[0]}, by which it answers on SageMaker. Write it "
            "anew with this vizsla."
        )
    root = folder.resolve()
    for name in names:  # a bundle from elsewhere must not pull files of this machine in
        if not (root / name).resolve().is_relative_to(root):
            raise BundleError(f"{folder / FACTS_FILE} names {name}, which lies outside the bundle.")
    facts["files"] = {name: facts["files"][name] for name in names}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error

    def write(file: IO[bytes]) -> None:
        with (
            gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
            _add(archive, FACTS_FILE, io.BytesIO(text.encode()), len(text.encode()))
            for name in names:
                with (folder / name).open("rb") as content:
                    _add(archive, name, content, facts["files"][name]["bytes"])

    write_whole(path, write)
    return path


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size_bytes: int) -> None:
    """A file without owner and time, so that the same bundle gives the same bytes."""
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    entry.mode = 0o644
    archive.addfile(entry, content)
