"""What the server counts about itself, in one flat array of float64.

A worker process records into its own array, which may lie in shared memory; total() adds the arrays
of all workers up. Only counting: which format is asked for, and by whom, is the affair of
observe/metrics_page.py. The order of the cells is the order of FAMILIES and means nothing outside
of one run.
"""

import os
import resource
import sys
import threading
import time
from array import array
from bisect import bisect_left
from contextlib import closing, contextmanager
from typing import NamedTuple

_PREFIX = "metal_marlin_"
# Endpoints that are told apart: their labels are whoever counts them's to know. The last one is for
# all others, so that what clients make up does not become a new series.
NUM_ENDPOINTS = 24
OTHER_ENDPOINT = NUM_ENDPOINTS - 1
DISCONNECTED = "disconnected"
STATUSES = (
    *("200", "204", "400", "401", "403", "404", "405", "408", "411", "413", "414", "415"),
    *("422", "429", "431"),
    *("500", "501", "503", "504", "505", DISCONNECTED, "other"),
)
_STATUS_INDEX = {status: index for index, status in enumerate(STATUSES)}
# Seconds. A short prompt on a fast device is some ms, a full context on a slow one minutes.
_FIRST_TOKEN_BOUNDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
# From 2,000 tokens a second to a stall that a reader takes for a hang.
_BETWEEN_BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
_DURATION_BOUNDS = (
    *(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class Family(NamedTuple):
    """One metric and its cells.

    Attributes:
        name: with prefix and unit.
        kind: "counter", "gauge" or "histogram", as Prometheus has them.
        help: one sentence.
        start, num_cells: its cells. A histogram has one for each bound, one above the last bound,
            and the sum; buckets hold their own observations only, not those below them.
        labels: label names; cells run through their values, the last label fastest.
        bounds: upper bounds of a histogram's buckets, seconds.
        merge: sum, or max, over the workers.
    """

    name: str
    kind: str
    help: str
    start: int
    num_cells: int = 1
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    merge: object = sum

    @property
    def stop(self):
        return self.start + self.num_cells


def _lay_out(*rows):
    families = {}
    start = 0
    for name, kind, text, *rest in rows:
        family = Family(_PREFIX + name, kind, text, start, **(rest[0] if rest else {}))
        families[name] = family
        start = family.stop
    return families


def _histogram(bounds):
    return {"num_cells": len(bounds) + 2, "bounds": bounds}


# Keys of a key file: each has a number and so a series of its own.
NUM_KEYS = 64
_BY_KEY = {"num_cells": NUM_KEYS, "labels": ("key",)}
_BY_OUTCOME = {"num_cells": NUM_ENDPOINTS * len(STATUSES), "labels": ("endpoint", "status")}

FAMILIES = _lay_out(
    ("http_requests_total", "counter", "HTTP requests by endpoint and outcome.", _BY_OUTCOME),
    ("key_requests_total", "counter", "Requests by the named key that came with them.", _BY_KEY),
    ("key_tokens_total", "counter", "Prompt and output tokens by named key.", _BY_KEY),
    ("generation_requests_total", "counter", "Generation requests whose body arrived."),
    ("requests_in_flight", "gauge", "Generation requests being answered or waiting."),
    ("requests_queued", "gauge", "Generation requests waiting for a slot or for the engine."),
    ("prompt_tokens_total", "counter", "Prompt tokens given to the engine."),
    ("cached_prompt_tokens_total", "counter", "Prompt tokens whose KV was reused."),
    ("generated_tokens_total", "counter", "Output tokens."),
    ("draft_tokens_total", "counter", "Tokens guessed by speculation and computed."),
    ("accepted_draft_tokens_total", "counter", "Guessed tokens that became output."),
    ("preemptions_total", "counter", "Times that a sequence was put back, to be computed anew."),
    ("kv_beyond_tokens_total", "counter", "Tokens with a key or value beyond the KV cache."),
    ("log_lines_lost_total", "counter", "Log lines that could not be written in time or at all."),
    ("busy_seconds_total", "counter", "Time in which a worker had a generation request."),
    (
        "time_to_first_token_seconds",
        "histogram",
        "From a request's last byte to its first text.",
        _histogram(_FIRST_TOKEN_BOUNDS),
    ),
    (
        "inter_token_latency_seconds",
        "histogram",
        "Time between output tokens after the first text.",
        _histogram(_BETWEEN_BOUNDS),
    ),
    (
        "request_duration_seconds",
        "histogram",
        "From a generation request's last byte to the end of its whole answer.",
        _histogram(_DURATION_BOUNDS),
    ),
    ("kv_blocks", "gauge", "KV cache blocks."),
    ("kv_blocks_free", "gauge", "KV cache blocks that no request holds."),
    ("kv_window_blocks", "gauge", "KV cache blocks of windows that give blocks back."),
    ("kv_window_blocks_free", "gauge", "Those that no request holds."),
    ("kv_bytes", "gauge", "Size of the KV cache in bytes."),
    ("private_memory_bytes", "gauge", "Resident memory that a worker shares with no other."),
    (
        "shared_memory_bytes",
        "gauge",
        "Resident memory backed by files or shared between workers; the largest worker's.",
        {"merge": max},
    ),
    ("gpu_memory_bytes", "gauge", "Memory held on a GPU; 0 on the CPU device."),
    ("workers", "gauge", "Worker processes that are up."),
    # On the clock of all processes of the machine; counts only while requests are in flight.
    ("busy_since", "hidden", "When the requests in flight began to be more than none."),
    # Of each named key, for its limits over all processes (api/quotas.py).
    ("key_requests_in_hand", "hidden", "Requests that are limited in number.", _BY_KEY),
    ("key_tokens_of_minute", "hidden", "Tokens that count as had lately.", _BY_KEY),
    ("key_tokens_of_minute_at", "hidden", "When that was so.", _BY_KEY),
    ("key_of_minute", "hidden", "Whose they were: a number of 48 bits made of its name.", _BY_KEY),
)
NUM_CELLS = max(family.stop for family in FAMILIES.values())
_CELL = {name: family.start for name, family in FAMILIES.items()}
_IN_FLIGHT, _BUSY_SINCE = _CELL["requests_in_flight"], _CELL["busy_since"]
_BUSY = _CELL["busy_seconds_total"]


class Metrics:
    """Records what one process does; every method may be called from any thread.

    Args:
        storage: writable memoryview of float64 [NUM_CELLS], this process's alone to write; None
            makes one. Counters in it go on from where an earlier process left them; gauges start
            at 0.
        clock: monotonic seconds, the same in all processes of the machine.
    """

    def __init__(self, storage=None, clock=time.monotonic):
        self._cells = array("d", bytes(8 * NUM_CELLS)) if storage is None else storage
        self._clock = clock
        # One lock: it is held for less than a microsecond, and no wait happens under it.
        self._lock = threading.Lock()
        self._watched = []
        clear_gauges(self._cells)
        self._cells[_CELL["workers"]] = 1.0

    def record(self):
        """The RequestRecord of a new request."""
        return RequestRecord(self, self._clock)

    def answered(self, endpoint, status):
        """Count an HTTP request.

        Args:
            endpoint: index of it, OTHER_ENDPOINT for what has none.
            status: HTTP status (int), or DISCONNECTED.
        """
        known = _STATUS_INDEX.get(str(status), len(STATUSES) - 1)
        cell = endpoint * len(STATUSES) + known
        with self._lock:
            self._cells[cell] += 1.0

    def used_by_key(self, number: int, num_tokens: int) -> None:
        """Count a request, and its tokens, of the key that has this number."""
        counts = ("key_requests_total", 1), ("key_tokens_total", num_tokens)
        with self._lock:
            for name, count in counts:
                self._cells[FAMILIES[name].start + number] += count

    def hold_for_key(self, number: int, change: int) -> None:
        """A limited request of this key begins, or below 0 ends."""
        with self._lock:
            self._cells[FAMILIES["key_requests_in_hand"].start + number] += change

    def publish_level(self, number: int, level: float, now: float, whose: float) -> None:
        """What this key has had of its minute, as this process knows it."""
        with self._lock:
            self._cells[FAMILIES["key_of_minute"].start + number] = whose
            self._cells[FAMILIES["key_tokens_of_minute"].start + number] = level
            self._cells[FAMILIES["key_tokens_of_minute_at"].start + number] = now

    @property
    def cells(self):
        """float64 [NUM_CELLS], as they go on; to read."""
        return self._cells

    def add(self, **counts):
        """Add to counters by their names in FAMILIES."""
        with self._lock:
            for name, count in counts.items():
                self._cells[_CELL[name]] += count

    def set_gauges(self, **values):
        """Set gauges by their names in FAMILIES."""
        with self._lock:
            for name, value in values.items():
                self._cells[_CELL[name]] = value

    def observe(self, name, seconds, count=1):
        """Add `count` observations, `seconds` in all and alike, to the histogram FAMILIES[name]."""
        family = FAMILIES[name]
        cell = family.start + bisect_left(family.bounds, seconds / count)
        with self._lock:
            self._cells[cell] += count
            self._cells[family.stop - 1] += seconds

    def watch(self, requests):
        """These engine requests of one API request are in the engine, until forget()."""
        with self._lock:
            self._watched.append(requests)

    def forget(self, requests):
        with self._lock:
            self._watched.remove(requests)

    @property
    def num_unbegun(self):
        """API requests in the engine of whose sequences none has been in a step."""
        with self._lock:
            watched = list(self._watched)
        return sum(not any(request.has_begun for request in requests) for requests in watched)

    def begin_request(self):
        with self._lock:
            cells = self._cells
            cells[_CELL["generation_requests_total"]] += 1.0
            if cells[_IN_FLIGHT] == 0:
                cells[_BUSY_SINCE] = self._clock()
            cells[_IN_FLIGHT] += 1.0

    def end_request(self):
        with self._lock:
            cells = self._cells
            cells[_IN_FLIGHT] -= 1.0
            if cells[_IN_FLIGHT] == 0:
                cells[_BUSY] += self._clock() - cells[_BUSY_SINCE]

    def snapshot(self):
        """A copy of the cells, busy time brought up to now; array of float64 [NUM_CELLS]."""
        with self._lock:
            return read_snapshot(self._cells, self._clock())


class RequestRecord:
    """One HTTP request, and what it generates.

    Attributes:
        outcome: what became of it when its status does not tell: DISCONNECTED, or the status of
            an error in a stream; else None.
        is_generation: it asked for a generation, and its body arrived.
        num_prompt_tokens, num_cached_tokens, num_output_tokens: so far, over all its sequences.
    """

    def __init__(self, metrics, clock):
        self._metrics = metrics
        self._clock = clock
        self._began = clock()
        self.outcome = None
        self.is_generation = False
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_output_tokens = 0

    @contextmanager
    def generating(self):
        """It is an active generation request, timed from now, for the length of a `with` block."""
        self._began = self._clock()
        self.is_generation = True
        self._metrics.begin_request()
        try:
            yield
            self._metrics.observe("request_duration_seconds", self._clock() - self._began)
        finally:
            self._metrics.end_request()

    @contextmanager
    def in_engine(self, requests):
        """These engine.request.Requests are in the engine for the length of a `with` block."""
        self._metrics.watch(requests)
        self.num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self._metrics.add(prompt_tokens_total=self.num_prompt_tokens)
        try:
            yield
        finally:
            self._metrics.forget(requests)
            for request in requests:
                self.num_cached_tokens += request.num_cached_tokens
                self._metrics.add(
                    cached_prompt_tokens_total=request.num_cached_tokens,
                    preemptions_total=request.num_preemptions,
                    kv_beyond_tokens_total=request.num_beyond_tokens,
                    draft_tokens_total=request.num_draft_tokens,
                    accepted_draft_tokens_total=request.num_accepted_draft_tokens,
                )

    def watch(self, streams, deltas):
        """Pass the deltas of a request's sequences on, counting their tokens and timing them.

        Args:
            streams: engine.stream.TextStreams, all submitted.
            deltas: engine.stream.merged(streams), waiting or not; closed when this is.
        """
        last_times = [None] * len(streams)
        with self.in_engine([stream.request for stream in streams]), closing(deltas):
            for index, delta in deltas:
                if delta is not None and delta.num_tokens:
                    last_times[index] = self._count(delta.num_tokens, last_times[index])
                yield index, delta

    def _count(self, num_tokens, last):
        """Count tokens that have come; `last`: when those before came. Returns the time."""
        now = self._clock()
        if not self.num_output_tokens:
            self._metrics.observe("time_to_first_token_seconds", now - self._began)
        self.num_output_tokens += num_tokens
        self._metrics.add(generated_tokens_total=num_tokens)
        if last is not None:
            # Tokens that came at once share the time since those before evenly.
            self._metrics.observe("inter_token_latency_seconds", now - last, num_tokens)
        return now


def clear_gauges(cells):
    """Zero every gauge: its process is gone, or about to begin."""
    for family in FAMILIES.values():
        if family.kind in ("gauge", "hidden"):
            for cell in range(family.start, family.stop):
                cells[cell] = 0.0


def read_snapshot(cells, now):
    """A copy of some process's cells, busy time brought up to `now` (time.monotonic()).

    Read without that process's lock: each number is whole, but one may be an event ahead of
    another.
    """
    copy = array("d", cells[:NUM_CELLS])
    if copy[_IN_FLIGHT] > 0:
        copy[_BUSY] += max(0.0, now - copy[_BUSY_SINCE])
    return copy


def total(snapshots):
    """Cells of all workers together; list of float [NUM_CELLS]."""
    merged = [0.0] * NUM_CELLS
    for family in FAMILIES.values():
        for cell in range(family.start, family.stop):
            merged[cell] = family.merge(snapshot[cell] for snapshot in snapshots)
    return merged


class ProcessMemory:
    """Resident memory of this process: now on Linux, its peak elsewhere.

    What it reads stays open: there may be no descriptor left when it is asked for. Source: statm in
    proc(5); its third number counts file-backed and shared pages.
    """

    def __init__(self):
        self._statm = open("/proc/self/statm", "rb") if sys.platform == "linux" else None

    def gauges(self):
        """As Metrics.set_gauges() takes them."""
        if self._statm is None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return {"private_memory_bytes": peak, "shared_memory_bytes": 0}
        fields = os.pread(self._statm.fileno(), 256, 0).split()
        resident, shared = int(fields[1]), int(fields[2])
        page = resource.getpagesize()
        return {
            "private_memory_bytes": max(0, resident - shared) * page,
            "shared_memory_bytes": shared * page,
        }
