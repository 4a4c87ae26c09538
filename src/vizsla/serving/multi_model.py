"""Several models in one container, loaded and unloaded by request, as SageMaker's multi-model
endpoints do.

POST   /models                 {"model_name": …, "url": folder}: load it
GET    /models                 what is loaded, in pages
GET    /models/{name}          one of them
POST   /models/{name}/invoke   pictures to answers, as POST /invocations elsewhere
DELETE /models/{name}          unload it

Here alone a request names a path: the folder into which SageMaker has unpacked a model's archive.
It and all that is in it must lie, with every link followed, in the one folder that the server was
started for, and these routes are there only in this mode. Code in a bundle is never run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vizsla.bundle.format import ONNX_FILE
from vizsla.bundle.predictor import bundle_folder
from vizsla.errors import BundleError, WorkError
from vizsla.serving.answers import json_response
from vizsla.serving.app import Endpoint, application, guarded
from vizsla.serving.invocation import Desk, answer_request
from vizsla.serving.memory import free_memory_bytes
from vizsla.serving.metrics import CONTENT_TYPE, Metrics
from vizsla.serving.model import ServedModel
from vizsla.serving.refusals import Refusal
from vizsla.serving.sagemaker import MODELS_FOLDER
from vizsla.serving.settings import ServeSettings
from vizsla.serving.tokens import Token
from vizsla.words import size

MOST_MODELS = 256
_PAGE = 20
_LARGEST_ORDER = 10_000  # bytes of a request to load
_LONGEST_NAME = 512
# A network in memory: its weights, what the runtime makes of them, and room to answer in.
_TIMES_ITS_FILE = 3
_ROOM_BYTES = 64 << 20


class MultiModelStore:
    """The models that are loaded. Use it in one event loop."""

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics,
        root: Path = MODELS_FOLDER,
        most_models: int = MOST_MODELS,
        free_bytes: Callable[[], int | None] = free_memory_bytes,
    ) -> None:
        """`root` is the only folder that models are loaded from; `free_bytes` tells the memory
        that is left, or None where that is unknown."""
        self._settings, self._metrics, self._root = settings, metrics, root
        self._most_models, self._free_bytes = most_models, free_bytes
        self._models: dict[str, tuple[ServedModel, str]] = {}
        self._loading: set[str] = set()
        self._one_load = asyncio.Lock()  # so that memory is judged with the last one in it

    @property
    def is_alive(self) -> bool:
        """Whether the threads of every loaded model are at work."""
        return all(served.is_alive for served, _ in self._models.values())

    @property
    def under_way(self) -> int:
        """How many pictures wait for their answers."""
        return sum(served.under_way for served, _ in self._models.values())

    def page(self, after: str = "") -> tuple[list[tuple[str, str]], str | None]:
        """Names and folders of loaded models that come after a name, and the name to go on from
        where there are more."""
        names = sorted(name for name in self._models if name > after)
        shown = [(name, self._models[name][1]) for name in names[:_PAGE]]
        return shown, names[_PAGE - 1] if len(names) > _PAGE else None

    def url_of(self, name: str) -> str:
        """Where a loaded model came from. Raises `Refusal` for one that is not loaded."""
        self.model(name)
        return self._models[name][1]

    def model(self, name: str) -> ServedModel:
        """A loaded model. Raises `Refusal` for one that is not."""
        if name not in self._models:
            raise Refusal("not_found", f"No model {name[:_LONGEST_NAME]!r} is loaded.")
        return self._models[name][0]

    async def load(self, name: str, url: str) -> None:
        """Load the bundle in the folder `url` under `name`.

        Raises `Refusal`: already_loaded, no_memory, bad_request for a folder that is not under the
        root, bundle_refused for one that holds no whole bundle.
        """
        if name in self._models or name in self._loading:
            raise Refusal("already_loaded", f"The model {name!r} is loaded already.")
        self._loading.add(name)
        try:
            async with self._one_load:
                served = await asyncio.to_thread(self._loaded, url)
                served.name = name
                self._models[name] = (served, url)
        finally:
            self._loading.discard(name)

    async def unload(self, name: str) -> None:
        """Take a model out, after the answers that are under way. Raises `Refusal` for one that
        is not loaded."""
        served = self.model(name)
        del self._models[name]
        await served.close()

    async def close(self) -> None:
        """Give every answer that is under way."""
        models, self._models = self._models, {}
        await asyncio.gather(*(served.close() for served, _ in models.values()))

    def _loaded(self, url: str) -> ServedModel:
        folder = self._folder(url)
        if len(self._models) >= self._most_models:
            raise Refusal(
                "no_memory", f"{len(self._models)} models are loaded, the most at once; unload one."
            )
        try:
            needed = _ROOM_BYTES + _TIMES_ITS_FILE * (folder / ONNX_FILE).stat().st_size
            free = self._free_bytes()
            if free is not None and free < needed:
                raise _no_memory(f"It takes about {size(needed)}, and {size(free)} are free")
            return ServedModel.load(folder, self._settings, self._metrics)
        except WorkError as error:
            raise Refusal("bundle_refused", str(error)) from None
        except RuntimeError as error:  # Python's own, where the system gives no more threads
            raise _no_memory(str(error).capitalize()) from None
        except OSError as error:
            raise Refusal("bundle_refused", f"{url} is no bundle: {error.strerror}.") from None
        except MemoryError:
            raise _no_memory("The memory did not suffice") from None
        except BundleError as error:
            # ONNX Runtime reports its own want of memory as a failure to load.
            if "alloc" in str(error).lower():
                raise _no_memory(str(error).rstrip(".")) from None
            raise Refusal("bundle_refused", str(error)) from None

    def _folder(self, url: str) -> Path:
        """The bundle's folder, which lies under the root whatever links lead to it."""
        try:
            root = self._root.resolve(strict=True)
            given = Path(url)
            folder = given.resolve(strict=True)
            if given.is_absolute() and folder.is_relative_to(root) and folder != root:
                folder = bundle_folder(folder).resolve(strict=True)
                if folder.is_relative_to(root) and _holds_plain_files(folder, root):
                    return folder
        except (OSError, ValueError, RuntimeError):  # no such folder, a NUL, a circle of links
            pass
        except BundleError as error:
            raise Refusal("bundle_refused", str(error)) from None
        raise Refusal(
            "bad_request", f"url is {url[:200]!r}, but must be a model's folder in {self._root}."
        )


