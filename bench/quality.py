"""What bits cost: the KL divergence to a float model of each way to quantize its layers, ours and
those of llama.cpp and MLX, as a table and a plot.

    .venv/bin/python bench/quality.py MODEL.gguf --text TEXT --ggml FOLDER [--plot FILE.svg]

Ours are what `metal-marlin quantize` makes of a layer; llama.cpp's are made by its own library in
FOLDER (libggml-base), with an importance matrix of the same calibration text or without; MLX's by
its published formulas. Matrices of layers alone are quantized, and run in float32, so that nothing
but rounding of weights is compared. A MODEL that is quantized itself is made a float model first:
each weight gets a uniform draw from what rounds to it, since its own lattice would favour a format.
"""

import argparse
import ctypes
import json
import math
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from marlin.commands import quantize as command
from marlin.device.device import Device
from marlin.engine.calibration import METHODS, pack_for, texts_of
from marlin.engine.layerwise import LayerRunner
from marlin.engine.mixing import MIX_TOKENS, bits_of, choose, sensitivities
from marlin.models.registry import spec_of
from marlin.models.source import open_source
from marlin.weights import formats, ggml_types
from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.kinds import GROUP_SIZES
from marlin.weights.rounding import E2M1

OURS = (
    *(("fp4", 64), ("iq4", 64), ("fp4", 32), ("iq4", 32), ("int4", 64), ("int4", 32)),
    ("int8", 32),
)
MIXED_BITS = (4.25, 4.5, 5.0, 8.5)
GGML_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "IQ4_NL": 20, "IQ4_XS": 23}
# A row of K types is whole blocks of this many values; shorter ones are joined.
SUPER_BLOCK = 256
# Positions whose logits are compared at a time, and those of a text that have too little before
# them to count.
LOGIT_ROWS, UNSCORED = 64, 128


def write_float_model(source, folder, seed=0):
    """A Hugging Face folder of float32 values that round to the source's."""
    rng = np.random.default_rng(seed)
    source.write_companions(folder, None)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for tensor in source.tensors:
        values = tensor.rows(0, tensor.shape[0]).astype(np.float32).reshape(tensor.shape)
        if BLOCK_TYPES[tensor.info.dtype].values > 1:
            groups = values.reshape(-1, 16)
            gaps = np.diff(np.sort(groups, axis=1), axis=1)
            gaps[gaps < 1e-5 * np.abs(groups).max(axis=1, keepdims=True)] = np.inf
            steps = gaps.min(axis=1, keepdims=True)
            steps[~np.isfinite(steps)] = 0
            groups += (steps * (rng.random(groups.shape) - 0.5)).astype(np.float32)
        tensors[tensor.name] = values
    save_file(tensors, folder / "model.safetensors")


def mlx_affine(weights, group_size):
    """MLX's affine mode of 4 bits, scales and biases in float16."""
    groups = weights.reshape(-1, group_size)
    low, high = groups.min(axis=1), groups.max(axis=1)
    from_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / 15, 1e-7)
    scale = np.where(from_low, scale, -scale)
    edge = np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scale)
    bias = np.where(steps != 0, edge, 0)
    codes = np.clip(np.rint((groups - bias[:, None]) / scale[:, None]), 0, 15)
    scale, bias = (part.astype(np.float16).astype(np.float32)[:, None] for part in (scale, bias))
    return (codes * scale + bias).reshape(weights.shape)


def mlx_fp4(weights, group_size, round_scale):
    """MLX's mxfp4 and nvfp4: the largest magnitude over 6, rounded, is a group's scale."""
    groups = weights.reshape(-1, group_size)
    scale = round_scale(np.abs(groups).max(axis=1) / np.float32(6))[:, None]
    ratio = np.abs(groups) / np.where(scale > 0, scale, 1)
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    return (np.sign(groups) * E2M1[np.searchsorted(middles, ratio)] * scale).reshape(weights.shape)


def e8m0(scale):
    return np.exp2(np.rint(np.log2(np.maximum(scale, 2.0**-126)))).astype(np.float32)


def e4m3(scale):
    exponent = np.floor(np.log2(np.maximum(scale, 2.0**-6)))
    step = np.exp2(exponent - 3)
    return np.minimum(np.rint(scale / step) * step, 448).astype(np.float32)


