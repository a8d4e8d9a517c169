"""Every key of docs/formats.md's tables, at random: a folder is read as `transformers` reads it, or
refused by the name of a key that asks for something else."""

import json
import re
from collections import Counter

import pytest
import test_config_keys as config_keys
import test_config_property as configs
import test_declared_tokens as tokens
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pytorch import torch
from test_config_property import SIZES, maybe, without_absent
from test_declared_tokens import backend  # noqa: F401  (a fixture)
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from marlin.errors import ModelFileError
from marlin.models.registry import config_from_hf, spec_of
from marlin.text.folder_tokenizer import load_tokenizer

# Beside those of test_config_property: what each may say, and what of that asks for nothing.
ASKING = {
    "architectures": (maybe(["XForCausalLM"], ["XModel"], ["X", "YForCausalLM"], None), "XModel"),
    "hidden_act": (maybe("silu", "gelu_pytorch_tanh", "relu"), ...),
    "hidden_activation": (maybe("gelu_pytorch_tanh", "silu", None), ...),
    "mlp_bias": (maybe(True, False), ...),
    "attention_bias": (maybe(True, False), ...),
    "partial_rotary_factor": (maybe(1, 1.0, 0.5), 0.5),
    "num_nextn_predict_layers": (maybe(0, 1, None), ...),
    "final_logit_softcapping": (maybe(None, 30.0), 30.0),
    "attn_logit_softcapping": (maybe(None, 50.0), 50.0),
    "use_bidirectional_attention": (maybe(True, False, None), True),
    "bos_token_id": (maybe(None, 1), ...),
    "quantization": (maybe(None), ...),
    "quantization_config": (maybe(None), ...),
}
WITHOUT_EFFECT = {
    "torch_dtype": maybe("bfloat16", None),
    "dtype": maybe("float16", None),
    "use_cache": maybe(True, False),
    "initializer_range": maybe(0.02, 0.5),
    "attention_dropout": maybe(0.0, 0.5),
    "transformers_version": maybe("4.40.0", "5.0.0"),
    "_name_or_path": maybe("a/b", ""),
    "pad_token_id": maybe(None, 3),
}
NUMBERS = {
    "num_hidden_layers": st.sampled_from([1, 3]),
    "intermediate_size": st.sampled_from([96, 160]),
    "num_attention_heads": st.sampled_from([4, 6]),
    "vocab_size": st.sampled_from([400, 512]),
    "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
    "max_position_embeddings": st.sampled_from([128, 512]),
    "tie_word_embeddings": maybe(True, False),
}
BASE = {**SIZES, "max_position_embeddings": 128, "head_dim": 16}
ALL = {name: strategy for name, (strategy, _) in ASKING.items()} | WITHOUT_EFFECT
# What nobody's table lists.
STRANGE = st.dictionaries(st.sampled_from(["foo", "vision_config"]), st.sampled_from([{}, 1, "x"]))
ACTIVATIONS = {"gemma3_text": "gelu_pytorch_tanh"}


def some_of(strategies, most=6):
    """A few of the keys at a time: with all of them nearly nothing would be read."""
    names = st.lists(st.sampled_from(sorted(strategies)), max_size=most, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: strategies[name] for name in chosen})
    ).map(without_absent)


def parameters(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_read_alike(ours, theirs, model_type):
    expected = parameters(theirs)
    spec = spec_of(ours)
    found = {tensor.name: tuple(tensor.shape) for tensor in spec.tensors}
    found.pop("rope_freqs.weight", None)  # of GGUF files alone
    if theirs.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert found == expected
    # A config keeps what its family does not know, too.
    known = {name for name in ALL if hasattr(type(theirs), name)}
    name = "hidden_activation" if "hidden_activation" in known else "hidden_act"
    activation = getattr(theirs, name)
    assert activation == ACTIVATIONS.get(model_type, "silu")
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.max_context_tokens == theirs.max_position_embeddings
    asking = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
    for name in known.intersection(asking):
        assert not getattr(theirs, name)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_configs_with_any_key_read_alike_or_are_refused_by_it(model_type, tmp_path):
    counts = Counter()

    # Without shrinking: each example makes a model, and names what it drew.
    @settings(max_examples=30, phases=[Phase.generate])
    @given(some_of(NUMBERS, 4), some_of(ALL), STRANGE, st.booleans())
    def check(numbers, drawn, strange, is_within):
        config = {**BASE, **strange, **drawn, **numbers, "model_type": model_type}
        is_within = is_within and model_type == "gemma3_text"
        whole = {"model_type": "gemma3", "text_config": config} if is_within else config
        (tmp_path / "config.json").write_text(json.dumps(whole))
        try:
            ours = config_from_hf(tmp_path)
        except ModelFileError as error:
            named = [name for name in config if name in error.message]
            assert "config.json: " in error.message and named, error.message
            counts["refused"] += 1
            return
        try:
            theirs = AutoConfig.from_pretrained(tmp_path)
            theirs = theirs.text_config if is_within else theirs
            parameters(theirs)
        except Exception:  # whatever transformers makes of nonsense
            return
        check_read_alike(ours, theirs, model_type)
        for name, (_, asks) in ASKING.items():
            known = hasattr(type(theirs), name) or name == "architectures"
            assert asks is ... or not known or drawn.get(name) not in (asks, [asks]), name
        counts["read"] += 1

    check()
    assert counts["read"] and counts["refused"], counts


# Of generation_config.json: values that ask for nothing, and for something.
GENERATION = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), ((1,), (2,))),
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens"), ((0,), (3,))),
    "penalty_alpha": ((0, 0.0), (0.6,)),
    "bad_words_ids": (([],), ([[5]],)),
    "force_words_ids": (([],), ([[5]],)),
    "stop_strings": (([],), (["a"], "a")),
    "sequence_bias": (([], {}), ([[[5], 1.0]],)),
    "suppress_tokens": (([],), ([5],)),
    "begin_suppress_tokens": (([],), ([5],)),
    "forced_bos_token_id": ((), (5,)),
    "forced_eos_token_id": ((), (5, [5])),
    "forced_decoder_ids": ((), ([[1, 5]],)),
    "dola_layers": ((), ("low",)),
    "watermarking_config": ((), ({"bias": 2.0},)),
    "exponential_decay_length_penalty": ((), ([5, 1.1],)),
}
SAMPLING = {
    "temperature": (0.6, None), "top_p": (0.5,), "top_k": (5, None), "min_p": (0.1,),
    "repetition_penalty": (1.3,), "do_sample": (True, False), "max_length": (7,),
    "max_new_tokens": (7, None), "eos_token_id": (7, [7, 9], None), "bos_token_id": (1, None),
    "foo": (1, "x"),
}  # fmt: skip


