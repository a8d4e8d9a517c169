"""Run as a program: `serve` with several workers around scripted engines. Arguments are serve's.

The model path is the script's name. GATE is a file that the scripts wait for.
"""

import logging
import os
import signal
import sys
import threading

from failing_engine import BREAKS, BrokenTokenizer, failing_engine
from fakes import ByteTokenizer, FakeEngine

from marlin import config
from marlin.commands.parser import Parser
from marlin.engine.served_model import ServedModel
from marlin.errors import ModelFileError
from marlin.server.http.limits import Limits
from marlin.server.process import supervisor, worker

DRAIN_S = float(os.environ.get("DRAIN_S", "8"))
HUNG_S = float(os.environ.get("HUNG_S", "90"))
LIMITS = Limits(
    drain_s=DRAIN_S,
    stop_s=float(os.environ.get("STOP_S", "5")),
    restart_s=0.05,
    heartbeat_s=0.05,
    hung_s=HUNG_S,
    abort_s=0.5,
    slow_s=0.3,
    num_failures=4,
    proof_s=float(os.environ.get("PROOF_S", "20")),
    proof_pause_s=0.05,
    failing_s=0.5,
)
GATE_POLL_S = 0.01


def _gated(request):
    """The worker's process id, and the rest once the gate is open."""
    yield f"{os.getpid()} ".encode()
    while not os.path.exists(os.environ["GATE"]):
        if request._aborted.wait(GATE_POLL_S):
            return
    yield b"and ended"


def _dumb():
    """A script that fails once a prompt had BREAKS in it; before, it says its process id."""
    broken = []

    def script(request):
        broken.extend([1] * (BREAKS.encode() in bytes(request.prompt_token_ids)))
        if broken:
            raise RuntimeError("a bug in the engine")
        yield f"{os.getpid()} ".encode()

    return script


def _stop_the_first():
    try:
        os.close(os.open(os.environ["GATE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGSTOP)


def _load(settings, share):
    if settings.model_path == "broken":
        raise ModelFileError("broken", "cannot be read")
    if settings.model_path == "never-loaded":
        print("loading for ever", file=sys.stderr, flush=True)
        threading.Event().wait()
    if settings.model_path == "only-once" and not share.writes_weights:
        os._exit(3)
    if settings.model_path == "stopped-at-birth" and not share.writes_weights:
        _stop_the_first()
    engine, tokenizer = FakeEngine(_gated), ByteTokenizer()
    if settings.model_path == "failing":
        engine = failing_engine()
    elif settings.model_path == "deaf":
        engine, tokenizer = FakeEngine(), BrokenTokenizer()
    elif settings.model_path == "dumb":
        engine = FakeEngine(_dumb())
    return ServedModel(settings.model_path, engine, tokenizer)


def _set_up_logging(settings):
    logging.basicConfig(level=settings.log_level, stream=sys.stderr)


def worker_main():
    return worker.main(_load, _set_up_logging)


def main():
    # The workers import worker_main by its module's name, which must not be __main__.
    import serve_workers

    parser = Parser("serve", "answer from a scripted engine")
    config.add_arguments(parser)
    settings = config.serve_config(vars(parser.read(sys.argv[1:])), os.environ)
    _set_up_logging(settings)
    return supervisor.supervise(settings, serve_workers.worker_main, LIMITS)


if __name__ == "__main__":
    sys.exit(main())
