"""Metal Marlin under Ray Serve: each replica owns a `metal-marlin serve` process, and passes
requests and streams through.

    pip install -r deploy/ray/requirements.txt
    serve run deploy.ray.metal_marlin_app:build model=MODEL options="--enable-batching"

The process listens on a file that this replica alone may open. Keys, limits and refusals are the
process's own. Ray has ports and connections of its own: what the server promises of none
(docs/security.md) ends here.
"""

import asyncio
import os
import shlex
import sys
import tempfile

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

START_S = 600  # a large model is read and repacked
# Longer than the 30 s that streams in flight get.
STOP_S = 45
# Of one connection, and not of what is in it.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade"}


def passed_on(headers):
    """The headers that belong to a request or an answer, and not to a connection."""
    return [(name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP]


@serve.deployment(
    # Generation requests that a replica has, waiting ones too: above it replicas are added.
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8},
    max_ongoing_requests=64,
    graceful_shutdown_timeout_s=STOP_S,
    health_check_period_s=5,
    health_check_timeout_s=10,
)
class MetalMarlin:
    """One replica.

    Args:
        model: a path that is the same on every machine.
        options: of `serve`, as words.
    """

    def __init__(self, model, options):
        self._model, self._options = model, options
        self._folder = tempfile.TemporaryDirectory(prefix="metal-marlin-")
        self._socket = os.path.join(self._folder.name, "socket")
        self._process = self._session = None
        self._starting = asyncio.Lock()

    async def _started(self):
        """A client of the process; who finds none, or one that has ended, starts another."""
        async with self._starting:
            if self._session is not None and self._process.returncode is not None:
                await self._session.close()
                self._session = None
            if self._session is None:
                if os.path.exists(self._socket):
                    os.unlink(self._socket)
                words = ["-I", "-B", "-m", "marlin", "serve", self._model, "--uds", self._socket]
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, *words, *self._options
                )
                session = aiohttp.ClientSession(
                    "http://localhost",
                    connector=aiohttp.UnixConnector(self._socket, limit=0),
                    timeout=aiohttp.ClientTimeout(total=None),
                    auto_decompress=False,
                )
                await self._wait_until_well(session)
                self._session = session
        return self._session

    async def _wait_until_well(self, session):
        for _ in range(START_S * 10):
            if self._process.returncode is not None:
                raise RuntimeError(f"metal-marlin ended with {self._process.returncode}")
            try:
                async with session.get("/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # it does not listen yet
            await asyncio.sleep(0.1)
        raise RuntimeError(f"metal-marlin was not well within {START_S} s")

    async def check_health(self):
        """Ray replaces a replica whose process is not well, and cannot be started anew."""
        session = await self._started()
        async with session.get("/health") as answer:
            if answer.status != 200:
                raise RuntimeError(f"/health says {answer.status}")

    async def __call__(self, request: Request):
        """A request, and its answer piece by piece as it comes."""
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        body = await request.body()
        words = request.method, target
        given = {"data": body or None, "headers": passed_on(request.headers)}
        try:
            try:
                answer = await (await self._started()).request(*words, **given)
            except aiohttp.ClientConnectorError:  # nothing was sent: the process has just ended
                await asyncio.wait_for(self._process.wait(), STOP_S)
                answer = await (await self._started()).request(*words, **given)
        except aiohttp.ClientError as error:  # it had the request, and answered nothing
            return Response(f"the server behind this replica ended: {error}", 503)

        async def pieces():
            try:
                async for piece in answer.content.iter_any():
                    yield piece
            finally:
                answer.close()  # a client that left ends the generation

        return StreamingResponse(pieces(), answer.status, dict(passed_on(answer.headers)))

    async def __del__(self):
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_S)
            except asyncio.TimeoutError:
                self._process.kill()
        self._folder.cleanup()


def build(arguments):
    """What `serve run` starts. arguments: {"model": path, "options": words, "replicas": number}."""
    made = MetalMarlin
    if "replicas" in arguments:
        made = made.options(autoscaling_config=None, num_replicas=int(arguments["replicas"]))
    return made.bind(arguments["model"], shlex.split(arguments.get("options", "")))
