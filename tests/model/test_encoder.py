"""BERTs against transformers: tiny random ones from their folders, and a published one, served."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from engine_fixture import TIMEOUT_S
from pytorch import torch
from served import ROOT, Served
from tiny_models import (
    INSTRUCTION_SETS,
    open_device,
    random_tensor,
    random_tokens,
    tiny_family_config,
)
from transformers import BertConfig, BertForMaskedLM, BertModel

from marlin.commands.quantize import quantize
from marlin.engine import load
from marlin.engine.encoder import MAX_TEXTS, EncoderRunner, EncoderSizes
from marlin.engine.engine import Engine
from marlin.engine.load import Batching
from marlin.engine.pooler import Pooler
from marlin.engine.request import FinishEvent, VectorEvent
from marlin.engine.sampling import SamplingParams
from marlin.errors import ConfigError, ModelFileError, NotServedError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model
from marlin.models.pooling import Pooling
from marlin.models.registry import config_from_hf, family_of, spec_of

# Values of a normed state are near 1; keys and values are kept as float16, of which transformers
# knows nothing here.
TOLERANCE = 4e-3
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 300,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}
CASES = {
    "plain": {},
    "of odd sizes": {"hidden_size": 96, "num_attention_heads": 2, "vocab_size": 131},
    "of one type": {"type_vocab_size": 1},
}
# Past a split of the context, and more than a step has room for together.
LENGTHS = (1, 2, 16, 17, 40, 257, 300, 33)
KINDS = ("cls", "mean", "last")


def build(model_class=BertModel, seed=0, **changes):
    model = model_class(BertConfig(**SIZES | changes)).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random_tensor(name, tuple(parameter.shape), rng)))
    return model


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, texts, float32 [tokens, dim] of each text)."""
    model = build(**CASES[request.param])
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    texts = [random_tokens(n, model.config.vocab_size, seed=n) for n in LENGTHS]
    return folder, texts, [states_of(model, text) for text in texts]


def test_an_encoder_generates_nothing(tmp_path):
    build().save_pretrained(tmp_path)
    with Running(tmp_path) as running, pytest.raises(NotServedError, match="generates no text"):
        running.engine.submit([1], SamplingParams(), "r")


@pytest.mark.parametrize(
    ("batching", "speculative", "is_told"),
    [(None, False, False), (Batching(16, 64, 4), False, True), (None, True, True)],
)
def test_what_changes_nothing_for_an_encoder_is_told(batching, speculative, is_told, caplog):
    spec = spec_of(tiny_family_config("bert"))
    own = spec.config.max_context_tokens
    sizes = load._encoder_sizes(spec, None, None, batching, speculative)
    assert sizes == EncoderSizes.of(own)
    assert ("change nothing" in caplog.text) == is_told


def test_an_encoder_has_the_context_that_was_asked_for_and_no_more_than_its_own():
    spec = spec_of(tiny_family_config("bert"))
    own = spec.config.max_context_tokens
    for wanted in (own - 1, own):
        assert load._encoder_sizes(spec, None, wanted, None, False) == EncoderSizes.of(wanted)
    with pytest.raises(ConfigError):
        load._encoder_sizes(spec, None, own + 1, None, False)


def states_of(model, token_ids):
    with torch.no_grad():
        return model(torch.tensor([token_ids])).last_hidden_state[0].numpy()


class Running:
    """An engine over an encoder."""

    def __init__(self, folder, isa=None, num_threads=2):
        device = open_device(isa, num_threads)
        model = Model(open_checkpoint(folder, device))
        sizes = EncoderSizes.of(model.config.max_context_tokens)
        runner = EncoderRunner(device, model, sizes.paging, sizes.step_tokens, MAX_TEXTS)
        self.engine = Engine(runner, ())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.engine.close()

    def pool(self, texts, kind="mean"):
        pooling = Pooling(kind, normalised=False)
        requests = [
            self.engine.pool(text, Pooler(pooling, is_whole=True), f"r{i}")
            for i, text in enumerate(texts)
        ]
        return [result(request) for request in requests]


def result(request):
    events = [request.events.get(timeout=TIMEOUT_S) for _ in range(2)]
    assert [type(event) for event in events] == [VectorEvent, FinishEvent], events
    return events[0].vector


def pooled(states, kind):
    return {"cls": states[0], "mean": states.mean(0), "last": states[-1]}[kind]


def test_vectors_agree_with_transformers(case):
    folder, texts, states = case
    with Running(folder) as running:
        for kind in KINDS:
            found = zip(running.pool(texts, kind), states, strict=True)
            errors = [np.abs(vector - pooled(own, kind)).max() for vector, own in found]
            assert max(errors) < TOLERANCE, (kind, errors)


