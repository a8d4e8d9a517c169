"""What an operator can set, where each setting may come from, and which source wins.

Reads option strings and an environment mapping that it is given; opens nothing and starts nothing.
"""

import argparse
import ipaddress
from dataclasses import dataclass, field

from marlin.errors import ConfigError

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
LOG_FORMATS = ("text", "json")
DEVICE_KINDS = ("metal", "cpu")
DEVICE_HELP = "metal or cpu (default: metal on a Mac with a GPU, else cpu)"
SPECULATIVE_METHODS = ("ngram",)
SPECULATIVE_HELP = "ngram: draft tokens from the text so far and check them together (default off)"
PRETOKENIZER_HELP = "read a tokenizer.json whose regular expressions nobody has published"
MODEL_PATH_VARIABLE = "METAL_MARLIN_MODEL_PATH"
API_KEY_VARIABLE = "METAL_MARLIN_API_KEY"
MOCK_MODEL_VARIABLE = "METAL_MARLIN_MOCK_MODEL"
# Enough for every alias that clients insist on; all of them are listed by /v1/models.
MAX_NAMES, MAX_NAME_CHARACTERS = 16, 256
# Of the CPU device, which takes no more (metal_shim/cpu/cpu.c).
MAX_THREADS = 256


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The settings of one server.

    Attributes:
        model_path: model folder or GGUF file; None serves no model and answers 503.
        served_names: what requests may call the model, with commas between the names, "*" for any;
            None is its own name.
        host: numeric address to listen on.
        port: 0 picks a free one.
        workers: processes that serve; with more than one, a supervisor starts and replaces them.
        max_concurrent_requests: generation requests inside at once; as many more may wait.
        max_tokens: output tokens of a request that names no limit.
        timeout_s: from a request's last byte to the end of its answer.
        log_level: one of LOG_LEVELS.
        log_format: one of LOG_FORMATS.
        enable_metrics: /metrics is served.
        device: one of DEVICE_KINDS; None is "metal" on a Mac that has it, else "cpu".
        num_threads: threads of a CPU device; None lets the device choose.
        max_context_tokens: prompt and output together; None is the model's own.
        enable_batching: requests share steps over a paged KV cache, instead of one after another.
        num_kv_blocks, block_size: that cache's blocks, and tokens a block.
        speculative: one of SPECULATIVE_METHODS, how tokens are drafted; None drafts none.
        allow_unknown_pretokenizer: a tokenizer.json may hold any regular expression.
        mock_model: answers are made up under the model path's name; no model is loaded.
        api_key: what clients must present, or None.
    """

    model_path: str | None
    served_names: str | None
    host: str
    port: int
    workers: int
    max_concurrent_requests: int
    max_tokens: int
    timeout_s: float
    log_level: str
    log_format: str
    enable_metrics: bool
    device: str | None
    num_threads: int | None
    max_context_tokens: int | None
    enable_batching: bool
    num_kv_blocks: int
    block_size: int
    speculative: str | None
    allow_unknown_pretokenizer: bool
    mock_model: bool
    api_key: bytes | None = field(repr=False)


def whole_number(low, high=None):
    """A parser of decimal integers in [low, high]; it raises ValueError with what it expected."""
    bounds = f"{low} or more" if high is None else f"{low} to {high}"

    def parse(text):
        # int() alone would also take "1_0", " 5" and full-width digits.
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise ValueError(f"must be a whole number, {bounds}")
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError(f"must be {bounds}")
        return value

    return parse


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:  # false for nan, too
        raise ValueError("must be a number of seconds above 0")
    return value


def _log_level(text):
    if text.upper() not in LOG_LEVELS:
        raise ValueError("must be one of " + ", ".join(LOG_LEVELS))
    return text.upper()


def _one_of(names):
    def parse(text):
        if text not in names:
            raise ValueError("must be " + " or ".join(names))
        return text

    return parse


def _block_size(text):
    value = whole_number(16, 4096)(text)
    if value % 16:
        raise ValueError(
            "must be a multiple of 16, the tokens that keys are stored side by side in"
        )
    return value


def _switch(text):
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _served_names(text):
    names = text.split(",")
    longest = max(map(len, names))
    if longest > MAX_NAME_CHARACTERS or len(names) > MAX_NAMES:
        raise ValueError(f"must be {MAX_NAMES} names of {MAX_NAME_CHARACTERS} characters at most")
    if not all(name == name.strip() and name.isprintable() and name for name in names):
        raise ValueError("must be names with commas between them and no blanks around them")
    if len(set(names)) != len(names):
        raise ValueError("must not hold a name twice")
    return text


def _host(text):
    if text == "localhost":
        return "127.0.0.1"
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            "must be a numeric address or localhost, since no name is looked up"
        ) from None
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One command-line option of `serve`.

    Attributes:
        flag: as typed.
        field: the ServeConfig field it sets.
        default: when neither the command line nor the environment has it.
        parse: text to value; raises ValueError saying what it must be.
        variable: environment variable that sets it too, or None.
        metavar, help: for --help; an option without a metavar is a switch, see _add_switch().
    """

    flag: str
    field: str
    default: object
    parse: object
    metavar: str | None
    help: str
    variable: str | None = None


