"""Answers under a grammar, of a real tiny model whose tokens are characters: they satisfy it, and
are the same alone, among others, preempted and with guesses."""

import json
import re
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from engine_fixture import TIMEOUT_S, GatedRunner
from tiny_models import random_tensors, random_tokens, running, tiny_config, write_folder

from marlin.engine.constraint import Grammars, Guide
from marlin.engine.draft import Drafter
from marlin.engine.engine import Engine
from marlin.engine.request import FinishEvent, TokenEvent
from marlin.engine.sampling import SamplingParams
from marlin.engine.thought_budget import ThoughtGuide, ThoughtLimit
from marlin.errors import DeviceError, RequestError
from marlin.text.grammar.constraint import Constraint, JsonSchema, Regex

VOCAB, END = 97, 96
PROMPTS = [random_tokens(count, VOCAB, seed=count) for count in (1, 15, 17, 40)]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["ab", "abc"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Characters:
    """Tokens 0 to 95 are the characters from blank on, 96 ends an answer."""

    vocab_size, byte_exact, eos_token_ids = VOCAB, True, frozenset({END})

    def token_bytes(self, token_id):
        return bytes([32 + token_id]) if token_id < END else b"<end>"

    def encode(self, text, *, add_special_tokens=True):
        return [ord(char) - 32 for char in text]

    def is_special(self, token_id):
        return token_id == END


def grammar(part):
    return Constraint(part, "part").compiled()


def matching(pattern):
    return grammar(Regex(pattern))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config()
    return write_folder(tmp_path_factory.mktemp("model"), config, random_tensors(config, seed=3))


@contextmanager
def serving(folder, **options):
    with running(folder, **{"context": 160, **options}) as runner:
        grammars = Grammars(runner.device.library, Characters(), VOCAB)
        engine = Engine(GatedRunner(runner), {END}, grammars=grammars)
        try:
            yield engine
        finally:
            engine._runner.open()
            engine.close()


def submit(engine, prompt, grammar, **params):
    params = SamplingParams(
        **{"temperature": 1.0, "top_p": 1.0, "seed": 5, "max_tokens": 100, "grammar": grammar}
        | params
    )
    return engine.submit(prompt, params, "r")


def read(request):
    """(text, FinishEvent)."""
    token_ids = []
    while isinstance(event := request.events.get(timeout=TIMEOUT_S), TokenEvent):
        token_ids += event.token_ids
    assert isinstance(event, FinishEvent)
    return "".join(chr(32 + token_id) for token_id in token_ids), event


def answers(engine, grammars, **params):
    requests = [
        submit(engine, prompt, one, **{"seed": seed} | params)
        for seed, one in enumerate(grammars)
        for prompt in PROMPTS
    ]
    return [read(request)[0] for request in requests], requests


@pytest.fixture(scope="module")
def grammars():
    return [grammar(JsonSchema(SCHEMA)), matching("(ab|abc){3,5}!"), None, matching(r"-?\d{1,9}")]


@pytest.fixture(scope="module")
def alone(folder, grammars):
    """Each answer by itself, in sequential mode."""
    with serving(folder) as engine:
        return answers(engine, grammars)[0]


def test_every_answer_satisfies_its_grammar_and_ends(alone):
    for text in alone[: len(PROMPTS)]:
        value = json.loads(text)
        assert set(value) <= {"name", "age", "tags"} and 1 <= value["age"] <= 99
        assert len(value["name"]) <= 12 and set(value.get("tags", ())) <= {"ab", "abc"}
    for text in alone[len(PROMPTS) : 2 * len(PROMPTS)]:
        assert re.fullmatch("(ab|abc){3,5}!", text)
    for text in alone[3 * len(PROMPTS) :]:
        assert re.fullmatch(r"-?\d{1,9}", text)
    assert len(set(alone)) > len(alone) // 2, "the model chose nothing"


def test_among_others_and_preempted_the_answers_are_the_same(folder, grammars, alone):
    with serving(folder, sequences=16, blocks=(24, 16)) as engine:
        found, requests = answers(engine, grammars)
    assert found == alone
    assert sum(request.num_preemptions for request in requests) > 0


def test_guesses_are_cut_where_the_grammar_forbids_them(folder, grammars, alone, monkeypatch):
    """Each guess is right for the first two tokens, and then an end that may not come."""
    known = {}

    def propose(self, request, num_step_rows):
        text = known.get((tuple(request.prompt_token_ids), request.params.grammar), "")
        rest = [ord(char) - 32 for char in text[len(request.output_token_ids) :]][:2]
        return [*rest, 0, 1] if len(rest) == 2 else []

    constrained = [one for one in grammars if one is not None]
    with serving(folder) as engine:
        expected, requests = answers(engine, constrained)
        for text, request in zip(expected, requests, strict=True):
            known[tuple(request.prompt_token_ids), request.params.grammar] = text
    monkeypatch.setattr(Drafter, "propose", propose)
    with serving(folder, drafts=16) as engine:
        found, requests = answers(engine, constrained)
    assert found == expected
    assert sum(request.num_accepted_draft_tokens for request in requests) > 20


def test_log_probabilities_are_those_before_the_mask(folder):
    with serving(folder) as engine:
        events = []
        for one in (None, matching("[a-c]{5}")):
            request = submit(engine, PROMPTS[1], one, num_logprobs=3, max_tokens=1)
            events.append(request.events.get(timeout=TIMEOUT_S))
    assert events[0].logprobs[0].top == events[1].logprobs[0].top
    assert events[1].logprobs[0].logprob < events[0].logprobs[0].top[0][1]


def test_a_grammar_that_no_token_can_follow_ends_its_request_alone(folder):
    with serving(folder, sequences=2, blocks=(20, 16)) as engine:
        stuck = submit(engine, PROMPTS[0], matching("aé"))
        other = submit(engine, PROMPTS[1], matching("[a-z]{20}"))
        text, finish = read(stuck)
        assert (text, finish.reason) == ("a", "error")
        assert "goes on in no token" in str(finish.error)
        assert re.fullmatch("[a-z]{20}", read(other)[0])


def test_a_prepared_engine_looks_at_no_token_when_a_grammar_comes(folder, monkeypatch):
    with serving(folder) as engine:
        engine.prepare()
        monkeypatch.setattr(Characters, "token_bytes", None)
        assert re.fullmatch("[a-c]{5}", read(submit(engine, PROMPTS[0], matching("[a-c]{5}")))[0])


def test_a_grammar_that_nothing_satisfies_is_refused_when_it_comes(folder):
    with serving(folder) as engine, pytest.raises(RequestError, match="nothing satisfies"):
        submit(engine, PROMPTS[0], grammar(JsonSchema(False)))


def test_a_grammar_whose_memory_is_full_begins_anew(folder, monkeypatch):
    """As if there were room for one position: each step finds its place from the text."""
    with serving(folder) as engine:
        expected = read(submit(engine, PROMPTS[2], matching("([a-z]{3},){9}")))[0]
        one = matching("([a-z]{3},){9}")
        guide = engine.guide_of(SamplingParams(grammar=one))
        automaton = guide._automaton
        mask, calls = automaton.mask, []

        def forgetful(position, out, known=False):
            calls.append(position)
            if len(calls) % 3 == 1:
                raise MemoryError("full")
            return mask(position, out, known)

        monkeypatch.setattr(automaton, "mask", forgetful)
        assert read(submit(engine, PROMPTS[2], one))[0] == expected
        assert automaton.generation > 5


def test_a_grammar_that_has_no_room_even_alone_is_an_error_in_its_words():
    resets = []
    guide = object.__new__(Guide)
    guide._automaton = SimpleNamespace(reset=lambda: resets.append(1))

    def fail():
        raise MemoryError(f"full {len(resets)}")

    with pytest.raises(DeviceError, match="^full 1$"):
        guide._try(fail)
    assert resets == [1]


def limited(num_tokens, **changes):
    texts = {"opening": "<t>", "closing": "</t>", "forced": " </t> ", "is_open": True}
    return ThoughtLimit(num_tokens, **texts | changes)


def test_a_thought_that_has_had_its_tokens_is_closed_alone_and_among_others(folder):
    asked = [(prompt, limited(count)) for prompt in PROMPTS for count in (0, 1, 7, 10**12)]
    free = matching("[^<]{0,40}</t> ?[a-c]{5}")  # a thought of its own, and what comes after
    found = {}
    for options in ({}, {"sequences": 16, "blocks": (40, 16)}, {"drafts": 16}):
        with serving(folder, **options) as engine:
            for grammar in (None, free):
                requests = [
                    submit(engine, prompt, grammar, thought=limit, max_tokens=60)
                    for prompt, limit in asked
                ]
                texts = [read(request)[0] for request in requests]
                assert found.setdefault(grammar, texts) == texts
    num_closed = 0
    for grammar, texts in found.items():
        for (_, limit), text in zip(asked, texts, strict=True):
            if limit.num_tokens < min(10, len(text)) and "</t>" not in text[: limit.num_tokens]:
                assert text[limit.num_tokens :].startswith(" </t> "), text
                num_closed += 1
            if grammar is not None and limit.num_tokens < 10:
                assert re.fullmatch("[a-c]{5}", text.rpartition("</t>")[2].strip()), text
    assert num_closed > len(asked)


def test_where_a_thought_begins_and_ends_is_seen_token_by_token():
    tokens = [Characters().token_bytes(token_id) for token_id in range(END)] + [b""]

    def forced_at(text, limit):
        """Where the closing text begins in an answer that goes on as the text does."""
        guide = ThoughtGuide(limit, Characters().encode(limit.forced), tokens, None)
        out = np.zeros((VOCAB + 31) // 32, np.uint32)
        for place, char in enumerate(text):
            guide.mask((), out)
            if np.unpackbits(out.view(np.uint8)).sum() == 1:
                return place
            guide.advance([ord(char) - 32])
        return None

    assert forced_at("abcdef", limited(3)) == 3
    assert forced_at("ab</t>cdefgh", limited(9)) is None
    assert forced_at("  <t>abcd", limited(3, is_open=False)) == 8
    assert forced_at("a<t>bcdefg", limited(3, is_open=False)) is None
    assert forced_at("a<t>bcdefg", limited(3, is_open=False, repeats=True)) == 7
    assert forced_at("<t>b</t>x<t>cdef", limited(7, is_open=False, repeats=True)) == 14
    assert forced_at("<t>abcd", limited(0, is_open=False)) == 3
    assert forced_at("ab</tx", limited(5)) == 5
