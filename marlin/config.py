"""What an operator can set, where each setting may come from, and which source wins.

Reads option strings and an environment mapping that it is given; opens nothing and starts nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

from marlin.errors import ConfigError
from marlin.option_values import (
    LOG_LEVELS,
    address,
    file_mode,
    level,
    listed,
    model_names,
    one_of,
    owner,
    seconds,
    switch,
    tiled_size,
    whole_number,
)

LOG_FORMATS = ("text", "json")
DEVICE_KINDS = ("metal", "cpu")
UNKNOWN_PARAMETERS = ("refuse", "warn", "strict")
SPECULATIVE_METHODS = ("ngram", "draft")
KEY_SCOPES, PREFIX_CACHES = ("generate", "metrics", "admin"), ("per-key", "shared", "off")
KV_CACHE_DTYPES = ("float16", "float32")
POOLINGS = ("last", "mean", "cls", "rank")
AUDIT_KEY_FILE_OPTION, AUDIT_SYNCS = "--audit-key-file", ("disk", "system")
# What --help shows as the value of a switch, and how one is known.
SWITCH = "true|false"
VARIABLE_PREFIX = "METAL_MARLIN_"
MODEL_PATH_VARIABLE = "METAL_MARLIN_MODEL_PATH"
# What no one can try all of; shorter keys are warned of.
API_KEY_BYTES = 16
API_KEY_VARIABLE = "METAL_MARLIN_API_KEY"
MOCK_MODEL_VARIABLE = "METAL_MARLIN_MOCK_MODEL"
WEAK_KEY = (
    f"{API_KEY_VARIABLE} has fewer than {API_KEY_BYTES} bytes and may be guessed; "
    "`openssl rand -hex 16` makes one"
)
# Of the CPU device, which takes no more (metal_shim/cpu/cpu.c).
MAX_THREADS = 256


class Option(NamedTuple):
    """One option of `serve`, which some other commands have, too.

    Attributes:
        field: of ServeConfig, which it sets.
        flag: as typed.
        default: when neither the command line nor the environment has it.
        parse: text to value; raises ValueError saying what it must be.
        metavar, help: for --help.
    """

    field: str
    flag: str
    default: Any
    parse: Callable[[str], Any]
    metavar: str
    help: str

    @property
    def variable(self):
        """Name of the environment variable that sets it, too."""
        return VARIABLE_PREFIX + self.flag.removeprefix("--").upper().replace("-", "_")


def _option(flag: str, default: Any, parse, metavar: str, help: str) -> Any:
    """A field of ServeConfig that is an Option."""
    given = {"flag": flag, "default": default, "parse": parse, "metavar": metavar, "help": help}
    return field(default=default, metadata=given)


# fmt: off
@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The settings of one server. A field made by _option() is also an option and a variable, whose
    help says what it is.

    Also edit, for a new one, the table in docs/serving.md, which a test compares.

    Attributes:
        model_path: model folder or GGUF file; None serves no model and answers 503.
        mock_model: answers are made up under the model path's name; no model is loaded.
        api_key: what clients must present, or None.
    """

    model_path: str | None = None
    served_names: str | None = _option("--served-model-name", None, model_names, "NAME[,NAME]",
        "what requests may call the model; * takes any name (default: the path's last part)")
    host: str = _option("--host", "0.0.0.0", address, "ADDRESS",
        "numeric address to listen on, or localhost")
    port: int = _option("--port", 8000, whole_number(0, 65535), "N",
        "port to listen on, 0 for any free one")
    uds: str | None = _option("--uds", None, str, "PATH",
        "Unix socket to listen on instead of --host and --port")
    uds_mode: str = _option("--uds-mode", "0660", file_mode, "OCTAL",
        "mode of that socket's file: who may write it may connect")
    uds_owner: tuple[int, int] = _option("--uds-owner", (), owner, "UID[:GID]|:GID",
        "whose that file is, in numbers, since no name is looked up")
    uds_beside_tcp: bool = _option("--uds-beside-tcp", False, switch, SWITCH,
        "listen on --host and --port, too, beside --uds")
    workers: int = _option("--workers", 1, whole_number(1, 256), "N",
        "processes that serve, sharing the weights")
    max_concurrent_requests: int = _option("--max-concurrent-requests", 10,
        whole_number(1, 100_000), "N", "requests generating at once; as many more may wait")
    max_tokens: int = _option("--max-tokens", 512, whole_number(1), "N",
        "output tokens of a request that names no limit")
    unknown_parameters: str = _option("--unknown-parameters", "refuse", one_of(UNKNOWN_PARAMETERS),
        "|".join(UNKNOWN_PARAMETERS),
        "of a request: refuse what is in no API, ignore it and tell, or refuse all without effect")
    max_output_tokens: int | None = _option("--max-output-tokens", None, whole_number(1), "N",
        "most output tokens that a request may ask for (default: what its context holds)")
    max_choices: int = _option("--max-choices", 64, whole_number(1, 1024), "N",
        "most choices of a request: n times its prompts")
    timeout_s: float = _option("--timeout", 120.0, seconds, "SECONDS",
        "longest time for one answer, from the end of its request")
    log_level: str = _option("--log-level", "INFO", level, "|".join(LOG_LEVELS),
        "how much is logged")
    log_format: str = _option("--log-format", "text", one_of(LOG_FORMATS), "|".join(LOG_FORMATS),
        "text, or json: one object a line")
    enable_metrics: bool = _option("--enable-metrics", True, switch, SWITCH,
        "serve /metrics")
    web_page: bool = _option("--web-page", True, switch, SWITCH,
        "answer browsers at / with a page: a chat, and a view of the server")
    device: str | None = _option("--device", None, one_of(DEVICE_KINDS), "|".join(DEVICE_KINDS),
        "what computes (default: metal on a Mac with a GPU, else cpu)")
    num_threads: int | None = _option("--threads", None, whole_number(1, MAX_THREADS), "N",
        "threads of the CPU device (default: the cores this process may use)")
    max_context_tokens: int | None = _option("--max-context", None, whole_number(1), "TOKENS",
        "prompt and output together (default: the model's own context)")
    enable_batching: bool = _option("--enable-batching", False, switch, SWITCH,
        "share steps between requests, over a paged KV cache, instead of one request at a time")
    num_kv_blocks: int = _option("--num-kv-blocks", 512, whole_number(1, 1 << 24), "N",
        "KV cache blocks, with --enable-batching")
    block_size: int = _option("--block-size", 16, tiled_size, "TOKENS",
        "tokens a KV cache block, with --enable-batching")
    kv_cache_dtype: str = _option("--kv-cache-dtype", "float16", one_of(KV_CACHE_DTYPES),
        "|".join(KV_CACHE_DTYPES),
        "keys and values as they are kept; float32 for models whose are beyond 65504")
    speculative: str | None = _option("--speculative", None, one_of(SPECULATIVE_METHODS),
        "|".join(SPECULATIVE_METHODS),
        "draft tokens by the text so far, or a small model, and check them together (default: off)")
    draft_model: str | None = _option("--draft-model", None, str, "PATH",
        "with --speculative draft: model folder or GGUF file of the same vocabulary that drafts")
    allow_unknown_pretokenizer: bool = _option("--allow-unknown-pretokenizer", False, switch,
        SWITCH, "read a tokenizer.json whose regular expressions nobody has published")
    pooling: str | None = _option("--pooling", None, one_of(POOLINGS), "|".join(POOLINGS),
        "make embeddings of texts so, or scores (default: as the model's files say, or none)")
    manifest: str | None = _option("--manifest", None, str, "FILE",
        "serve only what `metal-marlin manifest` has written down, from sealed copies in memory")
    manifest_key: str | None = _option("--manifest-key", None, str, "FILE",
        "minisign public key that has signed the manifest, in a file of its name and .minisig")
    audit_log: str | None = _option("--audit-log", None, str, "FILE",
        "record every request before it is worked on; FILE.0, FILE.1, ... with --workers")
    audit_key_file: str | None = _option(AUDIT_KEY_FILE_OPTION, None, str, "FILE",
        "secret that chains the audit log's records")
    audit_content: bool = _option("--audit-content", False, switch, SWITCH,
        "have requests and answers themselves in the audit log, and not only their HMACs")
    audit_sync: str = _option("--audit-sync", "disk", one_of(AUDIT_SYNCS), "|".join(AUDIT_SYNCS),
        "what a record must have reached before its request is worked on")
    key_file: str | None = _option("--key-file", None, str, "FILE",
        "named keys with limits each, see `metal-marlin keys`; read again when it changes")
    require_key: bool = _option("--require-key", False, switch, SWITCH,
        "do not start without METAL_MARLIN_API_KEY, of 16 bytes at least, or --key-file")
    allowed_hosts: tuple[str, ...] = _option("--allowed-host", (),
        partial(listed, r"[\w-]+(\.[\w-]+)*", "names of hosts, without ports,"), "NAME[,NAME]",
        "names with dots by which clients on this machine may call a server without a key")
    allowed_origins: tuple[str, ...] = _option("--allow-origin", (),
        partial(listed, r"\*|null|[a-z][a-z0-9+.-]*://[^\s/,*]*", "origins, or *,"), "ORIGIN[,...]",
        "web pages that may use the server, such as https://app.example; * for all")
    trusts_texts: bool = _option("--allow-special-tokens-in-text", False, switch, SWITCH,
        "special tokens that messages spell steer the model, as the template's own do")
    prefix_cache: str = _option(
        *("--prefix-cache", "per-key", one_of(PREFIX_CACHES), "|".join(PREFIX_CACHES)),
        "who may reuse the beginning of a prompt that another request computed")
    lock_down: bool = _option("--lock-down", False, switch, SWITCH,
        "hold all that `metal-marlin lockdown` lists, or do not start")
    mock_model: bool = False
    api_key: bytes | None = field(default=None, repr=False)