class Ggml:
    """llama.cpp's quantizers, by its library."""

    def __init__(self, folder):
        (path, *_) = sorted(Path(folder).glob("**/libggml-base.*"))
        self._quantize = ctypes.CDLL(str(path)).ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        numbers = [ctypes.c_int64] * 3
        floats = ctypes.c_void_p
        self._quantize.argtypes = [ctypes.c_int, floats, floats, *numbers, floats]

    def __call__(self, weights, power, name, weighted):
        """weights as they are read back; power: mean squares of inputs."""
        joined = 1
        if BLOCK_TYPES[name].values == SUPER_BLOCK:
            joined = SUPER_BLOCK // math.gcd(SUPER_BLOCK, weights.shape[1])
        rows, columns = weights.shape[0] // joined, weights.shape[1] * joined
        source = np.ascontiguousarray(weights, np.float32)
        block = BLOCK_TYPES[name]
        out = np.zeros(rows * columns // block.values * block.bytes, np.uint8)
        importance = np.tile(power, joined).astype(np.float32) if weighted else None
        address = None if importance is None else importance.ctypes.data
        sizes = 0, rows, columns
        self._quantize(GGML_TYPES[name], source.ctypes.data, out.ctypes.data, *sizes, address)
        return ggml_types.dequantize(name, out, (rows, columns)).reshape(weights.shape)


class Comparison:
    """A float model, what it says of the text, and what its matrices are given."""

    def __init__(self, folder, texts, num_seen, layers, cache):
        self.source = open_source(folder)
        self.spec = spec_of(self.source.config)
        self._sources = {tensor.name: tensor for tensor in self.source.tensors}
        self._texts, self._num_seen = texts, num_seen
        count = len(self.spec.layers)
        self.layers = {round(i * (count - 1) / max(1, layers - 1)) for i in range(layers)}
        head = self._sources[self.spec.lm_head.name]
        self._head = head.rows(0, head.shape[0]).astype(np.float32)
        if cache.exists():
            self.power = dict(np.load(cache))
        else:
            self.power = {}
            self.power["exact"] = self._run(texts, self._watch)[num_seen:]
            np.savez(cache, **self.power)
        self._exact = self.power["exact"]

    def _watch(self, runner, index):
        for stage in runner.stages:
            total = 0
            for x in self._inputs(runner, stage):
                total = total + np.square(x).mean(axis=0) / self._num_seen
            self.power |= {tensor.name: total for tensor in stage.tensors}

    def _run(self, texts, change):
        device = Device()
        runner = LayerRunner(device, self.spec, self._sources, texts)
        for index in range(len(self.spec.layers)):
            runner.load(index)
            change(runner, index)
            runner.advance()
        states = runner.finish()
        device.close()
        return states

    def measure(self, make, is_seen):
        """(bits, KL, its standard error, share of equal best tokens).

        Args:
            make: (weights, power, inputs, name) to (values, bits) of a matrix: the mean squares of
                its inputs in the float model, and a function that gives what it is given now.
            is_seen: whether make asks for the latter, so that the calibration text must pass, too.
        """
        bits, sizes = [], []

        def change(runner, index):
            for stage in runner.stages if index in self.layers else ():
                inputs = partial(self._inputs, runner, stage)
                for tensor in stage.tensors:
                    source = self._sources[tensor.name]
                    weights = source.rows(0, source.shape[0])
                    values, cost = make(weights, self.power[tensor.name], inputs, tensor.name)
                    runner.replace(tensor, 0, values)
                    bits.append(cost)
                    sizes.append(weights.size)

        texts = self._texts if is_seen else self._texts[self._num_seen :]
        states = self._run(texts, change)[-len(self._exact) :]
        found = [self._kl(*pair) for pair in zip(self._exact, states, strict=True)]
        kl, same = (np.concatenate(part) for part in zip(*found, strict=True))
        error = kl.std() / math.sqrt(len(kl))
        return float(np.average(bits, weights=sizes)), kl.mean(), error, same.mean()

    def _inputs(self, runner, stage):
        return islice(runner.inputs(stage), self._num_seen)

    def _kl(self, exact, states):
        parts = []
        for start in range(UNSCORED, len(exact), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            logs = [self._log_probabilities(part[rows]) for part in (exact, states)]
            same = logs[0].argmax(axis=1) == logs[1].argmax(axis=1)
            parts.append(((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1), same))
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _log_probabilities(self, states):
        logits = states @ self._head.T * np.float32(self.spec.logit_scale)
        if cap := self.spec.logit_cap:
            logits = cap * np.tanh(logits / cap)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Mix:
    """What --mixed chooses for the matrices that are compared."""

    def __init__(self, comparison, text):
        self._comparison, self._text, self._found = comparison, text, {}

    def __call__(self, bits):
        if not self._found:
            source, device = self._comparison.source, Device()
            names = set(self._comparison.power) - {"exact"}
            self._found = sensitivities(device, source, names, self._text, print_progress)
            device.close()
        return choose(self._found, bits)


def print_progress(done, total):
    print(f"weighed {done} of {total} layers", file=sys.stderr, flush=True)


def ways(ggml, mix):
    """(name, make, whether make sees its inputs) of everything that is compared."""
    for format, size in OURS:
        for method in ("nearest", *METHODS):
            make = partial(ours, format, size, method)
            yield f"{format} g{size} {method}", make, method != "nearest"
    for bits in MIXED_BITS:
        yield f"mixed {bits:g} gptq", partial(mixed, mix, bits), True
    for name in GGML_TYPES if ggml else ():
        yield name, partial(theirs, ggml, name, False), False
        if name != "Q8_0":
            yield f"{name} imatrix", partial(theirs, ggml, name, True), False
    for name, quantizer, bits in (
        ("MLX affine g64", partial(mlx_affine, group_size=64), 4.5),
        ("MLX affine g32", partial(mlx_affine, group_size=32), 5.0),
        ("MLX mxfp4", partial(mlx_fp4, group_size=32, round_scale=e8m0), 4.25),
        ("MLX nvfp4", partial(mlx_fp4, group_size=16, round_scale=e4m3), 4.5),
    ):
        yield name, partial(formula, quantizer, bits), False


def mixed(mix, bits, weights, power, inputs, name):
    return ours(*mix(bits)[name], "gptq", weights, power, inputs, name)


def ours(format, group_size, method, weights, _, inputs, __):
    sizes = [size for size in GROUP_SIZES if size <= group_size and weights.shape[1] % size == 0]
    pack = formats.quantize if method == "nearest" else pack_for(inputs(), method)
    packed = pack(format, weights, max(sizes))
    return formats.dequantize(packed), bits_of(format, max(sizes))


def theirs(ggml, name, weighted, weights, power, *_):
    block = BLOCK_TYPES[name]
    return ggml(weights, power, name, weighted), 8 * block.bytes / block.values


def formula(quantizer, bits, weights, *_):
    return quantizer(weights), bits


def print_row(row):
    print(
        f"| {row['name']} | {row['bits']:.2f} | {row['kl']:.4f} ± {row['error']:.4f} "
        f"| {row['same']:.1%} | {row['seconds']:.0f} s |",
        flush=True,
    )


def plot(rows, path):
    """Bits a weight against KL, logarithmic, as SVG."""
    wide, high, margin = 860, 560, 70
    low, top = (f(math.log10(row["kl"]) for row in rows) for f in (min, max))

    def place(row):
        share = (math.log10(row["kl"]) - low) / (top - low or 1)
        y = high - margin - share * (high - 2 * margin)
        return margin + (row["bits"] - 4) / 5 * (wide - 3 * margin), y

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}">']
    parts.append(f'<rect width="{wide}" height="{high}" fill="white"/>')
    for bits in range(4, 10):
        x = margin + (bits - 4) / 5 * (wide - 3 * margin)
        parts.append(f'<text x="{x}" y="{high - 30}" font-size="12">{bits} bits</text>')
    for row in rows:
        x, y = place(row)
        ours = row["name"].split()[0] in ("mixed", *formats.FORMATS)
        colour = "#c33" if ours else "#357"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        words = f"{row['name']} {row['kl']:.4f}"
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 3:.1f}" font-size="9">{words}</text>')
    Path(path).write_text("\n".join([*parts, "</svg>"]) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="GGUF file or Hugging Face folder")
    parser.add_argument("--text", required=True, help="what is predicted; nothing learns from it")
    parser.add_argument("--calibration", help="what is learnt from (default: the package's)")
    parser.add_argument("--ggml", help="folder with llama.cpp's libraries")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--calibration-tokens", type=int, default=command.DEFAULT_TOKENS)
    parser.add_argument("--layers", type=int, default=10**6, help="to quantize, evenly spread")
    parser.add_argument("--only", default="", help="names, or parts of them, with commas between")
    parser.add_argument("--scratch", help="folder for models, kept (default: a temporary one)")
    parser.add_argument("--json", help="file for the figures; those that it has are kept")
    parser.add_argument("--plot", help="SVG file")
    return parser.parse_args()


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(args.scratch or temporary)
        folder = scratch / "float"
        if not folder.exists():
            folder.mkdir(parents=True)
            write_float_model(open_source(args.model), folder)
        learnt = Path(args.calibration or command.DEFAULT_TEXT).read_text(encoding="utf-8")
        tokenizer = open_source(folder).load_tokenizer()
        seen = texts_of(tokenizer.encode(learnt), args.calibration_tokens)
        held_out = tokenizer.encode(Path(args.text).read_text(encoding="utf-8"))
        texts = np.concatenate([seen, texts_of(held_out, args.tokens)])
        num_layers = len(spec_of(open_source(folder).config).layers)
        cache = scratch / f"exact-{seen.size}-{texts.size}.npz"
        layers = min(args.layers, num_layers)
        comparison = Comparison(folder, texts, len(seen), layers, cache)
        mix = Mix(comparison, texts_of(tokenizer.encode(learnt), MIX_TOKENS))
        rows = run(args, comparison, ways(Ggml(args.ggml) if args.ggml else None, mix))
    if args.plot:
        plot(rows, args.plot)


def run(args, comparison, compared):
    """The rows of the table, printed as they come."""
    rows = []
    if args.json and Path(args.json).exists():
        rows = json.loads(Path(args.json).read_text())
    wanted = [word for word in args.only.split(",") if word]
    for name, make, is_seen in compared:
        if any(row["name"] == name for row in rows) or (
            wanted and not any(word in name for word in wanted)
        ):
            continue
        start = time.monotonic()
        bits, kl, error, same = comparison.measure(make, is_seen)
        row = {"name": name, "bits": bits, "kl": float(kl), "error": float(error)}
        rows.append(row | {"same": float(same), "seconds": time.monotonic() - start})
        print_row(rows[-1])
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1))
    return sorted(rows, key=lambda row: (row["bits"], row["kl"]))


if __name__ == "__main__":
    main()
