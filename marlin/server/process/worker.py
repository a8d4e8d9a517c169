"""One of several server processes: what it is handed at its start, and its life until it is told
to stop.

A worker shares the listening socket, the weights and the workers' table with its siblings and
inherits all three as descriptors. Its standard input is the supervisor: one line of JSON, then
nothing until the supervisor is gone.
"""

import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial

from marlin.config import ServeConfig
from marlin.engine.share import Share
from marlin.errors import ConfigError, MarlinError, SharedWeightsError, said_by_system
from marlin.files.sealed import SealedModel
from marlin.server.api.app import App
from marlin.server.http import allocator
from marlin.server.http.doors import inherited
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer
from marlin.server.observe.worker_table import WorkerTable
from marlin.server.process import seccomp
from marlin.server.process.lockdown import forbid_writing, lock_down
from marlin.server.process.room import check_threads
from marlin.server.process.serve import (
    accept,
    build_app,
    end_in_time,
    leave_nobody_waiting,
    libraries,
    loaded,
    open_audit,
    prepare,
    reload_signals,
    stop,
    wait_for_end,
    watch_engine,
)
from marlin.server.process.signals import StopSignals
from marlin.server.process.watchdog import start_beating

_log = logging.getLogger("marlin.server")
# Seconds that a worker which is answering leaves a new connection to idle siblings: they take it
# within some 100 µs, and when there is none it is lost time, so not much more.
_YIELD_S = 0.002
_PR_SET_PDEATHSIG = 1
# The exit code of a worker that no other could replace.
BAD_WEIGHTS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is started for.

    Attributes:
        config, limits: of the server.
        index: which worker it is, from 0; None fills the shared weights and ends.
        created: when the server was started, seconds since the epoch; all workers say the same.
        listener_fds, table_fd, weights_fd: inherited descriptors.
        ready_fd: inherited pipe; the model's name is written to it once the worker serves.
        model: sealed copies of the model's files, whose descriptors are inherited, or None.
    """

    config: ServeConfig
    limits: Limits
    index: int | None
    created: int
    listener_fds: list[int]
    table_fd: int
    weights_fd: int
    ready_fd: int
    model: SealedModel | None = None

    @property
    def model_fds(self):
        return () if self.model is None else tuple(self.model.files.values())

    def encode(self):
        """One line of bytes."""
        values = asdict(self)
        key = self.config.api_key
        values["config"]["api_key"] = None if key is None else key.decode("utf-8")
        return json.dumps(values).encode("ascii") + b"\n"

    @classmethod
    def decode(cls, line):
        """The inverse of encode()."""
        values = json.loads(line)
        key = values["config"].pop("api_key")
        lists = (name for name, value in values["config"].items() if isinstance(value, list))
        tuples = {name: tuple(values["config"][name]) for name in lists}
        values["config"] = ServeConfig(
            **values["config"] | tuples, api_key=None if key is None else key.encode("utf-8")
        )
        values["limits"] = Limits(**values["limits"])
        if values["model"] is not None:
            values["model"] = SealedModel(*values["model"])
        return cls(**values)

    @property
    def share(self):
        return Share(self.config.workers, self.weights_fd, self.index is None, self.model)


class WorkerServer(HttpServer):
    """An HttpServer whose listening socket others accept from, too."""

    application: App

    def __init__(self, listener, application, limits):
        # Another worker may be faster; whoever comes second must not wait in accept().
        listener.setblocking(False)
        super().__init__(listener, application, limits)

    def get_request(self):
        if self.application.gives_way():
            time.sleep(self.limits.heartbeat_s)
            raise BlockingIOError  # not for this worker
        if self.num_busy and not self.draining:
            time.sleep(_YIELD_S)
        return super().get_request()

    def let_in_who_waits(self):
        if not self.application.gives_way():
            super().let_in_who_waits()


def main(load, set_up_logging):
    """Read the job from standard input and do it.

    Args:
        load: callable(config, share) -> ServedModel; called only with a model path.
        set_up_logging: callable(config).

    Returns:
        Exit code: 0, or after a message as the command line gives it 1, 2 or BAD_WEIGHTS.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as SIGTERM, until _serve() waits for both
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the supervisor blocks it
    job = Job.decode(_read_line(sys.stdin.fileno()))
    faulthandler.enable(file=2, all_threads=True)  # the supervisor's ABRT asks where it hangs
    _continue_when_orphaned()
    try:
        if job.config.lock_down and sys.platform == "linux":
            seccomp.install(may_start=False)
        set_up_logging(job.config)
        lock_down(libraries())
        allocator.keep_little()
        return _fill_weights(job, load) if job.index is None else _serve(job, load)
    except MarlinError as error:
        print(f"metal-marlin: {error.message}", file=sys.stderr)
        if isinstance(error, SharedWeightsError):
            return BAD_WEIGHTS
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:  # raised again, unless the system's own refusal
        if (said := said_by_system(error)) is None:
            raise
        print(f"metal-marlin: {said}", file=sys.stderr)
        return 1


def _read_line(fd):
    """Read through a line feed and nothing more: the rest of the stream is for another to wait
    on."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 64 * 1024)
        if not piece:
            raise SystemExit(0)  # the supervisor ended meanwhile
        line += piece
    return line


def _fill_weights(job, load):
    """Load the whole model: what is wrong with it or its settings comes out once, here."""
    _when_orphaned(lambda: os._exit(0))
    model = load(job.config, job.share)
    check_threads(job.limits)  # as a worker needs them
    model.engine.close()
    return 0


def _serve(job, load):
    signals = StopSignals(reload_signals(job.config))
    _when_orphaned(signals.finish)
    row = WorkerTable(job.table_fd, job.config.workers).rows[job.index]
    model, limits = loaded(job.config, job.limits, lambda: load(job.config, job.share))
    audit = open_audit(job.config, model, job.index)
    if job.config.lock_down:
        forbid_writing([f"{job.config.audit_log}.{job.index}"])
    app = build_app(job.config, model, limits, row, job.created, audit)
    app.heartbeat()
    server = WorkerServer(inherited(job.listener_fds), app, limits)
    watch_engine(model, signals)
    begin_end = end_in_time(limits, time.sleep)  # for when the supervisor is gone
    # The supervisor ends a worker that hangs; one without a supervisor ends itself a little later.
    patient = replace(limits, hung_s=limits.hung_s + 5 * limits.abort_s)
    give_up = partial(leave_nobody_waiting, model, server, limits)
    start_beating(app, patient, finish=signals.finish, give_up=give_up)
    prepare(model)
    accept(server, app)
    _report_ready(job, model)
    _log.info("worker %d (process %d) serves", job.index, os.getpid())
    # One signal or many: the supervisor kills when there is to be no more waiting, and a service
    # manager may send the same signal to all processes of the service as the supervisor does.
    signum = wait_for_end(signals, app)
    begin_end()
    return stop(signum, model, server, limits, audit)


def _report_ready(job, model):
    # A supervisor that is gone needs no word; standard input tells of that.
    with suppress(BrokenPipeError), os.fdopen(job.ready_fd, "wb") as pipe:
        pipe.write((model.model_id if model else "").encode("utf-8") + b"\n")


def _continue_when_orphaned():
    """A worker that is stopped goes on when its supervisor dies, and so ends and frees the port.

    Source: PR_SET_PDEATHSIG in prctl(2); other systems have nothing like it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))


def _when_orphaned(act):
    """Call act() once the supervisor's end of standard input is closed, however it ended."""

    def watch():
        while os.read(0, 1024):
            pass
        act()

    threading.Thread(target=watch, name="supervisor", daemon=True).start()
