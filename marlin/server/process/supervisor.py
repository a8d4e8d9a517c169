"""`metal-marlin serve --workers N`: the process that owns the listening socket and looks after the
workers.

Loads no model and generates nothing: it starts processes, replaces those that end, and stops them.
While there is none it says so to whoever asks.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import closing

from marlin.config import API_KEY_VARIABLE
from marlin.errors import ModelFileError, SharedWeightsError
from marlin.files.sealed import SealedModel, nameless_file, seal
from marlin.files.snapshot import Snapshot
from marlin.server.api.app import NoWorker
from marlin.server.http.doors import filenos
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer
from marlin.server.observe.worker_table import WorkerTable
from marlin.server.process.lockdown import lock_down
from marlin.server.process.room import fitted
from marlin.server.process.serve import announce, listen, locked, reload_signals
from marlin.server.process.service_manager import ServiceManager
from marlin.server.process.signals import StopSignals
from marlin.server.process.watchdog import Patience
from marlin.server.process.worker import BAD_WEIGHTS, Job

_log = logging.getLogger("marlin.server")
# How often workers that run are looked at.
_LOOK_S = 0.5
# A worker maps and checks weights that one process, alone, has read and repacked: less work, but
# all workers may do it at once, with a share of the cores each, and beside requests.
_START_FACTOR = 2
_STOP = (signal.SIGTERM, signal.SIGINT)
# The worker imports what this process would import, from wherever it was started.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from {} import {} as main; sys.exit(main())"


def supervise(config, worker_main, limits=None, model=None):
    """Serve with config.workers processes until SIGTERM or SIGINT; call it from the main thread.

    Args:
        config: ServeConfig.
        worker_main: function without arguments that calls process.worker.main(); the workers import
            it by its module and name.
        limits: http.limits.Limits, or None for the standard ones.
        model: SealedModel that all workers read, or None where they read the files themselves.

    Returns:
        Exit code: 0 after the first signal, 128 and the signal's number after a second one; what
        the first process said, when the model cannot be loaded; 1 when a worker has to be replaced
        and the model's files, or the weights in memory, have changed.

    Raises:
        ConfigError: the address cannot be bound.
    """
    limits = limits or Limits()
    manager = ServiceManager(os.environ)
    config = locked(config, may_start=True)
    lock_down((), program=sys.executable)
    limits = fitted(limits, config.workers)
    with closing(listen(config, limits)) as listener:
        return Supervisor(config, worker_main, limits, listener, manager, model).run()


def _flags():
    """What keeps code of a user's, and writing, away from this interpreter does so for workers."""
    given = {"-I": sys.flags.isolated, "-B": sys.flags.dont_write_bytecode}
    return [flag for flag, is_given in given.items() if is_given]


class Backoff:
    """How long to wait before a worker that ended is replaced.

    Args:
        first_s, most_s: pauses begin with the one, double each time, and end at the other.
        reset_s: after a life of so long they begin anew.
    """

    def __init__(self, first_s, most_s, reset_s):
        self._first_s = first_s
        self._most_s = most_s
        self._reset_s = reset_s
        self._next_s = first_s

    def pause_s(self, lived_s):
        """The pause after a life of lived_s."""
        if lived_s >= self._reset_s:
            self._next_s = self._first_s
        pause_s = self._next_s
        self._next_s = min(self._most_s, 2 * pause_s)
        return pause_s


class _Worker:
    """One worker: its process, if one runs, and when the next may."""

    def __init__(self, index, backoff):
        self.index = index
        self.backoff = backoff
        self.process = None
        self.ready_fd = None
        self.started = 0.0
        self.patience = Patience(0.0)
        self.is_aborted = False
        self.due = 0.0

    def close_ready_pipe(self):
        if self.ready_fd is not None:
            os.close(self.ready_fd)
            self.ready_fd = None


