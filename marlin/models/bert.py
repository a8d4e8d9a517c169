"""BERT, an encoder: what it makes of a text are the states of its tokens, which see each other.

Word, position and type embeddings are added and normed; every text is of the first type. RoBERTa
and its descendants are the same but for the row of the table where positions begin. In a GGUF file
they are BERTs whose table begins there, and DistilBERT one without types.
"""

from dataclasses import dataclass
from typing import Any

from marlin.files.fields import Fields, file_fields
from marlin.models.config import (
    GGUF,
    HF,
    MAX_CONTEXT_TOKENS,
    MAX_VOCAB,
    ModelConfig,
    read_sizes,
)
from marlin.models.config_gguf import fields_of, vocab_size
from marlin.models.layers import Attention
from marlin.models.layers_encoder import FeedForward, PostNormLayer
from marlin.models.rope import RopeScaling
from marlin.models.spec import (
    Family,
    FullKV,
    LayerNorm,
    LearnedInput,
    Linear,
    ModelSpec,
    Names,
    Tensor,
)
from marlin.weights.gguf import GGUFFile

# Of token types; models have two.
MAX_TYPES = 1 << 10
# Of the classes in config.json those that a head beside the encoder does not change.
_HEADS = ("Model", "ForMaskedLM", "ForPreTraining")


@dataclass(frozen=True, slots=True)
class BertConfig(ModelConfig):
    """rms_norm_eps is that of its layer norms.

    Attributes:
        num_types: of token types.
        first_position: the row of the position table that a text's first token has.
    """

    num_types: int = 2
    first_position: int = 0


