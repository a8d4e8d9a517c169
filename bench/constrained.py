#!/usr/bin/env python3
"""What exact output costs: compiling, masks, and 16 streams under masks beside 16 free ones.

    .venv/bin/python bench/constrained.py MODEL.gguf [--vocabulary FILE.gguf] [--schemas FOLDER]

Masks are made over the model's vocabulary, or over that of --vocabulary, any GGUF file with a
tokenizer (the 151,000 tokens of Qwen 2.5, say). Schemas are a dozen of its own, or those of a
folder of files {"schema": ..., "tests": [{"valid": true, "data": ...}]}, jsonschemabench's, a
sample of --count; the answers under masks are their valid instances. A mask is timed the first time
that its position comes, and again; times are the thread's own. llguidance does the same where it is
installed. The streams run in the engine alone, without a server; --rounds of each kind take turns.
A busy machine spoils them.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from marlin.device import abi
from marlin.device.grammar import Automaton, Vocabulary
from marlin.engine.constraint import Grammars, Guide
from marlin.engine.load import Batching, load_model
from marlin.engine.request import TokenEvent
from marlin.engine.sampling import SamplingParams
from marlin.errors import MarlinError
from marlin.text.gguf_tokenizer import tokenizer_from_gguf
from marlin.text.grammar.automaton import json_text
from marlin.text.grammar.constraint import JsonSchema, compile_grammar
from marlin.weights.gguf import GGUFFile

NUM_TOKENS = 128  # of a prompt, and of an answer


def closed(**properties):
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 100_000}
PERSON = closed(name=TEXT, age=COUNT, email={"type": "string", "format": "email"})
CASES = (
    ({"type": "object"}, {"a": [1, 2.5, None], "b": {"c": "text \n with an escape"}}),
    (PERSON, {"name": "Ada Lovelace", "age": 36, "email": "ada@example.org"}),
    (closed(kind={"enum": ["red", "green", "blue"]}, on={"type": "boolean"}),
     {"kind": "green", "on": True}),
    (closed(people={"type": "array", "items": PERSON, "maxItems": 50}),
     {"people": [{"name": "Bob", "age": 1, "email": "b@b.de"}] * 5}),
    (closed(id={"type": "string", "format": "uuid"}, at={"type": "string", "format": "date-time"}),
     {"id": "01234567-89ab-cdef-0123-456789abcdef", "at": "2024-02-29T12:00:00Z"}),
    (closed(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4,6}$"}), {"code": "AB-12345"}),
    (closed(short={"type": "string", "maxLength": 40}), {"short": "no more than this"}),
    ({"anyOf": [PERSON, {"type": "array", "items": COUNT}]}, [1, 22, 333, 4444]),
    ({"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {"v": COUNT, "of":
      {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "additionalProperties": False}}},
     {"v": 1, "of": [{"v": 2, "of": [{}, {"v": 3}]}]}),
)  # fmt: skip
# Neither kind of stream ends before its tokens do.
ENDLESS = {"type": "array", "items": PERSON, "minItems": 1000}


def cases_of(folder, count):
    """(schema, instances) of a folder's files, a sample."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    for name in random.Random(1).sample(names, min(count, len(names))):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            case = json.load(file)
        yield case["schema"], [test["data"] for test in case["tests"] if test["valid"]][:3]


class Ours:
    """Grammars of this project over one vocabulary."""

    name = "metal-marlin"

    def __init__(self, tokenizer):
        library = abi.load_library(abi.library_path("cpu"))
        self._vocabulary: Vocabulary = Grammars(library, tokenizer, tokenizer.vocab_size).vocabulary
        self._out = np.zeros(self._vocabulary.num_words, np.uint32)

    def compiled(self, schema):
        try:
            return Automaton(self._vocabulary, compile_grammar(JsonSchema(schema), "schema"))
        except MarlinError:
            return None

    def masks(self, automaton, token_ids):
        """Milliseconds of the masks before each token; None where they refuse one."""
        times, guide = [], Guide(automaton)
        for token_id in token_ids:
            began = time.thread_time()
            guide.mask((), self._out)
            times.append((time.thread_time() - began) * 1000)
            if not self._out[token_id // 32] >> (token_id % 32) & 1:
                return None
            guide.advance((token_id,))
        return times


class Theirs:
    """llguidance over the same vocabulary; ImportError where it is not installed."""

    name = "llguidance"

    def __init__(self, tokenizer):
        import llguidance
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        end = min(tokenizer.eos_token_ids)
        size = tokenizer.vocab_size

        class Given:
            eos_token_id, bos_token_id = end, None
            tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
            special_token_ids = [i for i in range(size) if tokenizer.is_special(i)]

            def __call__(self, text):
                return tokenizer.encode(text, add_special_tokens=False)

        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Given()))
        self._bits, self._fill = allocate_token_bitmask(1, size), fill_next_token_bitmask

    def compiled(self, schema):
        grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = self._library.LLMatcher(self._tokenizer, grammar)
        return None if matcher.is_error() else matcher

    def masks(self, matcher, token_ids):
        matcher.reset()
        times = []
        for token_id in token_ids:
            began = time.thread_time()
            self._fill(matcher, self._bits)
            times.append((time.thread_time() - began) * 1000)
            if not matcher.consume_token(token_id):
                return None
        return times