class MultiModelServer:
    """A server of several models in one process: its store, its settings, and what it counts."""

    def __init__(self, settings: ServeSettings, root: Path = MODELS_FOLDER) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.token = Token(settings.token())  # SageMaker itself sends none
        self.store = MultiModelStore(settings, self.metrics, root)


def multi_model_app(server: MultiModelServer) -> Starlette:
    """The application of a container for a multi-model endpoint."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Desk.opened(server.settings, server.metrics) as app.state.desk:
            yield
        await server.store.close()

    return application(multi_model_routes(server), lifespan)


def multi_model_routes(server: MultiModelServer) -> list[Route]:
    """The routes of the module's heading, `GET /ping` and `GET /metrics`."""
    store = server.store

    async def ping(request: Request) -> Response:
        if not store.is_alive:
            raise Refusal("not_ready", "The threads of a model are at fault.")
        return json_response({"status": "ready"})

    async def load(request: Request) -> Response:
        name, url = await _order(request, server.settings.read_timeout_s)
        await store.load(name, url)
        return json_response(_entry(name, url))

    async def models(request: Request) -> Response:
        shown, after = store.page(request.query_params.get("next_page_token", ""))
        facts: dict[str, Any] = {"models": [_entry(name, url) for name, url in shown]}
        if after is not None:
            facts["nextPageToken"] = after
        return json_response(facts)

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        return json_response(_entry(name, store.url_of(name)))

    async def unload(request: Request) -> Response:
        name = request.path_params["name"]
        url = store.url_of(name)
        await store.unload(name)
        return json_response(_entry(name, url))

    async def invoke(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            served = store.model(name)
            return await answer_request(request, lambda: served, request.app.state.desk)
        except Refusal as refusal:
            if refusal.code == "shutting_down":
                store.model(name)  # unloaded while the body came: says so
            raise

    async def metrics(request: Request) -> Response:
        server.metrics.stand(store.under_way, store.is_alive)
        return Response(server.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    def route(path: str, endpoint: Endpoint, method: str = "GET", *, free: bool = False) -> Route:
        return Route(path, guarded(server, path, endpoint, free=free), methods=[method])

    return [
        route("/ping", ping, free=True),
        route("/models", load, "POST"),
        route("/models", models),
        route("/models/{name}", model),
        route("/models/{name}", unload, "DELETE"),
        route("/models/{name}/invoke", invoke, "POST"),
        route("/metrics", metrics),
    ]


def _holds_plain_files(folder: Path, root: Path) -> bool:
    """Whether a bundle's folder holds files and folders alone: an archive can bring links that lead
    out, and pipes on which a reader waits for ever."""
    return all(
        (path.is_file() or path.is_dir()) and path.resolve().is_relative_to(root)
        for path in folder.rglob("*")
    )


async def _order(request: Request, timeout_s: float) -> tuple[str, str]:
    """Name and folder of the model that a request asks to load."""
    body = b""
    try:
        with anyio.fail_after(timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > _LARGEST_ORDER:
                    words = "A request to load a model is a small JSON object."
                    raise Refusal("body_too_large", words, unread=True)
    except TimeoutError:
        words = f"The request did not arrive within {timeout_s:g} s."
        raise Refusal("too_slow", words, unread=True) from None
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal("bad_json", "The body is not JSON.") from None
    facts = facts if isinstance(facts, dict) else {}
    name, url = facts.get("model_name"), facts.get("url")
    if not isinstance(name, str) or not isinstance(url, str) or not url:
        raise Refusal("bad_json", 'The JSON must be {"model_name": "…", "url": "/folder"}.')
    if not name.isprintable() or not 1 <= len(name) <= _LONGEST_NAME or "/" in name:
        raise Refusal(
            "bad_request",
            f"model_name must be 1 to {_LONGEST_NAME} printable characters without a slash.",
        )
    return name, url


def _entry(name: str, url: str) -> Mapping[str, str]:
    return {"modelName": name, "modelUrl": url}


def _no_memory(why: str) -> Refusal:
    return Refusal("no_memory", f"The model cannot be loaded. {why}. Unload another one first.")