class Supervisor:
    """Owns the processes.

    Args:
        config, worker_main, limits, model: as supervise()'s.
        listener: listening socket; closed when stopping begins.
        manager: ServiceManager.
        clock: seconds since a moment that all processes share.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        config,
        worker_main,
        limits,
        listener,
        manager,
        model: SealedModel | None = None,
        clock=time.monotonic,
        wall_clock=time.time,
    ):
        self._config = config
        self._manager = manager
        self._model = model
        self._program = _PROGRAM.format(worker_main.__module__, worker_main.__qualname__)
        self._limits = limits
        self._listener = listener
        self._no_worker_server = HttpServer(listener, NoWorker(config), limits)
        self._clock = clock
        self._created = int(wall_clock())
        self._weights_fd = nameless_file("metal-marlin-weights")
        self._table_fd = nameless_file("metal-marlin-workers")
        self._table = WorkerTable.create(self._table_fd, config.workers)
        self._workers = [
            _Worker(index, Backoff(limits.restart_s, limits.restart_max_s, limits.restart_reset_s))
            for index in range(config.workers)
        ]
        # Of a model that is read from files.
        self._model_files: Snapshot | None = None
        self._start_s = 0.0  # that a worker may need until its first sign of life
        self._announced = False
        self._listener.setblocking(False)  # one flag for all who have the socket
        self._kill_at = None  # while stopping: when the workers' time is over
        self._signals = StopSignals((signal.SIGCHLD, *reload_signals(config)))

    def run(self):
        """Start the workers and look after them; returns the exit code."""
        if self._config.model_path and not self._config.mock_model and self._model is None:
            self._model_files = Snapshot(self._config.model_path)
        if self._config.model_path:
            began = self._clock()
            code = self._fill_weights()
            if code is not None:
                return code
            load_s = self._clock() - began
            self._start_s = _START_FACTOR * self._config.workers * load_s
        while True:
            now = self._clock()
            self._manager.alive()
            try:
                for worker in self._workers:
                    self._manage(worker, now)
            except (ModelFileError, SharedWeightsError) as error:
                _log.critical("no worker can be replaced: %s", error.message)
                self._kill()
                return 1
            if self._kill_at is not None and not self._processes():
                return 0
            signum = self._wait(now)
            if signum in _STOP and self._kill_at is not None:
                self._kill()
                return 128 + signum
            if signum in _STOP:
                self._begin_stopping()
            elif signum == signal.SIGHUP:
                self._pass_on(signum)

    def _pass_on(self, signum):
        """To workers that serve; others are not ready for it, and read all anew as they begin."""
        for worker in self._workers:
            if worker.process is not None and worker.ready_fd is None:
                worker.process.send_signal(signum)

    def _processes(self):
        return [worker.process for worker in self._workers if worker.process is not None]

    def _fill_weights(self):
        """Have the shared weights written; returns an exit code when that is the end of it."""
        try:
            process, ready_fd = self._spawn(None)
        except OSError as error:
            _log.error("no process can be started to load the model: %s", error.strerror)
            return 1
        os.close(ready_fd)
        with process.stdin:
            while process.poll() is None:
                if self._signals.wait() in _STOP:
                    process.kill()
                    process.wait()
                    return 0
        if process.returncode < 0:
            _log.error("loading the model was ended by signal %d", -process.returncode)
            return 1
        if process.returncode:
            return process.returncode
        seal(self._weights_fd)
        return None

    def _spawn(self, index):
        """Start a process; returns (Popen, the end to read of its pipe that says when it is ready).

        Raises:
            OSError: the system has no room for it.
        """
        ready_fd, writer = os.pipe()
        job = Job(
            config=self._config,
            limits=self._limits,
            index=index,
            created=self._created,
            listener_fds=filenos(self._listener),
            table_fd=self._table_fd,
            weights_fd=self._weights_fd,
            ready_fd=writer,
            model=self._model,
        )
        # Nor is a worker interrupted before it is ready for that, which would be a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(
                [sys.executable, *_flags(), "-c", self._program, *sys.path],
                bufsize=0,
                stdin=subprocess.PIPE,
                pass_fds=(*job.listener_fds, job.table_fd, job.weights_fd, writer, *job.model_fds),
                # The key is in the job; an environment can be read for as long as a process lives.
                env={name: v for name, v in os.environ.items() if name != API_KEY_VARIABLE},
                # Ctrl-C on a terminal goes to this process alone, which passes it on.
                start_new_session=True,
            )
        except OSError:
            os.close(ready_fd)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.close(writer)
        assert process.stdin is not None, "a pipe was asked for"
        try:
            process.stdin.write(job.encode())
        except BrokenPipeError:
            _log.debug("process %d ended before it had read its settings", process.pid)
        return process, ready_fd

    def _manage(self, worker, now):
        """Take note of a worker's end, replace it when it is time, kill it when its time is
        over."""
        process = worker.process
        if process is not None and process.poll() is not None:
            self._reap(worker, now)
        if self._kill_at is None:
            if worker.process is None and now >= worker.due:
                self._check_files()
                self._start(worker, now)
            elif worker.process is not None:
                self._end_if_hung(worker, now)
        elif worker.process is not None and now >= self._kill_at:
            _log.warning("worker %d did not end in time and is killed", worker.index)
            worker.process.kill()
            worker.process.wait()
            self._reap(worker, now)

    def _end_if_hung(self, worker, now):
        """First by a signal that has it say where it hangs, then by one that nothing resists."""
        row = self._table.rows[worker.index]
        silent_s = row.silent_s(now, worker.started, self._start_s)
        hung_s = worker.patience.look(silent_s, now)
        if hung_s >= self._limits.hung_s and not worker.is_aborted:
            worker.is_aborted = True
            what = f"worker {worker.index} (process {worker.process.pid})"
            _log.error("%s hangs: nothing was heard of it for %g s", what, hung_s)
            worker.process.send_signal(signal.SIGABRT)
        elif hung_s >= self._limits.hung_s + self._limits.abort_s:
            worker.process.kill()

    def _check_files(self):
        """The shared weights are of the files that were there; a worker reads the rest again."""
        if self._model_files is not None:
            self._model_files.check_same()

    def _start(self, worker, now):
        """Start a worker; where the system has no room for a process now, it is tried again."""
        try:
            worker.process, worker.ready_fd = self._spawn(worker.index)
            worker.started = now
            worker.patience, worker.is_aborted = Patience(now), False
        except OSError as error:
            pause_s = worker.backoff.pause_s(0.0)
            worker.due = now + pause_s
            what = f"worker {worker.index} cannot be started ({error.strerror})"
            _log.error("%s; tried again in %g s", what, pause_s)

    def _reap(self, worker, now):
        code, pid = worker.process.returncode, worker.process.pid
        worker.process.stdin.close()
        worker.close_ready_pipe()
        worker.process = None
        self._table.rows[worker.index].vacate(now)
        if self._kill_at is not None:
            return
        if code == BAD_WEIGHTS:
            raise SharedWeightsError("the shared weights have to be made anew")
        pause_s = worker.backoff.pause_s(now - worker.started)
        worker.due = now + pause_s
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        _log.error("worker %d (process %d) %s; replaced in %g s", worker.index, pid, how, pause_s)

    def _wait(self, now):
        """Wait for a signal or for something to do; returns the signal's number, or None."""
        if self._kill_at is not None:
            due = [self._kill_at]
        else:
            due = [worker.due for worker in self._workers if worker.process is None]
            due += [now + _LOOK_S] if self._processes() else []
        due += [] if self._manager.interval_s is None else [now + self._manager.interval_s]
        pipes = {worker.ready_fd: worker for worker in self._workers if worker.ready_fd is not None}
        timeout_s = max(0.0, min(due) - now) if due else None
        alone = self._kill_at is None and not self._processes()
        watched = [self._signals, *pipes, *([self._listener] if alone else [])]
        readable, _, _ = select.select(watched, [], [], timeout_s)
        for fd in readable:
            if fd is self._listener:
                self._no_worker_server.handle_request()
            elif fd is not self._signals:
                self._hear(pipes[fd])
        return self._signals.wait() if self._signals in readable else None

    def _hear(self, worker):
        """A worker is ready, or ended before it was."""
        line = os.read(worker.ready_fd, 64 * 1024)
        worker.close_ready_pipe()
        if line and not self._announced and self._kill_at is None:
            self._announced = True
            announce(
                self._config,
                line.decode("utf-8").rstrip("\n") or None,
                self._listener,
                self._limits,
            )
            self._manager.ready()

    def _begin_stopping(self):
        _log.info("stopping: waiting up to %g s for requests in flight", self._limits.drain_s)
        self._no_worker_server.server_close()
        self._kill_at = self._clock() + self._limits.drain_s + self._limits.stop_s
        for process in self._processes():
            process.terminate()

    def _kill(self):
        for process in self._processes():
            process.kill()
        for process in self._processes():
            process.wait()
