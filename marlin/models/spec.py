"""What a family says of a model, once: its tensors, and the functions a registry asks for.

Names in both kinds of file, loading, leftovers, `quantize` and memory sums all follow from a
Tensor. Refuses to know files, devices, and how a layer is computed (layers.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

from marlin.files.fields import Fields
from marlin.models.config import ModelConfig
from marlin.models.head_rows import HeadRows
from marlin.weights.gguf import GGUFFile

Config = TypeVar("Config", bound=ModelConfig)


@dataclass(frozen=True, slots=True)
class Stack:
    """How a folder may hold what all experts of a layer have, but as one tensor of its own name.

    Attributes:
        num_chosen: experts that a token reads.
        stacked: another name of the whole: MLX's.
        single: the name of one expert's, with {} for its number; "" where nobody writes it so.
        fused: the name of a tensor that holds `num_parts` such, of which this is number `part`.
        transposed: in `fused` a row is an input, and the parts take turns; else a row is an
            output, and the parts follow each other.
        heads: of a matrix of each head; every token reads all of them.
    """

    num_chosen: int
    stacked: str = ""
    single: str = ""
    fused: str = ""
    part: int = 0
    num_parts: int = 1
    transposed: bool = False
    heads: HeadRows | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model.

    Attributes:
        name, gguf: what Hugging Face checkpoints and GGUF files call it.
        shape: outermost first; (outputs, inputs) of a matrix, (experts, outputs, inputs) of those
            of all experts; (channels, taps) of a convolution, which files have with a 1 between.
        role: "embedding", "lm_head", "attention" or "mlp", by which `quantize` chooses a matrix's
            format and reports its error; "router", a matrix that is never quantized; "table", of
            which rows of tokens are read where they lie; "conv", which is no matrix; "other".
        rope_heads: heads whose rows a GGUF file stores in the order of interleaved RoPE; 0 where
            it keeps Hugging Face's.
        plus: added to the values of Hugging Face's checkpoints (norms that multiply by 1 + w);
            GGUF files hold the sum.
        optional: a checkpoint may do without it.
        stack: of what all experts of a layer have.
        also: another name that folders may have it under.
    """

    name: str
    gguf: str
    shape: tuple[int, ...]
    role: str = "other"
    rope_heads: int = 0
    plus: float = 0.0
    optional: bool = False
    stack: Stack | None = None
    also: str = ""

    @property
    def is_matrix(self) -> bool:
        is_bias_of_experts = self.stack is not None and self.role == "other"
        is_other = self.is_table or self.role == "conv"
        return len(self.shape) > 1 and not is_bias_of_experts and not is_other

    @property
    def is_table(self) -> bool:
        return self.role == "table"

    @property
    def has_rows(self) -> bool:
        """Whether a file may store it in any of the forms of matrices."""
        return self.is_matrix or self.is_table

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape as a matrix, the rows of all experts one below the other, or a bias each."""
        return (math.prod(self.shape[:-1]), self.shape[-1])


@dataclass(frozen=True, slots=True)
class Constant:
    """A vector of one value that no file holds, in a Tensor's place."""

    name: str
    shape: tuple[int]
    value: float


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b; bias is None where the family has none."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Fused:
    """Tensors that a file may hold as one, the rows of the first one first.

    Attributes:
        name, gguf: what that one is called, up to ".weight", ".bias" and what else a file has.
    """

    name: str
    gguf: str
    parts: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, layers: tuple[Linear, ...], name: str, fused: str, gguf: str, fused_gguf: str
    ) -> "tuple[Fused, ...]":
        """Of linear layers whose first is called `name`, and `gguf`; all of them have a bias, or
        none of them."""
        weights = tuple(layer.weight for layer in layers)
        names = weights[0].name.replace(name, fused), weights[0].gguf.replace(gguf, fused_gguf)
        found = [cls(*names, weights)]
        biases = tuple(layer.bias for layer in layers if layer.bias is not None)
        if biases:
            names = biases[0].name.replace(name, fused), biases[0].gguf.replace(gguf, fused_gguf)
            found.append(cls(*names, biases))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Names:
    """How the names of one layer's tensors begin, in both kinds of file.

    Attributes:
        norm_plus: Tensor.plus of its norms.
    """

    hf: str
    gguf: str
    norm_plus: float = 0.0

    @classmethod
    def of_layer(cls, index: int, norm_plus: float = 0.0) -> "Names":
        return cls(f"model.layers.{index}.", f"blk.{index}.", norm_plus)

    def norm(self, name: str, gguf: str, size: int) -> Tensor:
        name, gguf = f"{self.hf}{name}.weight", f"{self.gguf}{gguf}.weight"
        return Tensor(name, gguf, (size,), plus=self.norm_plus)

    def linear(
        self,
        name: str,
        gguf: str,
        shape: tuple[int, int],
        role: str,
        has_bias: bool = False,
        rope_heads: int = 0,
    ) -> Linear:
        name, gguf = self.hf + name, self.gguf + gguf
        bias = None
        if has_bias:
            bias = Tensor(f"{name}.bias", f"{gguf}.bias", shape[:1], rope_heads=rope_heads)
        return Linear(Tensor(f"{name}.weight", f"{gguf}.weight", shape, role, rope_heads), bias)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class LearnedInput:
    """What an encoder adds to its embedding, and the norm of the sum.

    Attributes:
        positions: [first + max_context_tokens, hidden_dim].
        first: the row of a text's first token.
        types: [any, hidden_dim], of which texts have the first; None where there are none.
    """

    positions: Tensor
    first: int
    types: Tensor | None
    norm: LayerNorm


