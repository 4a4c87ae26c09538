"""Settings of the server, each declared once: a flag of `vizsla serve`, and a keyword in Python."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from vizsla.errors import SettingError
from vizsla.settings import SettingsBase

EngineName = Literal["auto", "onnxruntime", "openvino"]

_SHORTEST_TOKEN = 16


class ServeSettings(SettingsBase):
    """Where a server listens, whom it answers, and how much it takes."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every one.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        1, ge=1, le=64, description="Processes that answer; the cores are shared out over them."
    )
    token_file: Path | None = Field(
        None, description="File with the token that requests must bring; needed outside 127.0.0.1."
    )
    no_auth: bool = Field(False, description="Listen outside 127.0.0.1 without a token.")
    engine: EngineName = Field(
        "auto", description="What runs the network; auto measures what is installed at the start."
    )
    max_batch: int = Field(8, ge=1, le=256, description="Most pictures in one run of the network.")
    max_wait_ms: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="Longest wait for pictures that are still being decoded to join a batch; a "
        "picture that is alone never waits.",
    )
    queue: int = Field(
        256, ge=1, le=100_000, description="Pictures under way at once; more are answered with 503."
    )
    deadline_s: float = Field(
        30.0, gt=0, le=3600, description="Longest time until an answer; after it comes a 504."
    )
    read_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Longest time for a client to send its request, or take its answer.",
    )
    drain_s: float = Field(
        25.0, ge=0, le=3600, description="Longest time to finish requests after SIGTERM."
    )
    body_mb: float = Field(
        16.0, gt=0, le=1024, description="Largest request, in MB of 1,048,576 bytes."
    )
    max_pictures: int = Field(64, ge=1, le=4096, description="Most pictures in one request.")
    max_megapixels: float = Field(
        100.0, gt=0, le=178, description="Largest picture, in millions of pixels."
    )
    allow_url: tuple[str, ...] = Field(
        (), description="Prefix of addresses from which requests may have pictures fetched."
    )
    sagemaker: bool = Field(
        False, description="Keep the contract of SageMaker's hosting containers."
    )

    @field_validator("allow_url")
    @classmethod
    def _prefixes(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            if not _is_prefix(prefix):
                raise ValueError(
                    f"allow_url is {prefix!r}, but must be a prefix such as "
                    "https://pictures.example/dogs/, with a path of at least /"
                )
        return prefixes

    @property
    def body_bytes(self) -> int:
        return int(self.body_mb * 2**20)

    @property
    def most_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)

    @property
    def is_local(self) -> bool:
        """Whether the server can be reached from this machine alone."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def token(self) -> str | None:
        """The token that requests must bring, from its file.

        Raises `SettingError` where there must be one and is none, or it is too short to keep
        anybody out.
        """
        if self.token_file is None:
            if not (self.is_local or self.no_auth or self.sagemaker):
                raise SettingError(
                    f"host is {self.host}, which other machines can reach, and there is no token. "
                    "Make one with: python -c 'import secrets; print(secrets.token_urlsafe())' > "
                    "token; and give --token-file token, or spell out --no-auth."
                )
            return None
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SettingError(f"The token file {self.token_file} cannot be read: {why}.") from None
        if len(token) < _SHORTEST_TOKEN or not token.isascii() or any(map(str.isspace, token)):
            raise SettingError(
                f"The token in {self.token_file} must be one word of at least {_SHORTEST_TOKEN} "
                "ASCII characters. Make one with: python -c 'import secrets; "
                "print(secrets.token_urlsafe())'"
            )
        return token


def _is_prefix(text: str) -> bool:
    try:
        parts = urlsplit(text)
        whole = bool(parts.hostname and parts.path) and parts.port != 0
    except ValueError:  # a port that is no number, or half an address of IPv6
        return False
    odd = "@" in parts.netloc or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and whole and not odd