# fmt: on

    @property
    def has_keys(self) -> bool:
        return self.api_key is not None or self.key_file is not None

    @property
    def has_weak_key(self) -> bool:
        """Whether the key that all may present can be guessed."""
        return self.api_key is not None and len(self.api_key) < API_KEY_BYTES


OPTIONS = tuple(
    Option(field.name, **field.metadata) for field in fields(ServeConfig) if field.metadata
)


def add_arguments(parser):
    """Add serve's arguments to a commands.parser.Parser, as text that serve_config() parses."""
    parser.add_argument(
        "model_path",
        nargs="?",
        metavar="MODEL_PATH",
        help=f"model folder or GGUF file ({MODEL_PATH_VARIABLE} overrides it)",
    )
    add_options(parser, [option.field for option in OPTIONS])


def add_options(parser, names):
    """Add the options of these fields to a Parser, as text that settled() parses; they are noted in
    its `fields`."""
    parser.fields += names
    for option in OPTIONS:
        if option.field not in names:
            continue
        text = option.help
        if option.default not in (None, ()):
            shown = str(option.default).lower() if option.metavar == SWITCH else option.default
            text += f" (default: {shown:g})" if shown.__class__ is float else f" (default: {shown})"
        nargs = "?" if option.metavar == SWITCH else None
        parser.add_argument(
            option.flag,
            dest=option.field,
            nargs=nargs,
            metavar=option.metavar,
            help=f"{text} [{option.variable}]",
        )


