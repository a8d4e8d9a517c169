"""Encoders as other files hold them: GGUF by the usual converters' names, and RoBERTa's folders."""

import json

import gguf
import numpy as np
import pytest
import vocabularies
from pytorch import torch
from test_encoder import SIZES, TOLERANCE, Running, build, pooled, random_tokens, states_of
from tiny_models import open_device, random_tensor
from transformers import RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

from marlin.errors import ModelFileError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.pooling import pooling_of_gguf
from marlin.models.registry import config_from_hf, family_of
from marlin.weights.gguf import GGUFFile

TEXT = random_tokens(200, 97, seed=1)
METADATA = {
    "attention.causal": False,
    "attention.layer_norm_epsilon": SIZES["layer_norm_eps"],
    "pooling_type": 1,
}


def write_gguf(path, model, metadata, kind="F32", without=()):
    """What llama.cpp's converter makes of a model."""
    writer = gguf.GGUFWriter(str(path), "bert")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](f"bert.{key}", value)
    writer.add_token_type_count(config.type_vocab_size)
    for key, value in vocabularies.word_piece_metadata(config.vocab_size).items():
        add = {str: writer.add_string, list: writer.add_array, int: writer.add_uint32}
        add[type(value)](key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name.startswith("pooler.") or found in without:
            continue
        values = parameter.detach().numpy()
        is_layers = values.ndim == 2 and found.startswith("blk.")
        stored = gguf.GGMLQuantizationType[kind if is_layers else "F32"]
        writer.add_tensor(found, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", TOLERANCE), ("F16", 0.01), ("Q8_0", 0.1)])
def test_a_gguf_file_gives_the_vectors_of_transformers(tmp_path, kind, tolerance):
    model = build(intermediate_size=128)
    write_gguf(tmp_path / "bert.gguf", model, METADATA, kind)
    with Running(tmp_path / "bert.gguf") as running:
        (found,) = running.pool([TEXT])
    assert np.abs(found - pooled(states_of(model, TEXT), "mean")).max() < tolerance


def test_a_gguf_file_without_types_adds_none(tmp_path):
    """As DistilBERT's have it."""
    model = build()
    write_gguf(tmp_path / "bert.gguf", model, METADATA, without=("token_types.weight",))
    with torch.no_grad():
        model.embeddings.token_type_embeddings.weight.zero_()
    with Running(tmp_path / "bert.gguf") as running:
        (found,) = running.pool([TEXT])
    assert np.abs(found - pooled(states_of(model, TEXT), "mean")).max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention.causal": True}, r"attention.causal is True; expected false \(an encoder\)"),
        ({"attention.head_count_kv": 2}, "attention.head_count_kv"),
        ({"attention.key_length": 32}, "attention.key_length"),
        ({"attention.layer_norm_epsilon": 2.0}, "attention.layer_norm_epsilon"),
    ],
)
def test_what_is_no_such_encoder_is_refused_by_name(tmp_path, changes, says):
    write_gguf(tmp_path / "bert.gguf", build(), METADATA | changes)
    with pytest.raises(ModelFileError, match=says):
        open_checkpoint(tmp_path / "bert.gguf", open_device(None))


def test_a_gguf_file_that_scores_pairs_is_refused_by_name(tmp_path):
    write_gguf(tmp_path / "bert.gguf", build(), METADATA | {"pooling_type": 4})
    with pytest.raises(ModelFileError, match="pooling_type is 4; expected 1"):
        pooling_of_gguf(GGUFFile(tmp_path / "bert.gguf"))


def roberta(pad=1, cls=RobertaModel, config=RobertaConfig):
    sizes = SIZES | {"type_vocab_size": 1, "pad_token_id": pad}
    model, rng = cls(config(**sizes)).eval(), np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random_tensor(name, tuple(parameter.shape), rng)))
    return model


@pytest.mark.parametrize(
    "model",
    [lambda: roberta(), lambda: roberta(5), lambda: roberta(1, XLMRobertaModel, XLMRobertaConfig)],
    ids=["roberta", "filled-with-5", "xlm-roberta"],
)
def test_positions_of_robertas_begin_behind_what_fills_texts_up(tmp_path, model):
    model = model()
    model.save_pretrained(tmp_path)
    pad = model.config.pad_token_id
    longest = [id for id in random_tokens(400, 97, seed=2) if id != pad][: 300 - pad - 1]
    config = config_from_hf(tmp_path)
    assert config.max_context_tokens == len(longest)
    with Running(tmp_path) as running:
        for text in (longest[:1], longest):
            (found,) = running.pool([text])
            assert np.abs(found - pooled(states_of(model, text), "mean")).max() < TOLERANCE
    (tmp_path / "config.json").write_text(json.dumps(family_of(config).hf_config(config)))
    assert config_from_hf(tmp_path) == config


def test_a_roberta_without_a_text_is_refused_by_name(tmp_path):
    model = roberta()
    model.config.max_position_embeddings = 2
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="max_position_embeddings is 2; expected more than"):
        config_from_hf(tmp_path)