def generation_keys():
    values = {name: st.sampled_from([None, *neutral]) for name, (neutral, _) in GENERATION.items()}
    values |= {name: st.sampled_from(given) for name, given in SAMPLING.items()}
    return values


ASKED = st.none() | st.sampled_from(
    [(name, value) for name, (_, values) in GENERATION.items() for value in values]
)


@settings(max_examples=150)
@given(drawn=some_of(generation_keys(), 8), asked=ASKED)
def test_generation_configs_ask_for_nothing_or_are_refused_by_what_they_ask_for(
    backend,  # noqa: F811
    tmp_path,
    drawn,
    asked,
):
    content = drawn | dict([asked] if asked else [])
    tokens.write(tmp_path, backend, {"generation_config": content})
    try:
        ours = load_tokenizer(tmp_path)
    except ModelFileError as error:
        assert asked and f"generation_config.json: {asked[0]} " in error.message, error.message
        return
    assert asked is None, "what it asks for has no effect"
    theirs = GenerationConfig.from_dict(content)
    plain = GenerationConfig()
    for name in GENERATION:
        value = getattr(theirs, name, None)
        neutral = (None, getattr(plain, name, None), *GENERATION[name][0])
        assert value in neutral, name
    assert configs.as_set(theirs.eos_token_id) <= ours.eos_token_ids


TOKENIZER = {
    "clean_up_tokenization_spaces": maybe(True, False),
    "model_max_length": maybe(5, 1e30),
    "padding_side": maybe("left", "right"),
    "truncation_side": maybe("left"),
    "tokenizer_class": maybe("PreTrainedTokenizerFast"),
    "legacy": maybe(True, False),
    "use_default_system_prompt": maybe(True),
    "add_prefix_space": maybe(None),
    "chat_template": maybe("{{ messages[0].content }}", None),
    "foo": maybe(1, None),
}
FLAGS = {"add_bos_token": maybe(True, False, None), "add_eos_token": maybe(True, False, None)}


@settings(max_examples=60)
@given(named=some_of({"bos_token": maybe("|in|"), "eos_token": maybe("|too|")}, 2),
       drawn=some_of(TOKENIZER), flags=some_of(FLAGS, 2))  # fmt: skip
def test_tokenizer_configs_with_any_key_read_alike(
    backend,  # noqa: F811
    tmp_path,
    named,
    drawn,
    flags,
):
    tokens.write(tmp_path, backend, {"tokenizer_config": named | drawn | flags})
    try:
        ours = tokens.check_equal(tmp_path)
    except ModelFileError as error:
        asked = [name for name, value in flags.items() if value and name[4:] not in named]
        assert any(name in error.message or name[4:] in error.message for name in asked)
        return
    assert ours.chat_template == drawn.get("chat_template")
    for text in tokens.TEXTS:
        ids = ours.encode(text, add_special_tokens=False)
        ends = [
            [backend.token_to_id(named[name])] if flags.get(f"add_{name}") and name in named else []
            for name in ("bos_token", "eos_token")
        ]
        assert ours.encode(text) == [*ends[0], *ids, *ends[1]]
        assert ours.decode(ids, skip_special_tokens=False) == backend.decode(
            ids, skip_special_tokens=False
        )


def test_every_key_of_the_tables_is_drawn(checkout):
    page = (checkout / "docs" / "formats.md").read_text(encoding="utf-8")
    part = page.partition("\n### config.json\n")[2].partition("\n### GGUF metadata\n")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("|")]
    listed = {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)}
    drawn = {*SIZES, *configs.FIELDS, *ALL, *NUMBERS, *GENERATION, *SAMPLING, *TOKENIZER, *FLAGS}
    drawn |= {"model_type", "text_config", "vision_config"}
    # test_declared_tokens has these at random.
    drawn |= {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"}
    drawn |= {"mask_token", "added_tokens_decoder", "extra_special_tokens"}
    drawn |= {"additional_special_tokens", "split_special_tokens"}
    # Every key that a family's class declares is tried one by one.
    drawn |= {name for _, name in config_keys.KEYS}
    assert listed - drawn == set()
