"""`metal-marlin chat`: a conversation with a model in a terminal, or line by line from a pipe.

A front of marlin.library, as anybody's program may be one. Knows no HTTP.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from marlin import config
from marlin.commands.progress import spoken, waiting
from marlin.errors import ConfigError, MarlinError, said_by_system
from marlin.files.strict_json import parse_json, read_json_object
from marlin.models.place import is_folder

if TYPE_CHECKING:
    from marlin.library import Model

# Of serve's options; their variables count here, too.
OPTIONS = (
    *("device", "num_threads", "max_context_tokens", "speculative", "draft_model"),
    "kv_cache_dtype",
)
_GREY, _PLAIN = "\x1b[90m", "\x1b[0m"
_MORE = "\\"  # at the end of a line: the message goes on in the next


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument("model_path", metavar="MODEL", help="model folder or GGUF file")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    config.add_options(parser, OPTIONS)


def run(arguments, opened=None, stdin=None, stdout=None, stderr=None):
    """Run the command.

    Args:
        arguments: the command line as cli.read() has it.
        opened: a marlin.library.Model that stays open; None opens the one that is named.
        stdin, stdout, stderr: text streams; None takes the process's own.

    Returns:
        Exit code.

    Raises:
        MarlinError: a bad option or model.
    """
    stdin, stdout, stderr = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
    for name in config.unknown_variables(arguments.environ):
        print(f"metal-marlin: nothing reads {name}", file=stderr)
    if opened is not None:
        Chat(opened, arguments.system, stdin, stdout, stderr).run()
        return 0
    is_folder(arguments.model_path)
    from marlin.library import open_model  # not before there is something to open

    with waiting(stderr, f"loading {arguments.model_path}"):
        model = open_model(
            arguments.model_path,
            device=arguments.device,
            threads=arguments.num_threads,
            max_context_tokens=arguments.max_context_tokens,
            speculative=arguments.speculative,
            draft_model=arguments.draft_model,
            kv_cache_dtype=arguments.kv_cache_dtype,
        )
    with model:
        Chat(model, arguments.system, stdin, stdout, stderr).run()
    return 0


class Chat:
    """One conversation.

    Args:
        system: message, or None.
    """

    def __init__(
        self, model: "Model", system: str | None, stdin: TextIO, stdout: TextIO, stderr: TextIO
    ):
        self._model = model
        self._system = system
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._is_seen = stdin.isatty() and stdout.isatty()
        self._messages: list[dict[str, Any]] = []
        self._parameters: dict[str, Any] = {}
        self._stats = "nothing was answered yet"
        self._goes_on = True

    def run(self) -> None:
        """Until /quit or the end of the input. A mistake is said, and the conversation goes on;
        from a pipe it ends the command with MarlinError."""
        if self._is_seen:
            with suppress(ImportError):  # where Python has it: editing, and a history of lines
                import readline  # noqa: F401
            print(f"{self._model.name}. /help lists what else there is.", file=self._stderr)
        while self._goes_on and (text := self._read()) is not None:
            try:
                self._take(text)
            except (MarlinError, OSError) as error:
                if not self._is_seen:
                    raise
                self._say(f"! {said_by_system(error) or error}")

    def _read(self):
        """A message, or None at the end; Ctrl-C begins it anew."""
        lines = []
        while True:
            try:
                line = self._line("... " if lines else "> ")
            except KeyboardInterrupt:
                print(file=self._stderr)
                lines = []
                continue
            if line is None:
                return "\n".join(lines) if lines else None
            if not line.endswith(_MORE):
                return "\n".join([*lines, line])
            lines.append(line.removesuffix(_MORE))

    def _line(self, sign):
        if self._is_seen and self._stdin is sys.stdin:
            try:
                return input(sign)
            except EOFError:
                return None
        line = self._stdin.readline()
        return line.removesuffix("\n") if line else None

    def _take(self, text):
        if text.startswith("/"):
            word, _, rest = text[1:].partition(" ")
            if word not in COMMANDS:
                raise ConfigError(f"no command /{word}; /help lists them")
            COMMANDS[word](self, rest.strip())
        elif text.strip():
            self._messages.append({"role": "user", "content": text})
            num_messages = len(self._messages)
            try:
                self._answer()
            finally:
                if len(self._messages) == num_messages:  # no answer: as if it had not been said
                    self._messages.pop()

    def _answer(self):
        asked = [{"role": "system", "content": self._system}] if self._system else []
        start, first, num_tokens = time.monotonic(), 0.0, 0
        content = thoughts = ""
        with self._model.stream_chat([*asked, *self._messages], **self._parameters) as stream:
            try:
                for piece in stream:
                    first = first or time.monotonic()
                    num_tokens += 1
                    if piece.kind == "content":
                        self._write(piece.text, after_thoughts=thoughts and not content)
                        content += piece.text
                    else:
                        self._write(piece.text, grey=True)
                        thoughts += piece.text
            except KeyboardInterrupt:
                self._write("", after_thoughts=True)
        self._write("\n")
        self._messages.append({"role": "assistant", "content": content})
        seconds = time.monotonic() - first
        self._stats = (
            f"{len(self._messages)} messages; first text after {first - start:.2f} s, "
            f"{num_tokens / max(seconds, 1e-9):.1f} pieces/s"
        )

    def _write(self, text, grey=False, after_thoughts=False):
        if self._is_seen:
            text = spoken(text)
            if after_thoughts:
                text = f"{_PLAIN}\n{text}"
            elif grey:
                text = f"{_GREY}{text}{_PLAIN}"
        elif grey:
            return
        self._stdout.write(text)
        self._stdout.flush()

    def _say(self, text):
        print(text, file=self._stderr)

    def help(self, _rest: str) -> None:
        """this list"""
        for name, command in COMMANDS.items():
            self._say(f"/{name:<12}{command.__doc__}")
        self._say(f"A line that ends with {_MORE} goes on in the next; Ctrl-C stops an answer.")

    def system(self, rest: str) -> None:
        """TEXT: what the model is told before all else; without TEXT, what that is"""
        self._system = rest or self._system
        self._say(self._system or "no system message")

    def set(self, rest: str) -> None:
        """NAME VALUE: a parameter of answers (temperature 0.2); NAME alone takes it back"""
        name, _, text = rest.partition(" ")
        if not name:
            self._say(json.dumps(self._parameters))
            return
        others = {key: value for key, value in self._parameters.items() if key != name}
        if not text:
            self._parameters = others
            return
        value: Any = text
        with suppress(ValueError):
            value = parse_json(text)
        self._check([], others | {name: value}, None)
        self._parameters = {**others, name: value}

    def _check(self, messages, parameters, system):
        """Raise what the model would refuse of a conversation, which may have no messages yet."""
        for name in ("self", "messages"):  # of the method that they are handed to
            if name in parameters:
                raise ConfigError(f"{name} is no parameter of answers")
        asked = [] if system is None else [{"role": "system", "content": system}]
        asked += messages or [{"role": "user", "content": "?"}]
        self._model.check_chat(asked, **parameters)

    def save(self, rest: str) -> None:
        """FILE: write the conversation down"""
        kept = {"system": self._system, "parameters": self._parameters, "messages": self._messages}
        with open(_path(rest), "w", encoding="utf-8") as file:
            json.dump(kept, file, ensure_ascii=False, indent=1)

    def load(self, rest: str) -> None:
        """FILE: go on with one that was written down"""
        kept = read_json_object(_path(rest))
        messages, parameters = kept.get("messages"), kept.get("parameters", {})
        if not isinstance(messages, list) or not isinstance(parameters, dict):
            raise ConfigError(f"{rest}: no conversation that /save has written")
        system = kept.get("system") or None
        self._check(messages, parameters, system)
        self._messages, self._parameters, self._system = messages, parameters, system
        self._say(f"{len(messages)} messages")

    def regenerate(self, _rest: str) -> None:
        """answer the last message again"""
        if not self._messages:
            raise ConfigError("nothing was said yet")
        before = list(self._messages)
        if self._messages[-1]["role"] == "assistant":
            self._messages.pop()
        try:
            self._answer()
        except BaseException:
            self._messages = before
            raise

    def stats(self, _rest: str) -> None:
        """how fast the last answer was"""
        self._say(self._stats)

    def quit(self, _rest: str) -> None:
        """end; Ctrl-D does, too"""
        self._goes_on = False


def _path(words):
    if not words:
        raise ConfigError("give a FILE")
    return os.path.expanduser(words)


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "help": Chat.help,
    "system": Chat.system,
    "set": Chat.set,
    "save": Chat.save,
    "load": Chat.load,
    "regenerate": Chat.regenerate,
    "stats": Chat.stats,
    "quit": Chat.quit,
}
