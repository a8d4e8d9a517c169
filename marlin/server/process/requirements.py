"""What --lock-down requires and turns on: a row each, with how to see that it is there.

`serve --lock-down` does not start without all of them, and `metal-marlin lockdown` prints them.
Owns no enforcement: that is lockdown.py, seccomp.py and whatever each row names.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from marlin.config import WEAK_KEY, ServeConfig
from marlin.errors import ConfigError
from marlin.server.process import seccomp


class Requirement(NamedTuple):
    """One of them.

    Attributes:
        name: what is guaranteed.
        missing: what a server with these settings lacks of it, or None.
    """

    name: str
    missing: Callable[[ServeConfig], str | None]


def _unless(field: str, option: str) -> Callable[[ServeConfig], str | None]:
    return lambda config: None if getattr(config, field) else f"give {option}"


def _keys(config):
    if config.key_file is None and config.api_key is None:
        return "give --key-file, or set METAL_MARLIN_API_KEY"
    return WEAK_KEY if config.has_weak_key else None


def _real_model(config):
    return "METAL_MARLIN_MOCK_MODEL makes answers up" if config.mock_model else None


def _known_regexes(config):
    lifted = config.allow_unknown_pretokenizer
    return "--allow-unknown-pretokenizer lifts it" if lifted else None


def _unknown_parameters(config):
    lifted = config.unknown_parameters == "warn"
    return "--unknown-parameters warn lifts it" if lifted else None


def _sandbox(_config):
    """A filter of system calls, or on a Mac whether somebody has put this process into a sandbox
    (deploy/metal-marlin.sb)."""
    if sys.platform != "darwin":
        return seccomp.why_not()
    check = getattr(ctypes.CDLL(None), "sandbox_check", None)
    inside = check is not None and check(os.getpid(), None, 0) == 1
    return None if inside else "start it by sandbox-exec -f deploy/metal-marlin.sb"


REQUIREMENTS = (
    Requirement(
        "the model is the one that was written down, sealed", _unless("manifest", "--manifest")
    ),
    Requirement(
        "every request is recorded before it is worked on", _unless("audit_log", "--audit-log")
    ),
    Requirement("every client has a key", _keys),
    Requirement("answers are a model's", _real_model),
    Requirement("regular expressions are published ones", _known_regexes),
    Requirement("a parameter that has no effect is refused", _unknown_parameters),
    Requirement(
        "the address is numeric or a Unix socket, no name is looked up", lambda _config: None
    ),
    Requirement(
        "Python reaches out to nobody, starts, loads and writes nothing", lambda _config: None
    ),
    Requirement("native code does neither", _sandbox),
)


def check(config: ServeConfig) -> None:
    """Raises ConfigError naming all that a locked-down server lacks."""
    missing = [what for row in REQUIREMENTS if (what := row.missing(config))]
    if missing:
        raise ConfigError("--lock-down does not start without these: " + "; ".join(missing))