@dataclass(frozen=True, slots=True)
class FullKV:
    """A layer that keeps the key and value of every token, float16 or float32."""

    num_kv_heads: int
    head_dim: int
    dtype: str = field(default="float16", kw_only=True)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in one layer."""
        return (8 if self.dtype == "float32" else 4) * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class WindowKV(FullKV):
    """A layer whose queries see the last `window` tokens, themselves included."""

    window: int


@dataclass(frozen=True, slots=True)
class State:
    """A layer that keeps a state of a sequence, float32, of the same size however long that is.

    Attributes:
        shapes: of each part of it: rows of a convolution, matrices of a recurrence.
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def token_bytes(self) -> int:
        return 0

    @property
    def slot_bytes(self) -> int:
        """Bytes of a state in one layer."""
        return 4 * sum(math.prod(shape) for shape in self.shapes)


# What a layer keeps of a sequence. Layers of equal specs cache alike.
KvSpec = FullKV | WindowKV
CacheSpec = KvSpec | State


def tensors_of(part: object) -> Iterator[Tensor]:
    """Every Tensor in a part of a model: a dataclass whose fields are Tensors, parts or tuples of
    them. In the order of the fields, repeats included."""
    return _all_of(Tensor, part)


def constants_of(part: object) -> Iterator[Constant]:
    """Every Constant in a part of a model, as tensors_of()."""
    return _all_of(Constant, part)


def _all_of(kind, part):
    if isinstance(part, kind):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from _all_of(kind, item)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _all_of(kind, getattr(part, field.name))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model, as its family describes it.

    Attributes:
        config: its hyperparameters.
        embedding: [vocab_size, hidden_dim].
        layers: what layers.py can record, the first one first.
        norm: of the last hidden state; None of an encoder.
        lm_head: [vocab_size, hidden_dim]; the embedding again where the two are tied, and None of
            an encoder.
        embed_scale: what embeddings are multiplied by.
        embed_norm: the weights of a norm that they pass then; None where there is none.
        token_rows: what layers_per_layer.py records behind the embedding, with a table of rows.
        residual_scale: what each part's delta is multiplied by when hidden grows by it.
        logit_scale, logit_cap: logits are cap * tanh(logits * scale / cap); without a cap, which is
            0, logits * scale.
        unused: how the names of tensors begin that may lie beside the model's.
        learned: of an encoder.
    """

    config: ModelConfig
    embedding: Tensor
    layers: tuple
    norm: Tensor | None
    lm_head: Tensor | None
    embed_scale: float = 1.0
    unused: tuple[str, ...] = ()
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    embed_norm: Constant | None = None
    learned: LearnedInput | None = None
    token_rows: Any = None

    @property
    def is_encoder(self) -> bool:
        """Whether its tokens see those behind them, so that it generates nothing."""
        return self.learned is not None

    @classmethod
    def usual(
        cls,
        config: ModelConfig,
        layers: tuple,
        norm_plus: float = 0.0,
        **others,
    ) -> "ModelSpec":
        """A model whose embedding, norm and output matrix have their usual names.

        Args:
            norm_plus: Tensor.plus of the norm.
            others: other fields of ModelSpec.
        """
        dim, shape = config.hidden_dim, (config.vocab_size, config.hidden_dim)
        embedding = Tensor("model.embed_tokens.weight", "token_embd.weight", shape, "embedding")
        norm = Names("model.", "", norm_plus).norm("norm", "output_norm", dim)
        lm_head = embedding
        if not config.tie_embeddings:
            lm_head = Tensor("lm_head.weight", "output.weight", shape, "lm_head")
        return cls(config, embedding, layers, norm, lm_head, **others)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Each tensor once."""
        found = dict.fromkeys(tensors_of(self))
        assert len({tensor.name for tensor in found}) == len(found)
        return tuple(found)

    @property
    def fused(self) -> tuple[Fused, ...]:
        """What a file may hold in place of several tensors."""
        parts = (part for layer in self.layers for part in (layer.attention, layer.feed_forward))
        return tuple(fused for part in parts for fused in getattr(part, "fused", ()))


def cache_owner(spec: ModelSpec, index: int) -> int:
    """The layer whose keys and values a layer reads: itself, or an earlier one."""
    owner = getattr(spec.layers[index].attention, "owner", None)
    return index if owner is None else owner


def with_kv_dtype(spec: ModelSpec, dtype: str) -> ModelSpec:
    """The same model, whose layers keep keys and values in that type."""

    def changed(layer):
        cache = layer.attention.cache
        if not isinstance(cache, FullKV):
            return layer
        return replace(layer, attention=replace(layer.attention, cache=replace(cache, dtype=dtype)))

    return replace(spec, layers=tuple(map(changed, spec.layers)))


class Family(Generic[Config]):
    """An architecture: a subclass in a file of its own, an instance in registry.py.

    Attributes:
        model_type: config.json's, and ModelConfig.architecture.
        hf_class: `architectures` of config.json in a folder that `quantize` writes.
        gguf_architecture: `general.architecture`, or None where GGUF has no word for it.
    """

    model_type: str
    hf_class: str
    gguf_architecture: str | None = None

    def config_from_hf(self, fields: Fields) -> Config:
        """Read config.json.

        Raises:
            ModelFileError: a field is missing or wrong, or the model needs what is not supported.
        """
        raise NotImplementedError

    def config_from_gguf(self, file: GGUFFile) -> Config:
        """Read a GGUF header; raises as config_from_hf()."""
        raise NotImplementedError

    def hf_config(self, config: Config) -> dict:
        """config.json's object for a config, which config_from_hf() reads back.

        A config that the family cannot express there (a llama with biases on q, k and v alone)
        does not survive that; the caller compares.
        """
        raise NotImplementedError

    def spec(self, config: Config) -> ModelSpec:
        """The model that a config describes."""
        raise NotImplementedError