class Bert(Family[BertConfig]):
    model_type = "bert"
    hf_class = "BertModel"
    gguf_architecture: str | None = "bert"

    def config_from_hf(self, fields: Fields) -> BertConfig:
        fields.choice("hidden_act", ("gelu",), "gelu")
        fields.choice("position_embedding_type", ("absolute",), "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            if fields.flag(name, False):
                fields.fail(name, "false (an encoder)")
        known = tuple(self.hf_class.replace("Model", head) for head in _HEADS)
        classes = fields.texts("architectures", known)
        if not any(name in known for name in classes):
            fields.fail("architectures", "one of " + ", ".join(known))
        sizes = read_sizes(fields, HF)
        _check_heads(fields, sizes, "num_key_value_heads", "head_dim")
        first = self._first_position(fields)
        sizes["max_context_tokens"] -= first
        if sizes["max_context_tokens"] < 1:
            fields.fail("max_position_embeddings", f"more than the {first} before a text's first")
        return self._config(
            sizes,
            fields.count("vocab_size", maximum=MAX_VOCAB),
            fields.number("layer_norm_eps", 1e-12, maximum=1.0),
            fields.count("type_vocab_size", 2, maximum=MAX_TYPES),
            first,
        )

    def _first_position(self, fields: Fields) -> int:
        return 0

    def config_from_gguf(self, file: GGUFFile) -> BertConfig:
        fields, general = fields_of(file, "bert"), file_fields(file.path, file.metadata)
        if fields.flag("attention.causal", False):
            fields.fail("attention.causal", "false (an encoder)")
        sizes = read_sizes(fields, GGUF)
        _check_heads(fields, sizes, "attention.head_count_kv", "attention.key_length")
        num_types = 0
        if "token_types.weight" in file.tensors:
            num_types = general.count("tokenizer.ggml.token_type_count", maximum=MAX_TYPES)
        eps = fields.number("attention.layer_norm_epsilon", maximum=1.0)
        return self._config(sizes, vocab_size(general, file.tensors), eps, num_types)

    def _config(self, sizes, vocab_size, eps, num_types, first_position=0):
        return BertConfig(
            architecture=self.model_type,
            **sizes,
            vocab_size=vocab_size,
            rms_norm_eps=eps,
            rope_theta=1.0,
            rope_scaling=RopeScaling(),
            tie_embeddings=False,
            windows=(None,) * sizes["num_layers"],
            eos_token_ids=(),
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            num_types=num_types,
            first_position=first_position,
        )

    def hf_config(self, config: BertConfig) -> dict[str, Any]:
        return {
            "architectures": [self.hf_class],
            "model_type": self.model_type,
            "hidden_act": "gelu",
            "num_hidden_layers": config.num_layers,
            "hidden_size": config.hidden_dim,
            "intermediate_size": config.intermediate_dim,
            "num_attention_heads": config.num_heads,
            "max_position_embeddings": config.max_context_tokens,
            "vocab_size": config.vocab_size,
            "type_vocab_size": config.num_types,
            "layer_norm_eps": config.rms_norm_eps,
        }

    def spec(self, config: BertConfig) -> ModelSpec:
        dim, names = config.hidden_dim, Names("embeddings.", "")

        def table(name, gguf, rows, role="other") -> Tensor:
            return Tensor(f"{names.hf}{name}.weight", f"{gguf}.weight", (rows, dim), role)

        first, types = config.first_position, None
        if config.num_types:
            types = table("token_type_embeddings", "token_types", config.num_types)
        return ModelSpec(
            config,
            table("word_embeddings", "token_embd", config.vocab_size, "embedding"),
            tuple(_layer(config, index) for index in range(config.num_layers)),
            norm=None,
            lm_head=None,
            unused=("pooler.dense.", "cls.", "lm_head.", "embeddings.position_ids"),
            learned=LearnedInput(
                table("position_embeddings", "position_embd", first + config.max_context_tokens),
                first,
                types,
                _norm(names, "LayerNorm", "token_embd_norm", dim),
            ),
        )


class Roberta(Bert):
    """Its positions begin behind that of the token that fills texts up."""

    gguf_architecture = None

    def __init__(self, model_type: str, hf_class: str):
        self.model_type, self.hf_class = model_type, hf_class

    def _first_position(self, fields: Fields) -> int:
        return 1 + fields.count("pad_token_id", 1, minimum=0, maximum=MAX_CONTEXT_TOKENS)

    def hf_config(self, config: BertConfig) -> dict[str, Any]:
        first = config.first_position
        own = {"max_position_embeddings": first + config.max_context_tokens}
        return super().hf_config(config) | own | {"pad_token_id": first - 1}


ROBERTAS = (
    Roberta("roberta", "RobertaModel"),
    Roberta("xlm-roberta", "XLMRobertaModel"),
    Roberta("camembert", "CamembertModel"),
)


def _check_heads(fields, sizes, kv_heads, head_dim):
    """A BERT's heads share out the hidden values, and each has keys of its own."""
    if sizes["num_kv_heads"] != sizes["num_heads"]:
        fields.fail(kv_heads, f"the {sizes['num_heads']} query heads, or absent")
    if sizes["num_heads"] * sizes["head_dim"] != sizes["hidden_dim"]:
        fields.fail(head_dim, f"{sizes['hidden_dim'] // sizes['num_heads']}, or absent")


def _layer(config, index):
    names, dim = Names(f"encoder.layer.{index}.", f"blk.{index}."), config.hidden_dim
    inner = config.intermediate_dim

    def linear(name, gguf, shape, role="attention") -> Linear:
        return names.linear(name, gguf, shape, role, True)

    q, k, v = (
        linear(f"attention.self.{word}", f"attn_{word[0]}", (dim, dim))
        for word in ("query", "key", "value")
    )
    o = linear("attention.output.dense", "attn_output", (dim, dim))
    cache = FullKV(config.num_heads, config.head_dim)
    scale = config.head_dim**-0.5
    return PostNormLayer(
        Attention(None, None, q, k, v, o, None, cache, config.num_heads, scale),
        _norm(names, "attention.output.LayerNorm", "attn_output_norm", dim),
        FeedForward(
            linear("intermediate.dense", "ffn_up", (inner, dim), "mlp"),
            linear("output.dense", "ffn_down", (dim, inner), "mlp"),
        ),
        _norm(names, "output.LayerNorm", "layer_output_norm", dim),
    )


def _norm(names, name, gguf, dim):
    return LayerNorm(
        *(
            Tensor(f"{names.hf}{name}.{end}", f"{names.gguf}{gguf}.{end}", (dim,))
            for end in ("weight", "bias")
        )
    )
