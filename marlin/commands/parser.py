"""How the words of a command are read: argparse, with one way to be wrong.

Owns the sentences about mistakes in what was typed, and whose options of other programs are ours by
another name. Knows no command.
"""

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from marlin.config import SWITCH
from marlin.errors import ConfigError

# Options of llama-server, mlx_lm.server, vLLM and Ollama: ours, or a sentence.
_ELSEWHERE = {
    ("--ctx-size", "-c", "--max-model-len", "--num-ctx", "--context-length"): "--max-context",
    ("--alias", "-a"): "--served-model-name",
    ("--parallel", "-np", "--max-num-seqs"): "--max-concurrent-requests",
    ("--n-predict", "--predict", "--num-predict", "-n"): "--max-tokens",
    ("--temp",): "--temperature",
    ("--repeat-penalty",): "--repetition-penalty",
    ("--system-prompt", "-sys"): "--system",
    ("--cont-batching", "-cb"): "--enable-batching",
    ("--metrics",): "--enable-metrics",
    ("--n-gpu-layers", "--gpu-layers", "-ngl"): "--device",
    ("--threads-batch", "-t", "-tb", "--num-threads"): "--threads",
    ("--cache-type-k", "--cache-type-v", "-ctk", "-ctv"): "--kv-cache-dtype",
    ("--spec-type", "--speculative-config"): "--speculative",
    ("--model-draft", "-md", "--speculative-model"): "--draft-model",
    (
        "--api-key",
        "--api-key-file",
    ): "the key is in METAL_MARLIN_API_KEY, where `ps` does not show it",
    ("--model", "-m"): "the model's path is an argument of its own: MODEL",
    ("--hf-repo", "-hf", "--download-dir"): "nothing is downloaded: give a file or a folder",
    ("--ssl-keyfile", "--ssl-certfile", "--ssl-key-file", "--ssl-cert-file"): (
        "TLS is a proxy's (docs/deployment.md)"
    ),
    ("--enable-prefix-caching", "--flash-attn", "-fa", "--mmap"): "that is always on",
}


class Parser(argparse.ArgumentParser):
    """The options of one command.

    No abbreviations, since a script that uses one breaks when another option begins alike. A switch
    (metavar SWITCH) is written FLAG, FLAG=true, FLAG false, or --no-FLAG; it never takes the word
    that follows it unless that is true or false.
    """

    def __init__(self, command: str, summary: str):
        self.command = command
        self.fields: list[str] = []  # of config.ServeConfig, which some options set
        super().__init__(
            prog=f"metal-marlin {command}",
            description=summary[0].upper() + summary[1:] + ".",
            allow_abbrev=False,
            exit_on_error=False,
        )

    @property
    def actions(self) -> list[argparse.Action]:
        """Its arguments, in the order of --help."""
        return [action for action in self._actions if action.help is not argparse.SUPPRESS]

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """What the words say. Raises ConfigError with one sentence about what they do not."""
        try:
            arguments, rest = self.parse_known_intermixed_args(self._switches_spelled_out(words))
        except argparse.ArgumentError as error:
            if error.argument_name is None:
                self.error(error.message)
            raise ConfigError(_sentence(error)) from None
        if rest:
            self.error(self._about(rest))
        return arguments

    def error(self, message: str) -> NoReturn:
        message = message.replace("the following arguments are required:", "missing")
        raise ConfigError(f"{self.command}: {message} (metal-marlin {self.command} --help)")

    def _switches_spelled_out(self, words):
        """FLAG, `FLAG false` and --no-FLAG as FLAG=true or FLAG=false."""
        switches = {flag for a in self.actions if a.metavar == SWITCH for flag in a.option_strings}
        spelled, left = [], list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                return [*spelled, word, *left]
            if word in switches:
                word += "=" + (left.pop(0) if left[:1] in (["true"], ["false"]) else "true")
            elif word.startswith("--no-") and (flag := "--" + word[5:]) in switches:
                word = flag + "=false"
            spelled.append(word)
        return spelled

    def _about(self, rest):
        options = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
        if not options:
            return f"what is {rest[0]!r} for? Words that belong together go in quotes"
        name = options[0]
        flags = [flag for action in self.actions for flag in action.option_strings]
        known = next((ours for names, ours in _ELSEWHERE.items() if name in names), None)
        if known and not known.startswith("-"):
            return f"no option {name}: {known}"
        near = [known] if known in flags else get_close_matches(name, flags, 1, 0.7)
        return f"no option {name}" + (f"; did you mean {near[0]}?" if near else "")


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of config.py, which raises ValueError, as the type of an argument."""

    def convert(text):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None

    return convert


def _sentence(error):
    """`--port must be 0 to 65535, got 'x'` and the like."""
    if error.message.startswith("expected"):
        return f"{error.argument_name} needs a value"
    return f"{error.argument_name} {error.message}"
