"""What /metrics answers: numbers of all workers, in the format that the client asks for.

Counting is in observe/metrics.py, the text formats in observe/prometheus.py.
"""

import json
import platform
from types import SimpleNamespace

from marlin import __version__
from marlin.engine.interface import EngineStats
from marlin.server.observe import prometheus
from marlin.server.observe.accept import preferred
from marlin.server.observe.logs import take_lost
from marlin.server.observe.metrics import FAMILIES, ProcessMemory, total

_MB = 1024 * 1024
# In the order in which they win a tie: curl's */* gets the JSON that the documentation shows.
_JSON_TYPE = "application/json"
_OFFERS = (_JSON_TYPE, prometheus.TEXT_TYPE, prometheus.OPENMETRICS_TYPE)


class MetricsPage:
    """Renders the metrics.

    Args:
        metrics: this process's observe.metrics.Metrics.
        model: engine.served_model.ServedModel, or None.
        gate: engine.gate.SlotGate.
        endpoints: their labels, by the indices under which they are counted.
        key_names: callable giving {number: name} of named keys.
        snapshots: callable giving one array of cells for each worker; None when this process is
            the only one.
    """

    def __init__(self, metrics, model, gate, endpoints, snapshots=None, key_names=dict):
        self._metrics = metrics
        self._model = model
        self._gate = gate
        self._memory = ProcessMemory()
        self._key_names = key_names
        self._endpoints = endpoints
        self._snapshots = snapshots or (lambda: [metrics.snapshot()])

    def refresh(self):
        """Bring what is not counted where it happens up to date; others see what was last set."""
        self._metrics.add(log_lines_lost_total=take_lost())
        model = self._model
        stats = EngineStats(0, 0) if model is None else model.engine.stats()
        self._metrics.set_gauges(
            requests_queued=self._gate.num_waiting + self._metrics.num_unbegun,
            kv_blocks=stats.num_kv_blocks,
            kv_blocks_free=stats.num_free_kv_blocks,
            kv_window_blocks=stats.num_window_blocks,
            kv_window_blocks_free=stats.num_free_window_blocks,
            kv_bytes=stats.kv_bytes,
            gpu_memory_bytes=stats.gpu_memory_bytes,
            **self._memory.gauges(),
        )

    def answer(self, accept):
        """Returns (bytes, content type).

        accept: value of the Accept field, or None without one.
        """
        self.refresh()
        snapshots = self._snapshots()
        kind = preferred(accept, _OFFERS)
        if kind == _JSON_TYPE:
            return json.dumps(json_body(snapshots), separators=(",", ":")).encode("ascii"), kind
        openmetrics = kind == prometheus.OPENMETRICS_TYPE
        model = None if self._model is None else {"model": self._model.model_id}
        build = {"version": __version__, "python": platform.python_version()}
        labels = self._endpoints, model, build
        named = {"openmetrics": openmetrics, "key_names": self._key_names()}
        return prometheus.render(snapshots, *labels, **named), kind


def json_body(snapshots):
    """The JSON answer, of all workers together.

    avg_tokens_per_second is over the time in which a worker had a generation request, so that an
    idle night does not lower it; several workers' times add up.
    """
    cells = total(snapshots)
    values = SimpleNamespace(**{name: cells[family.start] for name, family in FAMILIES.items()})
    busy_s = values.busy_seconds_total
    rate = values.generated_tokens_total / busy_s if busy_s > 0 else 0.0
    return {
        "requests_total": int(values.generation_requests_total),
        "requests_active": int(values.requests_in_flight),
        "tokens_generated_total": int(values.generated_tokens_total),
        "avg_tokens_per_second": round(rate, 2),
        "memory_usage_mb": round(prometheus.resident_bytes(cells) / _MB, 1),
        "gpu_memory_usage_mb": round(values.gpu_memory_bytes / _MB, 1),
    }
