"""Vectors and scores of texts against transformers, alone and in any company, from an engine."""

import queue
import time

import numpy as np
import pytest
from engine_fixture import TIMEOUT_S
from pytorch import torch
from reference_models import HalfCache, build
from tiny_models import open_device, random_tokens

from marlin.engine.engine import Engine
from marlin.engine.kv_cache import Paging
from marlin.engine.pooler import Pooler
from marlin.engine.request import FinishEvent, VectorEvent
from marlin.engine.runner import Runner
from marlin.engine.sampling import SamplingParams
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model
from marlin.models.pooling import Pooling

# As test_parity.py's: of vectors whose values are near 1.
TOLERANCE = 1e-3
LENGTHS = (1, 2, 15, 16, 17, 33, 90, 5, 64)
YES_NO = (11, 7)
POOLINGS = {
    "last": Pooling("last", normalised=False),
    "mean": Pooling("mean", normalised=False),
    "cls": Pooling("cls", normalised=False),
    "rank": Pooling("rank"),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(folder, transformers model, texts as token ids)."""
    model = build("qwen3")
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    vocab_size = model.config.vocab_size
    return folder, model, [random_tokens(n, vocab_size, seed=n) for n in LENGTHS]


class Running:
    """An engine over a folder's model, of a step's 32 tokens."""

    def __init__(self, folder, paging, sequences):
        device = open_device(None)
        model = Model(open_checkpoint(folder, device))
        self.engine = Engine(Runner(device, model, paging, 32, sequences), ())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.engine.close()

    def pool(self, texts, pooling, client=""):
        """The vectors of texts that are there at once."""
        requests = [
            self.engine.pool(text, Pooler(pooling, YES_NO), f"r{i}", client)
            for i, text in enumerate(texts)
        ]
        return [result(request) for request in requests]


def result(request):
    events = [request.events.get(timeout=TIMEOUT_S) for _ in range(2)]
    assert [type(event) for event in events] == [VectorEvent, FinishEvent]
    assert events[1].reason == "stop"
    return events[0].vector


def alone(folder):
    return Running(folder, Paging.contiguous(128), 1)


def batched(folder, num_blocks=64):
    return Running(folder, Paging(num_blocks, 16, 8), 6)


def expected(model, token_ids, kind):
    with torch.no_grad():
        ids = torch.tensor([token_ids])
        if kind == "rank":
            logits = model(ids, past_key_values=HalfCache(), use_cache=True).logits[0, -1]
            yes_no = logits[list(YES_NO)]
            return torch.softmax(yes_no, 0).numpy()[:1]
        kept = {"past_key_values": HalfCache(), "use_cache": True}
        states = model.model(ids, **kept).last_hidden_state[0].numpy()
    return {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[kind]


@pytest.mark.parametrize("kind", POOLINGS)
def test_vectors_agree_with_transformers(case, kind):
    folder, model, texts = case
    with alone(folder) as running:
        found = running.pool(texts, POOLINGS[kind])
    for text, vector in zip(texts, found, strict=True):
        assert np.abs(vector - expected(model, text, kind)).max() < TOLERANCE


@pytest.mark.parametrize("kind", POOLINGS)
def test_vectors_are_the_same_bits_alone_together_and_beside_a_generation(case, kind):
    folder, _, texts = case
    with alone(folder) as running:
        one_by_one = [running.pool([text], POOLINGS[kind])[0] for text in texts]
    params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.0)
    with batched(folder) as running:
        generation = running.engine.submit(texts[5], params, "g", "another")
        together = running.pool(texts, POOLINGS[kind])
        again = running.pool(texts[::-1], POOLINGS[kind])[::-1]
        generation.abort()
    for vector, same, once_more in zip(one_by_one, together, again, strict=True):
        assert vector.tobytes() == same.tobytes() == once_more.tobytes()


def test_a_text_that_lost_its_blocks_has_the_same_vector(case):
    """Five sequences of up to six blocks in a pool of eight: some are computed anew."""
    folder, _, texts = case
    long = [text * 2 if len(text) == 33 else text for text in texts if len(text) > 15]
    with alone(folder) as running:
        wanted = running.pool(long, POOLINGS["mean"])
    with batched(folder, num_blocks=8) as running:
        first = running.engine.pool(long[-1], Pooler(POOLINGS["mean"]), "a", "a client")
        found = running.pool(long, POOLINGS["mean"], "another")
        assert result(first).tobytes() == wanted[-1].tobytes()
    assert [v.tobytes() for v in found] == [v.tobytes() for v in wanted]


def test_a_shared_beginning_is_computed_once_for_the_last_token_and_anew_for_a_mean(case):
    folder, _, texts = case
    with batched(folder) as running:
        cached = []
        for kind in ("last", "last", "mean"):
            request = running.engine.pool(texts[6], Pooler(POOLINGS[kind]), kind)
            result(request)
            cached.append(request.num_cached_tokens)
    assert cached == [0, 80, 0]


def test_normalised_vectors_have_length_1(case):
    folder, model, texts = case
    with alone(folder) as running:
        (found,) = running.pool([texts[3]], Pooling("last"))
    reference = expected(model, texts[3], "last")
    assert np.abs(found - reference / np.linalg.norm(reference)).max() < TOLERANCE
    assert abs(np.linalg.norm(found) - 1) < 1e-6


def test_an_aborted_text_ends_without_a_vector(case):
    folder, _, texts = case
    with alone(folder) as running:
        params = SamplingParams(max_tokens=100, ignore_eos=True)
        running.engine.submit(texts[0], params, "g")
        request = running.engine.pool(texts[6], Pooler(POOLINGS["last"]), "r")
        request.abort()
        assert request.events.get(timeout=TIMEOUT_S).reason == "abort"


def test_a_long_list_of_one_client_leaves_others_their_tokens(case):
    """A generation of another client goes on while 200 texts are embedded."""
    folder, _, texts = case
    with batched(folder) as running:
        many = [
            running.engine.pool(texts[6], Pooler(POOLINGS["mean"]), f"r{i}", "many")
            for i in range(200)
        ]
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        generation = running.engine.submit(texts[3], params, "g", "one")
        reason = None
        while reason is None:
            event = generation.events.get(timeout=TIMEOUT_S)
            reason = event.reason if isinstance(event, FinishEvent) else None
        assert reason == "length"
        num_done = sum(not request.events.empty() for request in many)
        assert num_done < 100
        for request in many:
            request.abort()
        end = time.monotonic() + TIMEOUT_S
        while running.engine.stats().num_running and time.monotonic() < end:
            time.sleep(0.01)


def test_states_that_are_not_numbers_are_an_error(case):
    pooler = Pooler(Pooling("mean"))
    pooler.add(0, np.array([[1.0, np.nan]], np.float32))
    assert pooler.result() is None


def test_an_engine_that_is_closed_takes_no_text(case):
    folder, _, texts = case
    with alone(folder) as running:
        request = running.engine.pool(texts[6], Pooler(POOLINGS["last"]), "r")
        running.engine.close()
        reasons = []
        while True:
            try:
                event = request.events.get_nowait()
            except queue.Empty:
                break
            reasons.append(getattr(event, "reason", "vector"))
    assert reasons[-1] in ("abort", "stop")