def test_a_token_sees_those_behind_it(case):
    """The first token's state, of a text and of one that differs in its last token alone."""
    folder, texts, _ = case
    text = texts[5]
    with Running(folder) as running:
        one, other = running.pool([text, [*text[:-1], (text[-1] + 1) % 90]], "cls")
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_vectors_are_the_same_bits_alone_together_and_on_any_threads(case, isa):
    folder, texts, _ = case
    with Running(folder, isa, 1) as running:
        alone = [running.pool([text])[0].tobytes() for text in texts]
    with Running(folder, isa, 3) as running:
        together = [vector.tobytes() for vector in running.pool(texts)]
        others = [vector.tobytes() for vector in running.pool(texts[::-1] * 2)]
    assert alone == together and alone[::-1] * 2 == others


def test_weights_of_two_bytes_and_names_beside_a_head_are_read(tmp_path):
    model = build(BertForMaskedLM, tie_word_embeddings=False)
    text = random_tokens(40, model.config.vocab_size)
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        model.to(dtype).save_pretrained(folder)
        expected = states_of(BertForMaskedLM.from_pretrained(folder).float().bert, text)
        with Running(folder) as running:
            (found,) = running.pool([text])
        assert np.abs(found - expected.mean(0)).max() < TOLERANCE
        model.float()


def test_a_config_is_read_back_as_it_was_written(case, tmp_path):
    config = config_from_hf(case[0])
    (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
    assert config_from_hf(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected one of gelu"),
        ({"position_embedding_type": "relative_key"}, "expected one of absolute"),
        ({"is_decoder": True}, r"is_decoder is True; expected false \(an encoder\)"),
        ({"architectures": ["BertForSequenceClassification"]}, "architectures"),
        ({"architectures": [{}]}, "architectures"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"head_dim": 32}, "head_dim"),
        ({"model_type": "nomic_bert"}, "model_type is 'nomic_bert'; expected one of"),
        ({"model_type": "modernbert"}, "model_type is 'modernbert'; expected one of"),
        ({"num_attention_heads": 3}, "hidden_size"),
        ({"type_vocab_size": 0}, "type_vocab_size"),
        ({"vocab_size": 96}, "word_embeddings.weight.*has shape"),
    ],
)
def test_what_is_no_such_encoder_is_refused_by_name(tmp_path, changes, says):
    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelFileError, match=says):
        open_checkpoint(tmp_path, open_device(None))


# --- a published one ---


@pytest.fixture(scope="module")
def minilm(fetched_model):
    return fetched_model("minilm-l6")


def fifty_texts():
    words = (
        "The cat sat on unbelievable electroencephalography, naïve café! 深い 海 über straße (x+y) "
        "12345 'quoted' don't e-mail 🙂 I.B.M. <tag> [SEP] ½ Ελληνικά"
    ).split()
    rng = np.random.default_rng(7)
    return ["", *(" ".join(rng.choice(words, n)) for n in range(1, 50))]


@pytest.mark.downloads
def test_minilm_equals_sentence_transformers_algorithm_alone_and_batched(minilm):
    """Mean of BertModel's states over all tokens, at length 1: to 1e-3 in cosine, in one call and
    a call each."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm), BertModel.from_pretrained(minilm)
    texts = fifty_texts()
    with Served(minilm, "--host", "127.0.0.1") as server:
        together = embeddings(server, texts)
        alone = [embeddings(server, [text])[0] for text in texts]
        refused = server.ask("POST", "/v1/completions", {"model": minilm.name, "prompt": "a"})
        long = server.ask("POST", "/v1/embeddings", {"model": minilm.name, "input": "a " * 300})
    assert together == alone
    for text, vector in zip(texts, together, strict=True):
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            states = model.eval()(**encoded).last_hidden_state[0].numpy()
        expected = states.mean(0) / np.linalg.norm(states.mean(0))
        assert 1 - float(expected @ np.array(vector)) < 1e-5
        assert math.isclose(np.linalg.norm(vector), 1, abs_tol=1e-6)
    assert refused[0] == 400 and "makes embeddings" in refused[1]["error"]["message"]
    assert long[1]["error"]["message"] == "input has 302 tokens; a text may have 256"


@pytest.mark.downloads
def test_minilm_in_eight_bits_is_nearly_the_same(minilm, tmp_path):
    quantize(minilm, tmp_path / "all-MiniLM-L6-v2", "int8", 64, lambda *_: None)
    texts = fifty_texts()[::7]
    found = []
    for folder in (minilm, tmp_path / "all-MiniLM-L6-v2"):
        with Served(folder, "--host", "127.0.0.1") as server:
            found.append(np.array(embeddings(server, texts)))
    assert (found[0] * found[1]).sum(axis=1).min() > 0.99


@pytest.mark.downloads
def test_generating_with_an_encoder_is_refused_by_name(minilm):
    command = [sys.executable, "-m", "marlin", "generate", str(minilm), "Hi"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "makes embeddings, and generates no text" in done.stderr


def embeddings(server, texts):
    status, body = server.ask(
        "POST", "/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": texts}
    )
    assert status == 200, body
    return [item["embedding"] for item in body["data"]]
