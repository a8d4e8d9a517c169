"""BERT, an encoder: what it makes of a text are the states of its tokens, which see each other.

Word, position and type embeddings are added and normed; every text is of the first type. Names of
RoBERTa and its descendants are others, and their positions begin elsewhere: they are no BERTs here.
"""

from dataclasses import dataclass

from marlin.files.fields import Fields
from marlin.models.config import HF, MAX_VOCAB, ModelConfig, read_sizes
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

# Of token types; models have two.
MAX_TYPES = 1 << 10
# Of the classes in config.json those that a head beside the encoder does not change.
_CLASSES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")


@dataclass(frozen=True, slots=True)
class BertConfig(ModelConfig):
    """rms_norm_eps is that of its layer norms.

    Attributes:
        num_types: of token types.
    """

    num_types: int = 2


class Bert(Family[BertConfig]):
    model_type = "bert"
    hf_class = "BertModel"

    def config_from_hf(self, fields: Fields) -> BertConfig:
        fields.choice("hidden_act", ("gelu",), "gelu")
        fields.choice("position_embedding_type", ("absolute",), "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            if fields.flag(name, False):
                fields.fail(name, "false (an encoder)")
        classes = fields.texts("architectures", _CLASSES)
        if not any(name in _CLASSES for name in classes):
            fields.fail("architectures", "one of " + ", ".join(_CLASSES))
        sizes = read_sizes(fields, HF)
        _check_heads(fields, sizes)
        return self._config(
            sizes,
            fields.count("vocab_size", maximum=MAX_VOCAB),
            fields.number("layer_norm_eps", 1e-12, maximum=1.0),
            fields.count("type_vocab_size", 2, maximum=MAX_TYPES),
        )

    def _config(self, sizes, vocab_size, eps, num_types):
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
        )

    def hf_config(self, config: BertConfig) -> dict:
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

        def table(name, gguf, rows, role="other"):
            return Tensor(f"{names.hf}{name}.weight", f"{gguf}.weight", (rows, dim), role)

        return ModelSpec(
            config,
            table("word_embeddings", "token_embd", config.vocab_size, "embedding"),
            tuple(_layer(config, index) for index in range(config.num_layers)),
            norm=None,
            lm_head=None,
            unused=("pooler.dense.", "cls.", "embeddings.position_ids"),
            learned=LearnedInput(
                table("position_embeddings", "position_embd", config.max_context_tokens),
                table("token_type_embeddings", "token_types", config.num_types),
                _norm(names, "LayerNorm", "token_embd_norm", dim),
            ),
        )


def _check_heads(fields, sizes):
    """A BERT's heads share out the hidden values, and each has keys of its own."""
    if sizes["num_kv_heads"] != sizes["num_heads"]:
        expected = f"the {sizes['num_heads']} query heads, or absent"
        fields.fail("num_key_value_heads", expected)
    if sizes["num_heads"] * sizes["head_dim"] != sizes["hidden_dim"]:
        expected = f"{sizes['hidden_dim'] // sizes['num_heads']}, or absent"
        fields.fail("head_dim", expected)


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
