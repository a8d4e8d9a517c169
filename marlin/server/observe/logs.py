"""What log lines look like, as text or as JSON, and the line that every request leaves.

Prompts, answers and header fields never come this way; what a client chose (its path, its request
id) is escaped, so that it can neither end a line nor forge one.
"""

import json
import logging
import time

from marlin.server.observe.log_writer import LogWriter
from marlin.server.observe.metrics import DISCONNECTED

_log = logging.getLogger("marlin.server")
# C0 and C1 controls and the two Unicode line ends; a terminal or a log reader may act on them.
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029)
}
_ESCAPES_BUT_LINE_END = {code: text for code, text in _ESCAPES.items() if code != 0x0A}
_LOGGED_CHARACTERS = 200  # of a path: those that are answered have fewer
_ENCODER = json.JSONEncoder(separators=(",", ":"), default=str)


def configure(level, log_format, stream):
    """Send this process's log lines to a stream; replaces what was configured before.

    Args:
        level: one of option_values.LOG_LEVELS.
        log_format: one of config.LOG_FORMATS.
        stream: has a descriptor.
    """
    handler = LogWriter(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def writer_ended():
    """That log lines would be lost for ever, as a part of observe.health.Health; else None."""
    return None if all(writer.is_alive for writer in _writers()) else "log lines are not written"


def take_lost():
    """How many log lines were lost since the last call."""
    return sum(writer.take_lost() for writer in _writers())


def _writers():
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LogWriter)]


class TextFormatter(logging.Formatter):
    """Time, level and message; a traceback follows on indented lines."""

    def __init__(self):
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record):
        return super().formatMessage(record).translate(_ESCAPES)

    def formatException(self, ei):
        text = super().formatException(ei).translate(_ESCAPES_BUT_LINE_END)
        return "  " + text.replace("\n", "\n  ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line, ASCII only; the fields are those of docs/serving.md.

    A record's `fields` attribute (logging's `extra={"fields": {...}}`) adds its own.
    """

    def format(self, record):
        line = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _ENCODER.encode(line)


def rfc3339(seconds):
    """UTC time with milliseconds. seconds: since the epoch."""
    milliseconds = int(seconds * 1000)
    whole = time.gmtime(milliseconds // 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', whole)}.{milliseconds % 1000:03}Z"


def cut(text):
    """What a client chose as long as it liked, as long as a log line has it."""
    return text if len(text) <= _LOGGED_CHARACTERS else text[:_LOGGED_CHARACTERS] + "..."


def log_fields(handler):
    """`extra` for the log lines of the request that a http.handler.Handler has in hand."""
    return {"fields": {"request_id": handler.request_id}}


def log_access(handler, record, seconds, quiet):
    """The one line of a request.

    Args:
        handler: http.handler.Handler that has answered it.
        record: observe.metrics.RequestRecord.
        seconds: that it took.
        quiet: it comes every few seconds for ever.
    """
    level = logging.DEBUG if quiet else logging.INFO
    if not _log.isEnabledFor(level):
        return
    client = handler.client_address[0]
    path = cut(handler.path)
    fields = {
        "request_id": handler.request_id,
        "method": cut(handler.command),
        "path": path,
        "status": handler.status,
        "duration_ms": round(seconds * 1000, 3),
        "client": client,
    }
    notes = ""
    if handler.principal is not None:
        fields["key"] = handler.principal.name
        notes = f" key={handler.principal.name}"
    if record.num_prompt_tokens:
        fields["prompt_tokens"] = record.num_prompt_tokens
        fields["output_tokens"] = record.num_output_tokens
        notes += f" prompt={record.num_prompt_tokens} output={record.num_output_tokens}"
    if record.outcome == DISCONNECTED:
        fields["client_left"] = True
        notes += " (client left)"
    what = (client, fields["method"], path, handler.status or "gone", seconds, notes)
    _log.log(
        level, "%s %s %s %s %.3fs%s id=%s", *what, handler.request_id, extra={"fields": fields}
    )


def log_refusal(handler, error):
    """The line of what was not a readable request, answered with a FramingError."""
    client = handler.client_address[0]
    _log.info(
        "%s malformed request: %d %s",
        *(client, error.status, error.message),
        extra={"fields": {"client": client, "status": error.status}},
    )