OPTIONS = (
    Option(
        *("--served-model-name", "served_names", None, _served_names, "NAME[,NAME]"),
        "what requests may call the model; * takes any name (default: the path's last part)",
    ),
    Option(
        *("--host", "host", "0.0.0.0", _host, "ADDRESS"),
        "numeric address to listen on, or localhost (default 0.0.0.0)",
        "METAL_MARLIN_HOST",
    ),
    Option(
        *("--port", "port", 8000, whole_number(0, 65535), "N"),
        "port, 0 for any free one (default 8000)",
        "METAL_MARLIN_PORT",
    ),
    Option(
        *("--workers", "workers", 1, whole_number(1, 256), "N"),
        "processes that serve, sharing the weights (default 1)",
        "METAL_MARLIN_WORKERS",
    ),
    Option(
        *(
            "--max-concurrent-requests",
            "max_concurrent_requests",
            10,
            whole_number(1, 100_000),
            "N",
        ),
        "requests generating at once; as many more may wait (default 10)",
    ),
    Option(
        *("--max-tokens", "max_tokens", 512, whole_number(1), "N"),
        "output tokens of a request that names no limit (default 512)",
    ),
    Option(
        *("--timeout", "timeout_s", 120.0, _seconds, "SECONDS"),
        "longest time for one answer (default 120)",
    ),
    Option(
        *("--log-level", "log_level", "INFO", _log_level, "LEVEL"),
        "DEBUG, INFO, WARNING or ERROR (default INFO)",
        "METAL_MARLIN_LOG_LEVEL",
    ),
    Option(
        *("--log-format", "log_format", "text", _one_of(LOG_FORMATS), "FORMAT"),
        "text, or json: one object a line (default text)",
    ),
    Option(
        *("--enable-metrics", "enable_metrics", True, _switch, None),
        "serve /metrics (default); --no-enable-metrics or =false does not",
    ),
    Option("--device", "device", None, _one_of(DEVICE_KINDS), "KIND", DEVICE_HELP),
    Option(
        *("--threads", "num_threads", None, whole_number(1, MAX_THREADS), "N"),
        "threads of the CPU device (default: the cores this process may use)",
    ),
    Option(
        *("--max-context", "max_context_tokens", None, whole_number(1), "TOKENS"),
        "prompt and output together (default: the model's own context)",
    ),
    Option(
        *("--enable-batching", "enable_batching", False, _switch, None),
        "share steps between requests, over a paged KV cache (default: one request at a time)",
    ),
    Option(
        *("--num-kv-blocks", "num_kv_blocks", 512, whole_number(1, 1 << 24), "N"),
        "KV cache blocks, with --enable-batching (default 512)",
    ),
    Option(
        *("--block-size", "block_size", 16, _block_size, "TOKENS"),
        "tokens a KV cache block, with --enable-batching (default 16)",
    ),
    Option(
        *("--speculative", "speculative", None, _one_of(SPECULATIVE_METHODS), "METHOD"),
        SPECULATIVE_HELP,
    ),
    Option(
        *("--allow-unknown-pretokenizer", "allow_unknown_pretokenizer", False, _switch, None),
        PRETOKENIZER_HELP,
    ),
)


