"""Answers of the demo model under random schemas: every finished one is valid, and alone it is what
it is among others. METAL_MARLIN_GENERATIONS says how many; without it a few dozen."""

import json
import os
import random

import pytest
from random_schemas import random_schema

from marlin.engine.load import Batching, load_model
from marlin.engine.request import FinishEvent
from marlin.engine.sampling import SamplingParams
from marlin.text.answer import AnswerForm, AnswerReader
from marlin.text.grammar.constraint import Constraint, JsonSchema
from marlin.text.tool_calls.hermes import FAMILY
from marlin.text.tool_calls.shape import ToolGrammar

jsonschema = pytest.importorskip("jsonschema", reason="pip install .[test-light] brings it")

COUNT = int(os.environ.get("METAL_MARLIN_GENERATIONS", "48"))
MAX_TOKENS = 160
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(demo_model_path):
    served = load_model(demo_model_path, 2, 512, batching=Batching(512, 16, 16))
    yield served
    served.close()


def submit(model, grammar, index):
    prompt = model.tokenizer.encode(f"Give me JSON number {index}:\n")
    temperature = (0.0, 0.8, 1.5)[index % 3]
    params = SamplingParams(
        temperature=temperature, seed=index, max_tokens=MAX_TOKENS, grammar=grammar
    )
    return model.engine.submit(prompt, params, str(index))


def read(model, request):
    """(text, finish reason)."""
    token_ids = []
    while not isinstance(event := request.events.get(timeout=600), FinishEvent):
        token_ids += event.token_ids
    assert event.reason in ("stop", "length"), event
    return model.tokenizer.decode(token_ids), event.reason


@pytest.mark.long
def test_every_finished_answer_to_a_random_schema_is_valid_and_the_same_alone(model):
    schemas = [random_schema(random.Random(seed)) for seed in range(COUNT)]
    grammars = [Constraint(JsonSchema(schema), "schema").compiled() for schema in schemas]
    answers = []
    for first in range(0, COUNT, 64):
        indices = range(first, min(first + 64, COUNT))
        requests = [submit(model, grammars[index], index) for index in indices]
        answers += [read(model, request) for request in requests]
    finished = 0
    for schema, (text, reason) in zip(schemas, answers, strict=True):
        if reason == "stop":
            finished += 1
            value = json.loads(text)
            assert jsonschema.Draft202012Validator(schema).is_valid(value), (schema, text)
    print(f"{finished} of {COUNT} finished, {len({text for text, _ in answers})} different")
    assert finished > 0.9 * COUNT
    for index in range(0, COUNT, 8):
        assert read(model, submit(model, grammars[index], index)) == answers[index]


def test_a_call_that_must_be_made_parses_with_arguments_as_its_schema_says(model):
    asked = ToolGrammar(FAMILY.shape, FAMILY.markers, {"weather": WEATHER}, 1, True, True)
    grammar = asked.constraint(None).compiled()
    requests = [submit(model, grammar, index) for index in range(6)]
    for text, reason in [read(model, request) for request in requests]:
        assert reason == "stop"
        reader = AnswerReader(AnswerForm(None, FAMILY), {"weather": WEATHER})
        parts = [*reader.push(text), *reader.finish(is_cut=False)]
        arguments = "".join(part.text for part in parts if part.kind == "arguments")
        assert [part.text for part in parts if part.kind == "call"] == ["weather"]
        assert not "".join(part.text for part in parts if part.kind == "content").strip()
        jsonschema.validate(json.loads(arguments), WEATHER)