def measure(engine, cases, encode):
    compiles, first, again, refused, blocked = [], [], [], 0, 0
    for schema, instances in cases:
        began = time.thread_time()
        compiled = engine.compiled(schema)
        if compiled is None:
            refused += 1
            continue
        compiles.append((time.thread_time() - began) * 1000)
        for instance in instances:
            token_ids = encode(json_text(instance).decode())
            for times in (first, again):
                found = engine.masks(compiled, token_ids)
                times.extend(found or ())
                blocked += found is None
    print(f"{engine.name}: {len(compiles)} schemas, {refused} refused, {blocked} answers not taken")
    for name, times in (("compile", compiles), ("mask, first", first), ("mask, again", again)):
        if times:
            middle, late = np.percentile(times, (50, 99))
            print(f"  {name:12} median {middle:.3f} ms, p99 {late:.3f}, most {max(times):.3f}")


def rates_of(engine, grammar, num_streams):
    """(tokens a second, processor ms a token) of streams of NUM_TOKENS that begin at once."""
    chooser = random.Random(2)
    params = SamplingParams(
        temperature=1.0, seed=3, max_tokens=NUM_TOKENS, ignore_eos=True, grammar=grammar
    )
    prompts = [
        [chooser.randrange(1000, 30_000) for _ in range(NUM_TOKENS)] for _ in range(num_streams)
    ]
    requests = [engine.submit(prompt, params, str(i)) for i, prompt in enumerate(prompts)]
    first = None
    num_tokens = 0
    for request in requests:
        while isinstance(event := request.events.get(), TokenEvent):
            if num_tokens >= num_streams:
                first = first or (time.perf_counter(), time.process_time(), num_tokens)
            num_tokens += len(event.token_ids)
    num_tokens -= first[2]
    wall, processor = time.perf_counter() - first[0], time.process_time() - first[1]
    return num_tokens / wall, 1000 * processor / num_tokens


def compare_streams(path, num_streams, rounds, num_threads):
    model = load_model(path, num_threads, batching=Batching(1024, 16, num_streams))
    engine = model.engine
    engine.prepare()
    grammar = compile_grammar(JsonSchema(ENDLESS), "schema")
    rates = {"free": [], "constrained": []}
    for index in range(rounds + 1):
        for name, one in (("free", None), ("constrained", grammar)):
            found = rates_of(engine, one, num_streams)
            if index:  # the first warms caches up
                rates[name].append(found)
    for name, found in rates.items():
        speed, cost = map(statistics.median, zip(*found, strict=True))
        print(f"{num_streams} streams {name}: {speed:.0f} tokens/s, {cost:.2f} processor ms each")
    pairs = zip(*rates.values(), strict=True)
    losses = [(1 - less[0] / most[0], less[1] / most[1] - 1) for most, less in pairs]
    for name, found in zip(("tokens/s", "processor time"), zip(*losses, strict=True), strict=True):
        low, middle, high = min(found), statistics.median(found), max(found)
        print(f"  loss in {name}: {middle:.1%} (rounds {low:.1%} to {high:.1%})")
    engine.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--vocabulary", help="a GGUF file; its tokenizer alone is read")
    parser.add_argument("--schemas", help="a folder as jsonschemabench's maskbench/data")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="0 leaves the streams out")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    cases = [(schema, [instance]) for schema, instance in CASES]
    if args.schemas:
        cases = list(cases_of(args.schemas, args.count))
    path = args.vocabulary or args.model
    tokenizer = tokenizer_from_gguf(GGUFFile(path).metadata, path)
    print(f"{tokenizer.vocab_size} tokens, {len(cases)} schemas")
    for kind in (Ours, Theirs):
        try:
            engine = kind(tokenizer)
        except ImportError as error:
            print(f"{kind.name} is left out: {error}")
            continue
        measure(engine, cases, lambda text: tokenizer.encode(text, add_special_tokens=False))
    if args.rounds:
        compare_streams(args.model, args.streams, args.rounds, args.threads)


if __name__ == "__main__":
    main()
