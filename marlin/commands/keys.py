"""`metal-marlin keys new NAME`: a secret for one client, and what a key file has to hold of it.

The secret is shown once and is in no file; a key file has its digest alone.
"""

import json
import os
import secrets
import stat
import sys
from contextlib import suppress

from marlin.config import KEY_SCOPES
from marlin.errors import ConfigError
from marlin.option_values import one_of, whole_number

# What a secret begins with, so that scanners of texts find one that leaked.
_PREFIX = "mm-"
_COUNTS = {
    "concurrent_requests": "requests at once",
    "tokens_per_minute": "prompt and output tokens a minute",
    "output_tokens": "output tokens of a request's choice",
}


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument("action", metavar="new", help="make a key")
    parser.add_argument("name", metavar="NAME", help="whose it is: letters, digits, . - _ @")
    parser.add_argument("--key-file", metavar="FILE", help="add it to this file (default: show it)")
    for name, text in _COUNTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=f"most {text}")
    parser.add_argument("--models", metavar="NAME[,NAME]", help="names that it may give (all)")
    parser.add_argument(
        "--scopes", metavar="SCOPE[,SCOPE]", help="some of " + ", ".join(KEY_SCOPES) + " (generate)"
    )


def run(arguments):
    """Make a key. Returns the exit code."""
    from marlin.server.api.keys import encode, key_file_data, read_key_file, with_new_key

    if arguments.action != "new":
        raise ConfigError(f"keys: the only action is new, got {arguments.action!r}")
    secret = _PREFIX + secrets.token_urlsafe(32)
    more = _limits(arguments)
    path = arguments.key_file
    if path is None:
        key = with_new_key({"keys": []}, arguments.name, secret, **more)["keys"][0]
        print(json.dumps(key), file=sys.stderr)
    else:
        old = key_file_data(path) if os.path.lexists(path) else {"keys": []}
        if old["keys"] != []:
            read_key_file(path)
        _replace(path, encode(with_new_key(old, arguments.name, secret, **more)))
    print(secret)
    return 0


def _limits(arguments):
    """The fields of a key that were asked for."""
    found = {}
    for name in _COUNTS:
        text = getattr(arguments, name)
        if text is not None:
            found[name] = _parsed(f"--{name.replace('_', '-')}", whole_number(1), text)
    if arguments.scopes is not None:
        each = arguments.scopes.split(",")
        found["scopes"] = [_parsed("--scopes", one_of(KEY_SCOPES), scope) for scope in each]
    if arguments.models is not None:
        found["models"] = arguments.models.split(",")
    return found


def _parsed(flag, parse, text):
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {error}, got {text!r}") from None


def _replace(path, content):
    """Put a file in the place of another at once; a server that looks meanwhile sees the one or the
    other. Whose it is and who reads it stays; a new one is for its owner alone."""
    from marlin.server.api.keys import read_key_file

    path = os.path.realpath(path)
    old, new = os.stat(path) if os.path.exists(path) else None, f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if old is not None:
                with suppress(PermissionError):  # whoever is not root can keep the group at most
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        read_key_file(new)
        os.replace(new, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
