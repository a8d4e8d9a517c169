"""`metal-marlin generate`: one prompt in, the model's text out as it comes.

The server's validation and prompt building, without the server.
"""

import json
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass

from marlin import config
from marlin.commands.parser import typed
from marlin.commands.progress import spoken, waiting
from marlin.engine.sampling import PARAMETERS, parse_sampling
from marlin.engine.stream import TextStream
from marlin.errors import ConfigError, MarlinError, RequestError
from marlin.models.place import is_folder
from marlin.option_values import number, whole_number
from marlin.server.api.fields import request_fields
from marlin.server.api.openai_requests import parse_stop
from marlin.server.http.limits import Limits
from marlin.text.conversation import Conversation

# Of serve's options; their variables count here, too.
OPTIONS = (
    *("device", "num_threads", "max_context_tokens", "speculative", "draft_model"),
    *("kv_cache_dtype", "allow_unknown_pretokenizer"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What --json prints.

    Attributes:
        finish_reason: "stop" or "length".
        prompt_tokens, cached_tokens, completion_tokens: counts.
        seed: that gives the answer again.
        first_token_s: from the prompt's tokens to the first of the answer's.
        total_s: to the last.
    """

    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seed: int
    first_token_s: float
    total_s: float

    @property
    def line(self):
        """One line of statistics."""
        after_s = self.total_s - self.first_token_s
        speed = f", {(self.completion_tokens - 1) / after_s:.1f} tokens/s" if after_s > 0 else ""
        return (
            f"{self.prompt_tokens} + {self.completion_tokens} tokens, "
            f"{self.first_token_s:.2f} s to the first{speed}, seed {self.seed}"
        )


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument("model_path", metavar="MODEL", help="model folder or GGUF file")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="- reads standard input")
    parser.add_argument("-p", "--prompt", dest="prompt_option", metavar="PROMPT", help="the same")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="put the prompt through the model's chat template (default if it has one)",
    )
    mode.add_argument(
        "--raw", action="store_false", dest="chat", help="continue the prompt as it is"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message, with --chat")
    for row in PARAMETERS:
        _add_parameter(parser, row)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="may be repeated")
    config.add_options(parser, OPTIONS)
    parser.add_argument("--json", action="store_true", help="print the answer and counts as JSON")


def _add_parameter(parser, row):
    flag = "--" + row.name.replace("_", "-")
    if row.kind is bool:
        parser.add_argument(flag, action="store_true", help=row.help)
        return
    default = "" if row.default is None else f" (default: {row.default:g})"
    parser.add_argument(
        flag,
        type=typed(number if row.kind is float else whole_number(max(row.low, 0))),
        metavar="X" if row.kind is float else "N",
        help=row.help + default,
    )


def run(arguments, load=None, stdin=None, stdout=None, stderr=None):
    """Run the command.

    Args:
        arguments: the command line as cli.read() has it.
        load: callable(path, device_kind=, num_threads=, max_context_tokens=, speculative=,
            draft_model=, kv_cache_dtype=, allow_unknown_pretokenizer=) -> ServedModel; None is
            engine.load.load_model.
        stdin, stdout, stderr: text streams; None takes the process's own.

    Returns:
        Exit code.

    Raises:
        MarlinError: a bad option, model or prompt.
    """
    stdin, stdout, stderr = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
    for name in config.unknown_variables(arguments.environ):
        print(f"metal-marlin: nothing reads {name}", file=stderr)
    params, stops = _parameters(arguments)
    if load is None:
        is_folder(arguments.model_path)  # before anybody types a prompt
        from marlin.engine.load import load_model as load
    prompt = _prompt(arguments, stdin, stderr)
    with waiting(stderr, f"loading {arguments.model_path}"):
        model = load(
            arguments.model_path,
            device_kind=arguments.device,
            num_threads=arguments.num_threads,
            max_context_tokens=arguments.max_context_tokens,
            speculative=arguments.speculative,
            draft_model=arguments.draft_model,
            kv_cache_dtype=arguments.kv_cache_dtype,
            allow_unknown_pretokenizer=arguments.allow_unknown_pretokenizer,
        )
    try:
        model.check_generates()
        chat, token_ids = _prompt_token_ids(model, arguments, prompt)
        request = model.engine.submit(token_ids, params, "generate")
        stream = TextStream(request, model.tokenizer, stops, continues=not chat)
        shown = None if arguments.json else stdout
        answer = _answer(model.model_id, request, stream, shown, stderr)
    finally:
        model.close()
    if arguments.json:
        print(json.dumps(asdict(answer)), file=stdout)
    elif stderr.isatty():
        print(answer.line, file=stderr)
    return 0


def _parameters(arguments):
    """(SamplingParams, stop strings); what the API refuses is refused by the option's name."""
    try:
        params = parse_sampling(request_fields(vars(arguments)))
        return params, parse_stop({"stop": arguments.stop}, Limits())
    except RequestError as error:
        param = error.param or ""
        flag = "--" + param.partition("[")[0].replace("_", "-")
        raise ConfigError(flag + error.message.removeprefix(param)) from None


def _prompt(arguments, stdin, stderr):
    given = [text for text in (arguments.prompt, arguments.prompt_option) if text is not None]
    if len(given) > 1:
        raise ConfigError("give one prompt: as an argument or with --prompt")
    prompt = given[0] if given else "-"
    if prompt == "-":
        if stdin.isatty():
            print("Type the prompt; Ctrl-D on a line of its own ends it.", file=stderr)
        prompt = _read(stdin)
    if not prompt.strip():
        raise ConfigError("the prompt is empty")
    return prompt


def _read(stdin):
    try:
        # The newline that echo and here-documents add is not part of the question.
        return stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not {error.encoding} text") from None


def _prompt_token_ids(model, arguments, prompt):
    """Returns (whether the chat template was used, token ids)."""
    chat = model.has_chat if arguments.chat is None else arguments.chat
    if not chat:
        if arguments.system is not None:
            raise ConfigError("--system needs a chat template and not --raw")
        return False, model.encode_prompt(prompt)
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return True, model.encode_chat(Conversation(messages)).token_ids


def _answer(name, request, stream, stdout, stderr):
    """The Answer, written to stdout as it comes unless that is None."""
    num_prompt_tokens = len(request.prompt_token_ids)
    start, first, text, num_tokens = time.monotonic(), 0.0, "", 0
    with (
        waiting(
            stderr,
            f"reading {num_prompt_tokens} tokens",
            lambda: min(1.0, request.num_computed_tokens / num_prompt_tokens),
        ) as stop_waiting,
        closing(iter(stream)) as deltas,
    ):
        for delta in deltas:
            stop_waiting()
            first = first or time.monotonic()
            text += delta.text
            num_tokens += delta.num_tokens
            if stdout:
                stdout.write(spoken(delta.text) if stdout.isatty() else delta.text)
                stdout.flush()
    if stdout:
        stdout.write("\n")
    if delta.finish_reason == "abort":
        raise MarlinError("the engine stopped before the answer was complete")
    return Answer(
        model=name,
        text=text,
        finish_reason=delta.finish_reason,
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_tokens,
        seed=request.seed,
        first_token_s=round(first - start, 4),
        total_s=round(time.monotonic() - start, 4),
    )
