"""Pretrained weights from the hub, or an error with the ways out; never a silent random start.

The hub's own client downloads and caches. What is added here: cached weights are used without
asking the network, and an unreachable hub is told of in seconds rather than after the client's
minute of retries.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.errors import ModelError

# isort: split
import huggingface_hub
import timm
from huggingface_hub import constants

_FILENAMES = ("model.safetensors", "pytorch_model.bin")
_REACHABLE_TIMEOUT_S = 10


def fetch_pretrained(architecture: str) -> tuple[Path, str]:
    """The file of the architecture's pretrained weights, and where they came from in words.

    Raises `ModelError` where there are none, or they are neither cached nor to be had.
    """
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    if config is None or not config.hf_hub_id:
        raise ModelError(
            f"The hub has no pretrained weights for {architecture}. Give a file with --weights, "
            "or train from scratch with --weights none."
        )
    names = (config.hf_hub_filename,) if config.hf_hub_filename else _FILENAMES
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(cached, str):
            return Path(cached), f"pretrained ({config.hf_hub_id})"
    return _download(architecture, config.hf_hub_id, names), f"pretrained ({config.hf_hub_id})"


def _download(architecture: str, repository: str, names: tuple[str, ...]) -> Path:
    why = "the hub is switched off by HF_HUB_OFFLINE"
    if not constants.HF_HUB_OFFLINE:
        try:
            _check_reachable(constants.ENDPOINT)
            for name in names:
                if huggingface_hub.file_exists(repository, name):
                    return Path(huggingface_hub.hf_hub_download(repository, name))
            why = f"{repository} has no {' or '.join(names)}"
        # The client, the network under it and the disk have errors of their own; to a person
        # all of them mean the same: the weights are not here.
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
    raise ModelError(
        f"The pretrained weights of {architecture} could not be had from {constants.ENDPOINT}: "
        f"{why}. Three ways out: connect to the network (or set HF_ENDPOINT to a mirror); copy "
        "the weights here and give them with --weights FILE.safetensors; or train from scratch "
        "with --weights none."
    )


def _check_reachable(endpoint: str) -> None:
    """Raise `OSError` unless something answers at `endpoint`, whatever it answers."""
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_REACHABLE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass
