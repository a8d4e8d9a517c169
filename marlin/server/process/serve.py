"""`metal-marlin serve`: from settings to a listening server, and down again on a signal.

The only place that wires listener, app and engine together; it answers no request itself.
"""

import errno
import gc
import ipaddress
import logging
import os
import signal
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import partial

from marlin import __version__
from marlin.config import DEVICE_KINDS
from marlin.device.library import library_path
from marlin.engine.gate import SlotGate
from marlin.errors import ConfigError, MarlinError, StoppingError
from marlin.server.api.app import App
from marlin.server.api.browsers import Browsers
from marlin.server.api.endpoints import Endpoints
from marlin.server.api.keys import Guesses, Keys
from marlin.server.api.model_names import served_as
from marlin.server.api.quotas import Quotas
from marlin.server.api.routes import Router, capabilities
from marlin.server.http import allocator
from marlin.server.http.doors import Doors
from marlin.server.http.limits import Limits
from marlin.server.http.listener import HttpServer, open_listener
from marlin.server.http.unix_socket import UnixListener
from marlin.server.observe.audit import AuditLog, read_key
from marlin.server.observe.health import Failures, Health, Shortages
from marlin.server.observe.logs import writer_ended
from marlin.server.observe.metrics import Metrics
from marlin.server.observe.metrics_page import MetricsPage
from marlin.server.process import requirements, seccomp
from marlin.server.process.lockdown import forbid_writing, lock_down
from marlin.server.process.room import check_threads, fitted
from marlin.server.process.service_manager import ServiceManager
from marlin.server.process.signals import StopSignals
from marlin.server.process.watchdog import start_beating
from marlin.streams import say

_log = logging.getLogger("marlin.server")


def serve(config, load, limits=None):
    """Serve until SIGTERM or SIGINT; call it from the main thread.

    The socket listens before the model loads: a taken port is found at once, and a client that
    connects meanwhile waits in the backlog instead of being refused.

    Args:
        config: ServeConfig.
        load: callable(config) -> ServedModel; called only when there is a model path.
        limits: http.limits.Limits, or None for the standard ones.

    Returns:
        Exit code: 0, also when the grace period cut requests off; 1 when the engine ended by
        itself or a part of the process fails for good, which ends the server as a signal does.

    Raises:
        ConfigError: the address cannot be bound.
        MarlinError: what `load` raises.
    """
    limits = limits or Limits()
    manager = ServiceManager(os.environ)
    config = locked(config, may_start=False)
    lock_down(libraries())
    allocator.keep_little()
    limits = fitted(limits)
    with closing(listen(config, limits)) as listener:
        return _serve(config, limits, load, listener, manager)


def _serve(config, limits, load, listener, manager):
    model, limits = loaded(config, limits, lambda: load(config))
    audit = open_audit(config, model)
    if config.lock_down:
        forbid_writing([config.audit_log])
    app = build_app(config, model, limits, audit=audit)
    server = HttpServer(listener, app, limits)
    signals = StopSignals(reload_signals(config))
    watch_engine(model, signals)
    begin_end = end_in_time(limits, signals.wait_for)
    give_up = partial(leave_nobody_waiting, model, server, limits)
    start_beating(app, limits, manager.alive, signals.finish, give_up)
    prepare(model)
    accept(server, app)
    announce(config, model and model.model_id, listener, limits)
    manager.ready()
    signum = wait_for_end(signals, app)
    _log.info("stopping: waiting up to %g s for requests in flight", limits.drain_s)
    begin_end()
    return stop(signum, model, server, limits, audit)


def reload_signals(config):
    """Signals that a server does not end by: SIGHUP reads a key file again."""
    return (signal.SIGHUP,) if config.key_file is not None else ()


def wait_for_end(signals, app):
    """The number of the signal that ends a server, or 0; those of reload_signals() do not."""
    while (signum := signals.wait()) == signal.SIGHUP:
        app.read_keys_again()
    return signum


def loaded(config, limits, load):
    """The model of a process, if its settings name one, and the limits of a server for it.

    Whatever is there afterwards stays as long as the process. So what loading left free is given
    back, and the collector, which whoever starts a process may have stopped until now, begins with
    what comes after.
    """
    model = load() if config.model_path else None
    allocator.trim()
    gc.freeze()
    gc.enable()
    if model is not None:
        takes_many = model.new_pooler is not None
        limits = limits.for_context(model.engine.max_context_tokens, takes_many)
    return model, limits


def locked(config, may_start):
    """The settings of a server, locked down if they say so; call it while this is the only thread.

    Raises:
        ConfigError: it cannot be.
    """
    if not config.lock_down:
        return config
    requirements.check(config)
    if sys.platform == "linux":
        seccomp.install(may_start)
    return replace(config, unknown_parameters="strict")


def open_audit(config, model, index=None):
    """The AuditLog that the settings ask for, or None.

    Args:
        model: ServedModel or None.
        index: of a worker among several, each of which has a log of its own.
    """
    if config.audit_log is None and config.audit_key_file is None:
        return None
    if config.audit_log is None or config.audit_key_file is None:
        raise ConfigError("--audit-log and --audit-key-file go together")
    facts = {
        "version": __version__,
        "model": model and model.model_id,
        "manifest": (model and model.manifest_digest) or None,
    }
    path = config.audit_log if index is None else f"{config.audit_log}.{index}"
    syncs = config.audit_sync == "disk"
    log = AuditLog(path, read_key(config.audit_key_file), facts, config.audit_content, syncs)
    _log.info("audit log %s goes on behind record %s", path, log.head)
    return log


def build_app(config, model, limits, row=None, created=None, audit=None):
    """The application of a server, from its settings.

    Args:
        model: ServedModel, or None for none.
        row: observe.worker_table.WorkerRow of one worker process among several; None for the only
            process.
        created: when the server was started, seconds since the epoch; None is now.
        audit: AuditLog or None.
    """
    num_slots = config.max_concurrent_requests
    gate = SlotGate(num_slots, limits.queue_factor * num_slots, limits.poll_s)
    if row is None:
        metrics, snapshots = Metrics(), None
        cells = [metrics.cells]
    else:
        metrics, cells = Metrics(row.metrics), [each.metrics for each in row.table.rows]

        def snapshots():
            return row.table.snapshots(time.monotonic())

    keys = Keys(config.api_key, config.key_file)
    guesses = Guesses(limits.wrong_key_s, min(limits.num_wrong_keys, limits.num_connections // 4))
    router = Router(config)
    failures = Failures(limits.num_failures, limits.failing_s)
    shortages = Shortages(limits.scarce_s)
    health = Health(
        *(model, limits.stuck_s, row),
        slow_s=limits.slow_s,
        parts=(*parts(model, failures), shortages.threads),
        shortages=shortages,
        outside=() if audit is None else (audit.failing,),
    )
    page = MetricsPage(metrics, model, gate, router.labels, snapshots, lambda: keys.names)
    created = int(time.time()) if created is None else created
    limits = replace(
        limits,
        num_choices=min(limits.num_choices, config.max_choices),
        num_call_choices=config.max_choices,
        num_output_tokens=config.max_output_tokens,
    )
    endpoints = Endpoints(
        *(model, created, config, gate, limits, health, page),
        capabilities={} if model is None else capabilities(model),
        audit=audit,
    )
    browsers = Browsers(keys.are_asked_for, config.allowed_hosts, config.allowed_origins)
    told = failures, shortages, browsers
    return App(router, endpoints, metrics, keys, guesses, *told, Quotas(metrics, cells))


def parts(model, failures):
    """What observe.health.Health looks at beside the engine."""

    def tokenizing():
        # Never behind a text that it may not come to an end with: waited_s() tells of that.
        if model is not None and not model.tokenizing_s():
            model.tokenizer.encode("a")

    reading = () if model is None else (model.reader.failing,)
    return tokenizing, writer_ended, failures.check, *reading


def end_in_time(limits, wait_for):
    """A function that begins the grace period, after which this process ends, whatever hangs.

    Its thread is there before it is needed, when there may be none to be had.

    Args:
        wait_for: callable(seconds) that waits so long, or returns the number of a signal that ends
            the process at once.
    """
    begun = threading.Event()

    def watch():
        begun.wait()
        signum = wait_for(limits.drain_s + limits.stop_s)
        if signum:
            os._exit(128 + signum)
        _log.critical("this process did not end in time, and is ended")
        logging.shutdown()
        os._exit(1)

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    return begun.set


def accept(server, app):
    """Let connections in from now on, on a thread of its own. Call it last: what had no room for
    its thread before is not announced."""
    check_threads(server.limits)
    threading.Thread(target=server.serve_forever, name="accept", daemon=True).start()
    app.depends_on(lambda: None if server.draining else server.hangs())


def watch_engine(model, signals):
    """When the engine ends by itself, log why and let signals.wait() return.

    A GPU that failed can be lost to the process for good: only a new one can serve again.

    Args:
        model: ServedModel or None.
        signals: StopSignals.
    """

    def watch():
        error = model.engine.wait_for_end()
        if error is not None:
            what = error.message if isinstance(error, MarlinError) else repr(error)
            _log.critical("the engine has ended, and this process ends with it: %s", what)
            signals.finish()

    if model is not None:
        threading.Thread(target=watch, name="engine watch", daemon=True).start()


def prepare(model):
    """Have the model make what only some requests need, while others are answered.

    Args:
        model: ServedModel or None.
    """
    if model is not None:
        threading.Thread(target=model.engine.prepare, name="prepare", daemon=True).start()


def leave_nobody_waiting(model, server, limits):
    """The engine hangs, and this process ends: everybody who waits hears of that."""
    server.close_door()
    if model is not None:
        model.engine.abandon(StoppingError("the engine hangs, and this process ends"))
    server.wait_idle(limits.linger_s)


def stop(signum, model, server, limits, audit=None):
    """Let requests in flight finish, free the engine of a ServedModel, or None, and close the
    AuditLog, or None.

    Args:
        signum: the signal that asked for it; 0 when something of this process had failed.

    Returns:
        The exit code.
    """
    if not server.drain(limits.drain_s):
        _log.warning("requests still running after %g s were cut off", limits.drain_s)
    # A device that failed might hang when it is closed; the process's end frees it.
    has_failed = model is not None and not model.engine.alive
    if model is not None and not has_failed:
        model.close()
        server.wait_idle(limits.linger_s)  # requests that this cut off get to say so
    if audit is not None:
        audit.close()
        _log.info("audit log closed with record %s", audit.head)
    return 0 if signum and not has_failed else 1


def libraries():
    """The native libraries that a serving process may load."""
    return [library_path(kind) for kind in DEVICE_KINDS]


def listen(config, limits):
    """The listening socket, or Doors of two. Raises ConfigError when an address cannot be bound."""
    if config.uds is None:
        if config.uds_beside_tcp:
            raise ConfigError("--uds-beside-tcp is of a Unix socket, and there is none: add --uds")
        return _listen_tcp(config, limits)
    owner = config.uds_owner or (-1, -1)
    unix = UnixListener(config.uds, int(config.uds_mode, 8), owner, limits.backlog)
    if not config.uds_beside_tcp:
        return unix
    try:
        return Doors([_listen_tcp(config, limits), unix])
    except ConfigError:
        unix.close()
        raise


def _listen_tcp(config, limits):
    try:
        return open_listener(config.host, config.port, limits.backlog)
    except OSError as error:
        hint = "; --port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror or error}{hint}"
        ) from None


def announce(config, model_id, listener, limits):
    """Say on standard output what is served where; model_id: None for nothing."""
    name = listener.getsockname()
    is_unix = isinstance(name, str)
    where = f"unix:{config.uds}" if is_unix else _url(name[0], name[1])
    what = "no model loaded (every request gets 503; MODEL_PATH is missing)"
    if model_id:
        what = "serving " + ", ".join(served_as(config.served_names, model_id).names)
    say(f"metal-marlin {__version__}: {what} at {where}")
    _log.info("up to %d connections at once in each process", limits.num_connections)
    if config.uds is not None:
        if not is_unix:
            say(f"on this machine: unix:{config.uds}")
        if not config.has_keys and int(config.uds_mode, 8) & 0o002:
            _log.warning("every user of this machine can use %s without a key", config.uds)
    if is_unix:
        return
    host, port = name[:2]
    if ipaddress.ip_address(host).is_unspecified:
        say(f"on this machine: {_url('::1' if ':' in host else '127.0.0.1', port)}")
    if not config.has_keys and not ipaddress.ip_address(host).is_loopback:
        _log.warning(
            "listening on %s without METAL_MARLIN_API_KEY: anyone who reaches it can use it", host
        )


def _url(host, port):
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