def add_arguments(parser):
    """Add serve's arguments to an argparse parser, all as plain text that serve_config() parses."""
    parser.add_argument(
        "model_path",
        nargs="?",
        metavar="MODEL_PATH",
        help=f"model folder or GGUF file ({MODEL_PATH_VARIABLE} overrides it)",
    )
    for option in OPTIONS:
        source = f" [{option.variable}]" if option.variable else ""
        text = option.help + source
        if option.metavar is None:
            _add_switch(parser, option, text)
        else:
            parser.add_argument(option.flag, dest=option.field, help=text, metavar=option.metavar)


def unused_options(arguments, settings):
    """Flags given in `arguments` for a paged KV cache that these settings do not have."""
    if settings.enable_batching:
        return []
    sizes = (option for option in OPTIONS if option.field in ("num_kv_blocks", "block_size"))
    return [option.flag for option in sizes if arguments.get(option.field) is not None]


def _add_switch(parser, option, text):
    """FLAG, FLAG=true, FLAG=false and --no-FLAG.

    An optional value (nargs="?") would take the MODEL_PATH that follows a bare flag, so that each
    spelling is an option of its own; argparse looks for a whole word before it splits at "=".
    """
    negative = "--no-" + option.flag.removeprefix("--")
    for flag, value, shown in (
        (option.flag, "true", text),
        (f"{option.flag}=true", "true", argparse.SUPPRESS),
        (f"{option.flag}=false", "false", argparse.SUPPRESS),
        (negative, "false", argparse.SUPPRESS),
    ):
        parser.add_argument(flag, dest=option.field, action="store_const", const=value, help=shown)


def serve_config(arguments, environ):
    """Settle the settings: an option on the command line, else its variable, else its default.

    The model path is the exception: METAL_MARLIN_MODEL_PATH wins over the argument, so that a
    container or a service unit can change the model without touching its command. An empty variable
    counts as unset.

    Args:
        arguments: mapping of field name to text or None.
        environ: mapping of environment variables.

    Raises:
        ConfigError: names the option or variable, its value and what it must be.
    """
    values = {option.field: _settle(option, arguments, environ) for option in OPTIONS}
    return ServeConfig(
        model_path=environ.get(MODEL_PATH_VARIABLE) or arguments.get("model_path"),
        mock_model=_mock_model(environ.get(MOCK_MODEL_VARIABLE)),
        api_key=_api_key(environ.get(API_KEY_VARIABLE)),
        **values,
    )


def _settle(option, arguments, environ):
    source, text = option.flag, arguments.get(option.field)
    if text is None and option.variable:
        source, text = option.variable, environ.get(option.variable) or None
    if text is None:
        return option.default
    try:
        return option.parse(text)
    except ValueError as error:
        raise ConfigError(f"{source} {error}, got {text!r}") from None


def _mock_model(text):
    if text not in (None, "", "0", "1"):
        raise ConfigError(f"{MOCK_MODEL_VARIABLE} must be 1 or 0, got {text!r}")
    return text == "1"


def _api_key(text):
    if not text:
        return None
    if text != text.strip() or not text.isprintable():
        raise ConfigError(
            f"{API_KEY_VARIABLE} begins or ends with a blank or holds a control character, "
            "which no client can send"
        )
    return text.encode("utf-8")
