"""Ray Serve with the benchmark's model: replicas are the workers, `serve.batch` the batching.

The replica answers a batch in a thread of its own, so that its event loop collects the next one
meanwhile. Ray's dashboard and usage reports are off.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.rivals.answering import Model, options


def _deployment(workers: int, threads: int, batch: int) -> serve.Deployment:
    @serve.deployment(
        num_replicas=workers,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 1},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    class Answering:
        def __init__(self, bundle: str) -> None:
            self._model = Model(bundle, threads)
            self._thread = ThreadPoolExecutor(1)

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=0.002 if batch > 1 else 0.0)
        async def answers(self, bodies: list[bytes]) -> list[bytes]:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._model.answers, bodies)

        async def __call__(self, request: Request) -> Response:
            if request.method == "GET":
                return Response('{"status": "ready"}', media_type="application/json")
            answer = await self.answers(await request.body())
            return Response(answer, media_type="application/json")

    return Answering


def main() -> None:
    chosen = options()
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=max(2, chosen.workers),
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        serve.start(http_options={"host": "127.0.0.1", "port": chosen.port}, logging_config=quiet)
        answering = _deployment(chosen.workers, chosen.threads, chosen.batch)
        serve.run(answering.bind(str(chosen.bundle)), route_prefix="/")
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own, which ends at once
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
