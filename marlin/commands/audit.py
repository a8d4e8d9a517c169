"""`metal-marlin audit`: whether an audit log is whole, and what is in it.

The form of its records is server/observe/audit.py's.
"""

import json

from marlin.config import AUDIT_KEY_FILE_OPTION
from marlin.errors import AuditFileError, ConfigError
from marlin.server.observe.audit import Chain, lines_of, read_key
from marlin.streams import say

ACTIONS = ("verify", "show")
# What `show` can choose by: fields that begin and end have.
_FILTERS = ("principal", "client", "endpoint", "request_id", "outcome")


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument("action", choices=ACTIONS, metavar="|".join(ACTIONS), help="what to do")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="an audit log, or its parts, the oldest first"
    )
    parser.add_argument(
        AUDIT_KEY_FILE_OPTION, dest="key_file", metavar="FILE", help="verify: the log's key"
    )
    parser.add_argument(
        "--after", metavar="SEQ:MAC", help="verify: the record before the first file's first"
    )
    parser.add_argument(
        "--head", metavar="SEQ:MAC", help="verify: a record that must be there, noted elsewhere"
    )
    parser.add_argument(
        "--unclosed",
        action="store_true",
        help="verify: accept a server that was killed or still runs",
    )
    for name in _FILTERS:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, dest=name, metavar="TEXT", help="show: only what has this")
    parser.add_argument("--since", metavar="TIME", help="show: only what is not older, RFC 3339")


def run(arguments):
    """Returns the exit code: 0, or 1 with a sentence about the first record that is wrong."""
    if arguments.action == "show":
        _show(arguments)
        return 0
    if arguments.key_file is None:
        raise ConfigError(f"audit verify needs {AUDIT_KEY_FILE_OPTION}")
    seq, mac = _place("--after", arguments.after or "0:")
    chain = Chain(read_key(arguments.key_file), seq, mac)
    head = None if arguments.head is None else _place("--head", arguments.head)
    say(_verify(arguments.files, chain, head, arguments.unclosed))
    return 0


def _verify(paths, chain, head, takes_unclosed):
    """One sentence about a whole log. Raises AuditFileError about any other."""
    num_records = num_requests = 0
    is_open, found = False, head is None
    for path in paths:
        for number, line in enumerate(_lines(path), 1):
            where = f"{path}: line {number}"
            try:
                record = chain.read(line)
            except ValueError as error:
                raise AuditFileError(f"{where} {error}") from None
            event = record.values["event"]
            if event == "open" and is_open and not takes_unclosed:
                raise AuditFileError(
                    f"{where} opens, and none before it closes: the server was killed "
                    "(--unclosed takes that), or what came between was cut"
                )
            if event != "open" and not is_open and num_records:
                raise AuditFileError(f"{where} is a record of a log that was closed")
            is_open = event != "close"
            num_records += 1
            num_requests += event == "begin"
            found |= head == (chain.seq, chain.mac)
    if not num_records:
        raise AuditFileError("there are no records")
    if not found:
        raise AuditFileError(f"record {head[0]} of --head is not there, or is another")
    if is_open and not takes_unclosed:
        raise AuditFileError(
            f"the last record, {chain.seq}, closes nothing: the server runs or was killed "
            "(--unclosed takes that), or the end was cut"
        )
    counts = f"{num_records} records of {num_requests} requests"
    return f"{counts} are whole; the last is {chain.seq}:{chain.mac}"


def _show(arguments):
    wanted = {name: value for name in _FILTERS if (value := getattr(arguments, name)) is not None}
    for path in arguments.files:
        for number, line in enumerate(_lines(path), 1):
            try:
                values = json.loads(line)
            except ValueError:
                raise AuditFileError(f"{path}: line {number} is not a record") from None
            if arguments.since is not None and str(values.get("time")) < arguments.since:
                continue
            if all(str(values.get(name)) == value for name, value in wanted.items()):
                say(line.decode("ascii", "backslashreplace"))


def _lines(path):
    try:
        yield from lines_of(path)
    except OSError as error:
        raise AuditFileError(f"{path}: cannot be read: {error.strerror}") from None


def _place(option, text):
    seq, colon, mac = text.partition(":")
    if not (seq.isascii() and seq.isdigit() and colon):
        raise ConfigError(f"{option} must be SEQ:MAC, got {text!r}")
    return int(seq), mac
