"""Serving a bundle: everything is checked, then the socket is opened, then one process answers, or
several do under a supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vizsla.bundle.format import check_files, read_facts
from vizsla.bundle.predictor import bundle_folder
from vizsla.errors import SettingError
from vizsla.extras import require
from vizsla.serving.settings import ServeSettings

_BACKLOG = 2048


def serve(
    path: str | os.PathLike[str],
    settings: ServeSettings | None = None,
    announce: Callable[[str, dict[str, Any]], None] = lambda address, facts: None,
) -> None:
    """Serve the model of the run or bundle in `path` until SIGTERM or SIGINT; blocks, in the main
    thread.

    `announce` is told the address and what GET /v1/model says, once the server answers. Raises
    `BundleError` for a damaged bundle, `SettingError` for an address that cannot be listened on or
    a token that is missing, `DependencyError` without the extra `serve`.
    """
    _require_packages()
    from vizsla.serving.engine_choice import choose_engine
    from vizsla.serving.fleet import Board, Fleet
    from vizsla.serving.model import threads_of_worker
    from vizsla.serving.process import answer_with_bundle
    from vizsla.serving.supervisor import Supervisor

    settings = settings or ServeSettings()
    settings.token()  # refuses early what each process would refuse
    folder = bundle_folder(Path(path))
    with _hangups_ignored(), _listening(settings.host, settings.port) as listening:
        address = _address(listening)
        if settings.workers == 1:
            fleet = Fleet(Board.alone())
            answer_with_bundle(
                listening, folder, settings, fleet, lambda facts: announce(address, facts)
            )
        else:
            # Once for all: one complaint and not one a process, and one measurement.
            check_files(folder, read_facts(folder))
            threads = threads_of_worker(settings.workers)
            choose_engine(folder, settings.engine, threads, settings.max_batch)
            Supervisor(listening, folder, settings).run(lambda facts: announce(address, facts))


def serve_container(
    path: Path | None,
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    announce: Callable[[str, dict[str, Any]], None],
) -> None:
    """Serve as a SageMaker hosting container does: the bundle in `path`, by default where SageMaker
    puts it, or several models by request. `given` settings come before those of `environ`.

    Raises as `serve`, and `SettingError` for a variable of the environment that cannot be meant.
    """
    from vizsla.serving.sagemaker import MODEL_FOLDER, container_settings, is_multi_model

    settings = ServeSettings(**{**container_settings(environ), **given})
    if not is_multi_model(environ):
        serve(path or MODEL_FOLDER, settings, announce)
        return
    _require_packages()
    from vizsla.serving.multi_model import MultiModelServer, multi_model_app
    from vizsla.serving.process import answer_on

    app = multi_model_app(MultiModelServer(settings, *([path] if path is not None else [])))
    with _listening(settings.host, settings.port) as listening:
        answer_on(listening, app, settings, lambda: announce(_address(listening), {}))


@contextlib.contextmanager
def _hangups_ignored() -> Iterator[None]:
    """A SIGHUP that comes before there is a bundle to replace does not end the process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _require_packages() -> None:
    for module in ("uvicorn", "starlette", "httptools", "prometheus_client", "python_multipart"):
        require(module, "serve", "vizsla serve")


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet, so that nobody waits for a bundle to load."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as unless_bound:
            made = unless_bound.enter_context(socket.socket(family, socket.SOCK_STREAM))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            unless_bound.pop_all()
    except (OSError, UnicodeError) as error:  # which a name of too many letters is
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise SettingError(
            f"The server cannot listen on {host}:{port}: {why}. Choose another with --host and "
            "--port; --port 0 takes a free one."
        ) from None
    return made


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