def unused_options(arguments, settings):
    """Flags given in `arguments` for a paged KV cache that these settings do not have."""
    if settings.enable_batching:
        return []
    sizes = (option for option in OPTIONS if option.field in ("num_kv_blocks", "block_size"))
    return [option.flag for option in sizes if arguments.get(option.field) is not None]


def serve_config(arguments: Mapping, environ: Mapping[str, str]) -> ServeConfig:
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
    return ServeConfig(
        model_path=_model_path(environ.get(MODEL_PATH_VARIABLE) or arguments.get("model_path")),
        mock_model=_mock_model(environ.get(MOCK_MODEL_VARIABLE)),
        api_key=_api_key(environ.get(API_KEY_VARIABLE)),
        **settled((option.field for option in OPTIONS), arguments, environ),
    )


# Of those options what a server in a program's own process has; others are of the model that it is
# given, or of a process.
_EMBEDDED = (
    *("served_names", "max_concurrent_requests", "max_tokens", "max_output_tokens", "max_choices"),
    *("unknown_parameters", "timeout_s", "enable_metrics", "web_page", "key_file"),
    *("allowed_hosts", "allowed_origins"),
)


def embedded_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Such a server's settings by their fields, from flags with underscores instead of dashes.

    Raises:
        ConfigError: it has no such setting.
    """
    names = {o.flag[2:].replace("-", "_"): o.field for o in OPTIONS if o.field in _EMBEDDED}
    for name in settings:
        if name not in names:
            raise ConfigError(f"Server has no setting {name}; it has {', '.join(names)}")
    return {names[name]: text for name, text in settings.items()}


def settled(names: Iterable[str], arguments: Mapping, environ: Mapping[str, str]) -> dict[str, Any]:
    """{field: value} of these fields of ServeConfig; raises as serve_config()."""
    chosen = set(names)
    options = (option for option in OPTIONS if option.field in chosen)
    return {option.field: _settle(option, arguments, environ) for option in options}


def overridden_model(arguments: Mapping, environ: Mapping[str, str]) -> str | None:
    """What to add to an error about the model when its path is not the one that was typed."""
    typed, path = arguments.get("model_path"), environ.get(MODEL_PATH_VARIABLE)
    if not path or typed in (None, path):
        return None
    return f"{MODEL_PATH_VARIABLE} is set and overrides the argument {typed}"


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Names of variables that are ours by their prefix, and that nothing reads; the tests' own,
    METAL_MARLIN_TEST_*, aside."""
    known = {option.variable for option in OPTIONS}
    known |= {MODEL_PATH_VARIABLE, API_KEY_VARIABLE, MOCK_MODEL_VARIABLE}
    ours = {name for name in environ if name.startswith(VARIABLE_PREFIX)}
    tests = {name for name in ours if name.startswith(VARIABLE_PREFIX + "TEST_")}
    return sorted(ours - known - tests)


def check_text(text: str, what: str) -> None:
    """Refuse what no answer, log line or file of JSON could say; raises ConfigError."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(
            f"{what} is not UTF-8, or not of this locale's encoding, so that nothing could name "
            f"it: rename it, or set LC_ALL to a UTF-8 locale; got {text!a}"
        )


def check_speculation(method: str | None, draft_model: object) -> None:
    """Refuse a draft model that nothing asks, and the reverse; raises ConfigError."""
    if method == "draft" and draft_model is None:
        raise ConfigError("--speculative draft needs a model that drafts: --draft-model PATH")
    if method != "draft" and draft_model is not None:
        raise ConfigError("--draft-model is for --speculative draft: give that, too")


def _model_path(path):
    """Its last part is the model's name, which answers, logs and metrics have to say."""
    if path is not None:
        check_text(path, "the model's path")
    return path


def _settle(option, arguments, environ):
    source, text = option.flag, arguments.get(option.field)
    if text is None:
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
