"""A server on a real socket around a scripted engine."""

import dataclasses
import socket
import threading
from contextlib import ExitStack

import openai
import pytest
from clients import CLIENT_TIMEOUT_S, MODEL, RawClient
from fakes import ByteTokenizer, FakeEngine

from marlin.config import serve_config
from marlin.engine.mock import mock_vectors
from marlin.engine.served_model import LONG_TEXT_CHARACTERS, ServedModel
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer, open_listener
from marlin.server.observe.metrics import FAMILIES
from marlin.server.process.serve import build_app


class RunningServer:
    """A served app and what a test wants to reach of it."""

    def __init__(self, http_server, engine, app):
        self.http_server = http_server
        self.engine = engine
        self.app = app
        self.host, self.port = http_server.socket.getsockname()[:2]
        self.base_url = f"http://{self.host}:{self.port}/v1"

    def connect(self, source=None):
        """A client; source: its address, of which Linux has many (127.0.0.2, ...)."""
        sock = socket.create_connection(
            (self.host, self.port), CLIENT_TIMEOUT_S, source and (source, 0)
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return RawClient(sock)

    def metrics(self):
        with self.connect() as client:
            return client.ask("GET", "/metrics").json()

    def wait_until_idle(self):
        """Wait until every request is over: counted, logged, and its key's and memory's share given
        back. All that comes after an answer's last byte, which its client has by then."""
        places = self.http_server.places
        assert places.wait_until_none_is_busy(CLIENT_TIMEOUT_S), "a request stayed in hand"
        assert self.app._metrics.snapshot()[FAMILIES["requests_in_flight"].start] == 0


@pytest.fixture
def start_server():
    """start_server(engine=…, options={…}, environ={…}, **limits) -> RunningServer."""
    with ExitStack() as stack:

        def start(
            engine=None,
            tokenizer=None,
            *,
            model=True,
            options=None,
            environ=None,
            long_text_characters=LONG_TEXT_CHARACTERS,
            pooling=None,
            generates=True,
            num_helpers=0,
            **limits,
        ):
            engine = engine or FakeEngine()
            tokenizer = tokenizer or ByteTokenizer()
            arguments = {"host": "127.0.0.1", "port": "0", **(options or {})}
            config = serve_config(arguments, environ or {})
            bounds = dataclasses.replace(Limits(linger_s=0.2, wrong_key_s=0.01), **limits)
            served = ServedModel(
                *(MODEL, engine, tokenizer),
                long_text_characters=long_text_characters,
                poll_s=bounds.poll_s,
                generates=generates,
                num_helpers=num_helpers,
                **mock_vectors(pooling),
            )
            app = build_app(config, served if model else None, bounds, created=1_700_000_000)
            listener = open_listener(config.host, config.port, bounds.backlog)
            server = HttpServer(listener, app, bounds)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            # What hangs is aborted, and no thread logs any more when the test is over.
            stack.callback(server.drain, CLIENT_TIMEOUT_S)
            stack.callback(served.close)
            return RunningServer(server, engine, app)

        yield start


@pytest.fixture
def server(start_server):
    return start_server()


@pytest.fixture
def sdk():
    """sdk(server, api_key=…) -> an official client that never tries again."""
    clients = []

    def connect(server, api_key="unused"):
        client = openai.OpenAI(base_url=server.base_url, api_key=api_key, max_retries=0, timeout=10)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()
