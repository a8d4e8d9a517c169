"""What bits cost: the KL divergence to a float model of each way to quantize its layers, ours and
those of llama.cpp and MLX, as a table and a plot.

    .venv/bin/python bench/quality.py MODEL.gguf --text TEXT --ggml FOLDER [--plot FILE.svg]
    .venv/bin/python bench/quality.py MODEL.gguf --text TEXT --ggml FOLDER --outputs LAYER

Ours are what `metal-marlin quantize` makes of a layer; llama.cpp's are made by its own library in
FOLDER (libggml-base), with an importance matrix of the same calibration text or without; MLX's by
its published formulas. Matrices of layers alone are quantized, and run in float32, so that nothing
but rounding of weights is compared. A MODEL that is quantized itself is made a float model first:
each weight gets a uniform draw from what rounds to it, since its own lattice would favour a format.
"""

import argparse
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
from quality_peers import GGML_TYPES, Ggml, e4m3, e8m0, mlx_affine, mlx_fp4

from marlin.commands import quantize as command
from marlin.device.device import Device
from marlin.engine.calibration import METHODS, pack_for, texts_of
from marlin.engine.layerwise import LayerRunner
from marlin.engine.mixing import MIX_TOKENS, bits_of, choose, sensitivities
from marlin.models.registry import spec_of
from marlin.models.source import open_source
from marlin.weights import formats
from marlin.weights.block_types import BLOCK_TYPES
from marlin.weights.kinds import GROUP_SIZES

OURS = (
    *(("iq4", 64), ("fp4", 32), ("iq4", 32), ("int4", 32), ("int5", 64), ("int5", 32)),
    *(("int8", 64), ("int8", 32)),
)
MIXED_BITS = (4.25, 4.5, 5.0, 8.5)
# Values of second moments: of as many columns as a matrix has.
ROOM = 1 << 40
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


def output_errors(source, texts, num_seen, index, compared):
    """Rows of a table: of a layer's matrices, the squared error of what they make of texts that
    were not seen, in ten-thousandths of its square; geometric means."""
    device, found = Device(), {}
    sources = {tensor.name: tensor for tensor in source.tensors}
    runner = LayerRunner(device, spec_of(source.config), sources, texts)
    runner.load(0)
    for at in range(index):
        runner.advance()
        runner.load(at + 1)
    for stage in runner.stages:
        inputs = [x.copy() for x in runner.inputs(stage)]
        seen, others = inputs[:num_seen], np.concatenate(inputs[num_seen:])
        power = np.mean([np.square(x).mean(axis=0) for x in seen], axis=0)
        for tensor in stage.tensors:
            weights = sources[tensor.name].rows(0, tensor.shape[0])
            whole = np.square(others @ weights.T).sum()
            for name, make, _ in compared:
                values, bits = make(weights, power, lambda seen=seen: seen, tensor.name)
                error = np.square(others @ (values - weights).T).sum() / whole
                found.setdefault((bits, name), []).append(error)
    device.close()
    rows = []
    for (bits, name), errors in sorted(found.items()):
        rows.append({"name": name, "bits": bits, "kl": 1e4 * math.exp(np.log(errors).mean())})
        print(f"| {name} | {bits:.2f} | {rows[-1]['kl']:.2f} |", flush=True)
    return rows


class Mix:
    """What --mixed chooses for the matrices that are compared."""

    def __init__(self, comparison, text):
        self._comparison, self._text, self._found = comparison, text, {}

    def __call__(self, bits):
        if not self._found:
            source, device = self._comparison.source, Device()
            names = set(self._comparison.power) - {"exact"}
            self._found = sensitivities(device, source, names, self._text, lambda *_: None)
            device.close()
        return choose(self._found, bits)


def ways(ggml, mix):
    """(name, make, whether make sees its inputs) of everything that is compared."""
    for format, size in OURS:
        for method in ("nearest", *METHODS):
            make = partial(ours, format, size, method)
            yield f"{format} g{size} {method}", make, method != "nearest"
    for bits in MIXED_BITS if mix else ():
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
    format, group_size = mix(bits)[name]
    return ours(format, group_size, "gptq", weights, power, inputs, name)


def ours(format, group_size, method, weights, _, inputs, __):
    sizes = [size for size in GROUP_SIZES if size <= group_size and weights.shape[1] % size == 0]
    pack = formats.quantize_native
    if method != "nearest":
        pack = pack_for(inputs(), method, ROOM)
    packed = pack(format, weights, max(sizes))
    return formats.dequantize(packed), bits_of(format, max(sizes), weights.shape[1])


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
    """Bits a weight against KL or error, logarithmic, as SVG."""
    wide, high, margin = 860, 640, 60
    ends = [(f(row["bits"] for row in rows), f(row["kl"] for row in rows)) for f in (min, max)]
    (first, low), (last, top) = ends
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}">']
    parts.append(f'<rect width="{wide}" height="{high}" fill="white"/>')
    labels = {}
    for row in sorted(rows, key=lambda row: -row["kl"]):
        x = margin + (row["bits"] - first) / (last - first or 1) * (wide - 4 * margin)
        share = math.log(row["kl"] / low) / (math.log(top / low) or 1)
        y = high - margin - share * (high - 2 * margin)
        beside = labels[x] = max(y, labels.get(x, 0) + 11)
        ours = row["name"].split()[0] in ("mixed", *formats.FORMATS)
        colour = "#b22" if ours else "#357"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        words = f'font-size="10" fill="{colour}">{row["name"]}, {row["kl"]:.3g}</text>'
        parts.append(f'<text x="{x + 8:.1f}" y="{beside + 3:.1f}" {words}')
        bits = f'font-size="12">{row["bits"]:.2f} bits</text>'
        parts.append(f'<text x="{x - 10:.1f}" y="{high - 20}" {bits}')
    Path(path).write_text("\n".join([*dict.fromkeys(parts), "</svg>"]) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="GGUF file or Hugging Face folder")
    parser.add_argument("--text", required=True, help="what is predicted; nothing learns from it")
    parser.add_argument("--calibration", help="what is learnt from (default: the package's)")
    parser.add_argument("--ggml", help="folder with llama.cpp's libraries")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--calibration-tokens", type=int, default=command.DEFAULT_TOKENS)
    parser.add_argument("--layers", type=int, default=10**6, help="to quantize, evenly spread")
    parser.add_argument("--outputs", type=int, metavar="LAYER", help="of one layer's, at once")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[""],
        help="names, or parts of them, with commas between",
    )
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
        ggml = Ggml(args.ggml) if args.ggml else None
        if args.outputs is not None:
            compared = [
                row for row in ways(ggml, None) if any(word in row[0] for word in args.only)
            ]
            rows = output_errors(open_source(folder), texts, len(seen), args.outputs, compared)
        else:
            cache = scratch / f"exact-{seen.size}-{texts.size}.npz"
            layers = min(args.layers, num_layers)
            comparison = Comparison(folder, texts, len(seen), layers, cache)
            mix = Mix(comparison, texts_of(tokenizer.encode(learnt), MIX_TOKENS))
            rows = run(args, comparison, ways(ggml, mix))
    if args.plot:
        plot(rows, args.plot)


def run(args, comparison, compared):
    """The rows of the table, printed as they come."""
    rows = []
    if args.json and Path(args.json).exists():
        rows = json.loads(Path(args.json).read_text())
    for name, make, is_seen in compared:
        if any(row["name"] == name for row in rows) or not any(word in name for word in args.only):
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
