"""`metal-marlin generate`: one prompt in, the model's text out as it comes.

The server's validation and prompt building, without the server.
"""

import sys
from contextlib import closing

from marlin.engine.sampling import parse_sampling
from marlin.engine.stream import TextStream
from marlin.errors import ConfigError, MarlinError
from marlin.server.api.fields import request_fields
from marlin.server.api.openai_requests import parse_stop
from marlin.server.http.limits import Limits
from marlin.text.conversation import Conversation


def run(arguments, load, stdin=None, stdout=None):
    """Run the command.

    Args:
        arguments: the parsed command line (cli.py).
        load: callable(path, device_kind=, num_threads=, max_context_tokens=,
            speculative=, allow_unknown_pretokenizer=) -> ServedModel.
        stdin, stdout: text streams; None takes the process's own.

    Returns:
        Exit code.

    Raises:
        MarlinError: a bad option, model or prompt.
    """
    stdin, stdout = stdin or sys.stdin, stdout or sys.stdout
    params = parse_sampling(request_fields(vars(arguments)))
    stops = parse_stop({"stop": arguments.stop}, Limits())
    prompt = _read_prompt(stdin) if arguments.prompt == "-" else arguments.prompt
    model = load(
        arguments.model_path,
        device_kind=arguments.device,
        num_threads=arguments.threads,
        max_context_tokens=arguments.max_context,
        speculative=arguments.speculative,
        allow_unknown_pretokenizer=arguments.allow_unknown_pretokenizer,
    )
    try:
        chat, token_ids = _prompt_token_ids(model, arguments, prompt)
        request = model.engine.submit(token_ids, params, "generate")
        stream = TextStream(request, model.tokenizer, stops, continues=not chat)
        with closing(iter(stream)) as deltas:
            for delta in deltas:
                stdout.write(delta.text)
                stdout.flush()
        stdout.write("\n")
        if delta.finish_reason == "abort":
            raise MarlinError("the engine stopped before the answer was complete")
        return 0
    finally:
        model.engine.close()


def _read_prompt(stdin):
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
    return True, model.encode_chat(Conversation(messages))
