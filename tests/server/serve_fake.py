"""Run as a program: `serve` with a scripted engine, under an audit hook that records connections.

Arguments after the script's own are serve's. Each attempt to reach out is a line on standard error
that starts with OUTGOING.
"""

import sys

_OUTGOING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def _audit(event, arguments):
    if event in _OUTGOING:
        print("OUTGOING", event, arguments, file=sys.stderr, flush=True)


# Before every import that could connect.
sys.addaudithook(_audit)

import os
import threading

from failing_engine import BrokenTokenizer, failing_engine
from fakes import ByteTokenizer, FakeEngine, say, say_then_hang

from marlin import config
from marlin.commands.parser import Parser
from marlin.engine.served_model import ServedModel
from marlin.server.http.limits import Limits
from marlin.server.observe import logs
from marlin.server.process.serve import serve


def _slow(request):
    yield b"begun "
    request._aborted.wait(0.5)
    yield b"and ended"


class WedgedEngine(FakeEngine):
    """One whose thread hangs: closing it waits for ever."""

    def close(self):
        print("closing", file=sys.stderr, flush=True)
        threading.Event().wait()


_SCRIPTS = {
    "hello": say(b"Hello there!"),
    "deaf": say(b"Hello there!"),
    "slow": _slow,
    "hang": say_then_hang(b"begun "),
}


def _load(settings):
    name = settings.model_path
    made = {"failing": failing_engine, "wedged": WedgedEngine}
    engine = made[name]() if name in made else FakeEngine(_SCRIPTS[name])
    tokenizer = BrokenTokenizer() if name == "deaf" else ByteTokenizer()
    return ServedModel(name, engine, tokenizer)


def main():
    parser = Parser("serve", "answer from a scripted engine")
    config.add_arguments(parser)
    settings = config.serve_config(vars(parser.read(sys.argv[1:])), os.environ)
    logs.configure(settings.log_level, settings.log_format, sys.stderr)
    times = {name: float(os.environ.get(name.upper(), "5")) for name in ("drain_s", "stop_s")}
    times["failing_s"] = float(os.environ.get("FAILING_S", "10"))
    times["slow_s"] = float(os.environ.get("SLOW_S", "5"))
    times["hung_s"] = float(os.environ.get("HUNG_S", "90"))
    return serve(settings, _load, Limits(**times))


if __name__ == "__main__":
    sys.exit(main())
