#!/usr/bin/env python3
"""What `--speculative` gains and costs: the same requests with and without it, in turn.

    .venv/bin/python bench/speculation.py MODEL.gguf [--draft-model PATH] [--streams 1,4,16]

Two engines over the same file answer each task, one after the other in every round, and are opened
anew for each, so that neither a machine whose speed drifts nor a lucky place in memory favours one;
figures are medians of rounds, the gain that of the rounds' own ratios. Answers are compared: they
have to be equal. Times run from the first token of an answer to its last with one stream, and from
the submission of all to the last token with more. A first table says what a step costs by the rows
it has, each with its logits and its draw.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from marlin.device.device import Device
from marlin.engine.kv_cache import Paging
from marlin.engine.load import Batching, load_model
from marlin.engine.request import Chunk, FinishEvent, Request
from marlin.engine.runner import Runner
from marlin.engine.sampling import SamplingParams
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model
from marlin.text.conversation import Conversation

PROSE = (
    "The marlin is a large fish of the open sea. It has a long body, a spear-like snout and a tall "
    "fin along its back. Marlins are among the fastest swimmers: some have been timed at 80 "
    "kilometres an hour. They hunt smaller fish such as mackerel and tuna, and strike them with "
    "the snout before eating them. Females grow much larger than males and may weigh more than "
    "500 kilograms. Fishermen prize them, and many are set free after the catch."
)
CODE = """settings = {
    "host": "127.0.0.1",
    "port": 8000,
    "workers": 4,
    "timeout": 30,
    "log_level": "info",
    "log_file": "/var/log/server.log",
    "database": "postgres",
    "database_host": "10.0.0.5",
    "database_port": 5432,
    "database_user": "server",
    "cache_size": 1024,
    "cache_seconds": 60,
    "allow_uploads": True,
    "upload_folder": "/var/uploads",
    "upload_limit": 1048576
}
"""
# (name, prompt, sampling): what repeats its prompt most to what does so least.
TASKS = (
    ("copy", f"Repeat the following text word for word:\n\n{PROSE}", {"temperature": 0.0}),
    (
        "edit",
        f"Repeat this code with the port changed to 9000:\n\n```python\n{CODE}```",
        {"temperature": 0.0},
    ),
    ("summary", f"Summarize the following text:\n\n{PROSE}", {"temperature": 0.0}),
    ("story", "Write a long story about a fisherman and a dragon.", {"temperature": 0.8}),
    ("noise", "Write words.", {"temperature": 2.0, "top_p": 1.0}),
)


def print_row_costs(arguments):
    """Milliseconds of a step in which one sequence has 1 to 16 rows, after 128 tokens."""
    device = Device(arguments.threads)
    model = Model(open_checkpoint(arguments.model, device))
    runner = Runner(device, model, Paging.contiguous(256), 128, 1, max_draft_tokens=15)
    request = Request("rows", [7] * 129, SamplingParams(), seed=0, block_ids=[0])
    runner.step([Chunk(request, 0, 128)])
    times = {rows: [] for rows in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)}
    for _ in range(5 * arguments.rounds):
        for rows, found in times.items():
            begin = time.perf_counter()
            runner.step([Chunk(request, 128, 1, tuple(range(1, rows)))])
            found.append(1000 * (time.perf_counter() - begin))
    print("rows" + "".join(f"{rows:7}" for rows in times))
    print("ms  " + "".join(f"{statistics.median(found):7.2f}" for found in times.values()))
    runner.close()
    device.close()


class Record:
    """What one kind of engine did, by task."""

    def __init__(self):
        self.rates, self.num_drafted, self.num_accepted = {}, {}, {}

    def add(self, name, rate, requests):
        self.rates.setdefault(name, []).append(rate)
        for counts, attribute in (
            (self.num_drafted, "num_draft_tokens"),
            (self.num_accepted, "num_accepted_draft_tokens"),
        ):
            counts[name] = counts.get(name, 0) + sum(getattr(r, attribute) for r in requests)


def method(arguments):
    return "draft" if arguments.draft_model else "ngram"


def serving(arguments, num_streams, speculative):
    batching = None
    if num_streams > 1:
        batching = Batching(num_streams * arguments.context // 16, 16, num_streams)
    return load_model(
        arguments.model,
        num_threads=arguments.threads,
        max_context_tokens=arguments.context,
        batching=batching,
        speculative=speculative,
        draft_model=arguments.draft_model if speculative == "draft" else None,
    )


def answer(model, task, num_streams, max_tokens, seed, record):
    """Answer a task once on every stream; returns the answers' token ids."""
    name, prompt, sampling = task
    conversation = Conversation([{"role": "user", "content": prompt}])
    token_ids = model.encode_chat(conversation).token_ids
    begin = time.perf_counter()
    requests = [
        model.engine.submit(
            token_ids, SamplingParams(**sampling, max_tokens=max_tokens, seed=seed + i), name
        )
        for i in range(num_streams)
    ]
    answers = []
    for request in requests:
        answers.append([])
        while not isinstance(event := request.events.get(), FinishEvent):
            if num_streams == 1 and not answers[0]:
                begin = time.perf_counter()
            answers[-1] += event.token_ids
    seconds = time.perf_counter() - begin
    record.add(name, (sum(map(len, answers)) - (num_streams == 1)) / seconds, requests)
    return answers


def one_round(arguments, num_streams, number, records):
    """Both engines, opened in turn: the order of opening decides who gets the better memory."""
    kind = method(arguments)
    order = (kind, None) if number % 2 else (None, kind)
    models = {kind: serving(arguments, num_streams, kind) for kind in order}
    sizes = (num_streams, arguments.output_tokens, 1000 * number)
    for place, task in enumerate(TASKS):
        turn = order if place % 2 else order[::-1]
        first, second = (answer(models[kind], task, *sizes, records[kind]) for kind in turn)
        if first != second:
            sys.exit(f"{task[0]}: the answers differ")
    for model in models.values():
        model.engine.close()


def measure(arguments, num_streams):
    """Print the table of one number of streams."""
    off, on = Record(), Record()
    for number in range(arguments.rounds):
        one_round(arguments, num_streams, number, {None: off, method(arguments): on})
    print(f"\n{num_streams} streams: output tokens/s, medians of {arguments.rounds} rounds")
    print(f"{'task':>9}{'off':>9}{'on':>9}{'gain':>8}{'guessed':>10}{'right':>8}")
    for name, *_ in TASKS:
        gains = [b / a for a, b in zip(off.rates[name], on.rates[name], strict=True)]
        drafted, accepted = on.num_drafted[name], on.num_accepted[name]
        print(
            f"{name:>9}{statistics.median(off.rates[name]):9.0f}"
            f"{statistics.median(on.rates[name]):9.0f}{statistics.median(gains):8.2f}"
            f"{drafted:10}{accepted / max(1, drafted):8.0%}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--draft-model", metavar="PATH", help="that guesses, in place of the text")
    parser.add_argument("--streams", default="1", help="numbers of requests at once, in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    print_row_costs(arguments)
    for count in arguments.streams.split(","):
        measure(arguments, int(count))


if __name__ == "__main__":
    main()
