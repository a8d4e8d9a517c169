"""`metal-marlin bench`: prefill and decode speed of a model, beside what the machine can do at
best.

Measures; knows nothing of serving. Figures are medians; threads take turns within each round, so
that a machine whose speed drifts favours none.
"""

import json
import os
import statistics
import sys
import time

import numpy as np

from marlin.commands.bench_kernels import measure_kernels, print_kernels
from marlin.commands.bench_plot import bar, svg
from marlin.commands.info import machine
from marlin.commands.parser import typed
from marlin.config import MAX_THREADS, add_options
from marlin.device import abi, ops
from marlin.device.device import Device
from marlin.device.program import Recorder, View
from marlin.engine.kv_cache import Paging
from marlin.engine.memory import PREFILL_STEP_TOKENS, MemoryBudget, check_memory
from marlin.engine.request import Chunk, Request
from marlin.engine.runner import NO_TOKEN, NOT_NUMBERS, Runner
from marlin.engine.sampling import SamplingParams
from marlin.errors import ConfigError, DeviceError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.model import Model
from marlin.option_values import whole_number

# Well past any last-level cache that a core may use, and read once.
PROBE_READ_UNITS = 512
PROBE_DOT_UNITS = 256
# Threads of a probe_dot unit on a GPU (kernel_list.h); each instruction multiplies and adds.
GPU_DOT_THREADS = 256
VECTOR_LANES = {"avx512": 16, "avx2": 8, "i8mm": 4, "neon": 4, "scalar": 1}


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument("model", metavar="MODEL", help=".gguf file or model folder")
    add_options(parser, ["device"])
    parser.add_argument(
        "--threads", default="", metavar="N[,N]", help="CPU workers (default: all usable cores)"
    )
    parser.add_argument(
        "--prompt-tokens",
        default="128,512",
        metavar="N[,N]",
        help="lengths of prompts (default: %(default)s)",
    )
    for flag, what, low, default in (
        ("--output-tokens", "tokens decoded", 2, 128),
        ("--repeat", "runs", 1, 5),
    ):
        text, parse = f"{what} (default: {default})", typed(whole_number(low))
        parser.add_argument(flag, type=parse, default=default, metavar="N", help=text)
    parser.add_argument(
        "--isa", metavar="NAME", help="CPU instruction set (default: the best here)"
    )
    parser.add_argument(
        "--kernels", action="store_true", help="also time each size of matrix alone"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures; - is stdout")
    parser.add_argument("--plot", metavar="FILE.svg", help="also draw them")


def run(arguments):
    """Measure and print a table, and JSON where asked. Returns the exit code."""
    threads = _numbers("--threads", arguments.threads, MAX_THREADS) or [None]
    prompts = _numbers("--prompt-tokens", arguments.prompt_tokens)
    if not prompts:
        raise ConfigError("--prompt-tokens needs a length")
    if arguments.json not in (None, "-"):
        _check_place("--json", arguments.json)
    if arguments.plot is not None:
        _check_place("--plot", arguments.plot)
    context = -(-(max(prompts) + arguments.output_tokens) // 16) * 16
    subjects = [
        Subject(arguments.model, Device(count, arguments.isa, kind=arguments.device), context)
        for count in threads
    ]
    for _ in range(arguments.repeat):
        for subject in subjects:
            subject.measure(prompts, arguments.output_tokens)
    report = {
        "model": os.path.basename(arguments.model),
        "machine": machine(),
        "output_tokens": arguments.output_tokens,
        "repeat": arguments.repeat,
        "results": [subject.summary() for subject in subjects],
    }
    if arguments.kernels:
        for subject, result in zip(subjects, report["results"], strict=True):
            result["kernels"] = measure_kernels(
                subject.runner, PREFILL_STEP_TOKENS, arguments.repeat
            )
    for subject in subjects:
        subject.close()
    print_table(report, sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json == "-":
        json.dump(report, sys.stdout, indent=1)
    elif arguments.json is not None:
        _write("--json", arguments.json, json.dumps(report, indent=1))
    if arguments.plot is not None:
        _write("--plot", arguments.plot, svg(report))
    return 0


def _check_place(option, path):
    """A mistyped name is found before anything is measured."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise ConfigError(f"{option} {path} cannot be written: it is a folder")
    if not os.path.isdir(folder):
        raise ConfigError(f"{option} {path} cannot be written: there is no folder {folder}")


def _write(option, path, text):
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}") from None


def _numbers(option, text, high=None):
    parse = whole_number(1, high)
    try:
        return [parse(part) for part in text.split(",") if part]
    except ValueError as error:
        raise ConfigError(f"each number of {option} {error}, got {text!r}") from None


class Subject:
    """One model on one device, which it owns, and what was measured of them.

    Attributes:
        peak: what prefill is bound by and probe_dot runs: "int8" dot products, or "float32"
            multiply-adds on a GPU.
    """

    def __init__(self, path, device, context_tokens):
        self.device = device
        self.peak = "int8" if device.kind == "cpu" else "float32"
        self.checkpoint = open_checkpoint(path, device)
        spec = self.checkpoint.spec
        paging = Paging.contiguous(context_tokens).with_states(spec, 1, 0)
        budget = MemoryBudget(device.info()["memory_bytes"], self.checkpoint.weight_bytes)
        check_memory(budget, spec, paging, PREFILL_STEP_TOKENS, 1)
        self.model = Model(self.checkpoint)
        self.runner = Runner(self.device, self.model, paging, PREFILL_STEP_TOKENS, 1)
        self.read_rates, self.dot_rates, self.decode_rates, self.prefill_rates = [], [], {}, {}
        self._read = self._record_probe("probe_read", PROBE_READ_UNITS)
        self._dot = self._record_probe("probe_dot", PROBE_DOT_UNITS)

    def _record_probe(self, kernel, num_units):
        source = None
        if kernel == "probe_read":
            buffer = self.device.create(num_units * abi.PROBE_BYTES)
            buffer.array(np.uint8)[:] = 1
            source = View.of(buffer)
        recorder = Recorder(self.device)
        ops.probe(recorder, kernel, num_units, source, View.of(self.device.create(num_units * 4)))
        return recorder.finish()

    def measure(self, prompts, num_outputs):
        """One run of everything."""
        self.read_rates.append(PROBE_READ_UNITS * abi.PROBE_BYTES / _seconds(self._read.run))
        lanes = GPU_DOT_THREADS * 2
        if self.device.kind == "cpu":
            lanes = VECTOR_LANES[self.device.info()["isa"]] * 8
        self.dot_rates.append(PROBE_DOT_UNITS * abi.PROBE_DOTS * lanes / _seconds(self._dot.run))
        for num_prompt in prompts:
            prefill, decode = self._generate(num_prompt, num_outputs)
            self.prefill_rates.setdefault(num_prompt, []).append(prefill)
            self.decode_rates.setdefault(num_prompt, []).append(decode)

    def _generate(self, num_prompt, num_outputs):
        """(prompt tokens/s, output tokens/s) of one greedy generation."""
        vocab_size = self.model.config.vocab_size
        prompt = [(7919 * i + 13) % vocab_size for i in range(num_prompt)]
        request = Request("bench", prompt, SamplingParams(temperature=0.0), 0, block_ids=[0])
        start = time.perf_counter()
        for begin in range(0, num_prompt, PREFILL_STEP_TOKENS):
            count = min(PREFILL_STEP_TOKENS, num_prompt - begin)
            request.state_runs = [(0, count, 0 if begin else -1, 0)]
            sampled = self.runner.step([Chunk(request, begin, count)])
        middle = time.perf_counter()
        for position in range(num_prompt, num_prompt + num_outputs):
            if sampled[0] == [NO_TOKEN]:
                raise DeviceError(NOT_NUMBERS)
            request.output_token_ids += sampled[0]
            request.state_runs = [(0, 1, 0, 0)]
            sampled = self.runner.step([Chunk(request, position, 1)])
        end = time.perf_counter()
        return num_prompt / (middle - start), num_outputs / (end - middle)

    def summary(self):
        """Medians, and the shares of the machine's best that they reach."""
        read, dot = statistics.median(self.read_rates), statistics.median(self.dot_rates)
        token_bytes = self.model.decode_bytes
        token_operations = 2 * self.model.num_layer_weights
        info = self.device.info()
        rows = []
        for num_prompt, rates in self.prefill_rates.items():
            prefill = statistics.median(rates)
            decode = statistics.median(self.decode_rates[num_prompt])
            rows.append(
                {
                    "prompt_tokens": num_prompt,
                    "prefill_tokens_per_s": round(prefill, 1),
                    "prefill_share_of_peak": round(prefill * token_operations / dot, 3),
                    "decode_tokens_per_s": round(decode, 1),
                    "decode_share_of_bandwidth": round(decode * token_bytes / read, 3),
                }
            )
        return {
            "device": info["name"],
            "isa": info["isa"],
            "threads": info["num_threads"],
            "read_bytes_per_s": round(read),
            "peak": self.peak,
            "peak_operations_per_s": round(dot),
            "bytes_per_token": token_bytes,
            "layer_operations_per_token": token_operations,
            "rows": rows,
        }

    def close(self):
        """Free the device."""
        for program in (self._read, self._dot):
            program.close()
        self.runner.close()
        self.device.close()


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _shown(share):
    return f"  {bar(share)} {share:>7.0%}"


def print_table(report, file):
    """The report as text."""
    cpu = report["machine"]
    print(f"{report['model']} on {cpu['cores']} cores of {cpu['cpu']}", file=file)
    for result in report["results"]:
        where = f"{result['threads']} threads"
        if result["peak"] != "int8":
            where = result["device"]
        print(
            f"\n{where}, {result['isa']}: reads "
            f"{result['read_bytes_per_s'] / 1e9:.1f} GB/s, {result['peak']} "
            f"{result['peak_operations_per_s'] / 1e9:.0f} Gop/s; a decoded token reads "
            f"{result['bytes_per_token'] / 1e6:.1f} MB of weights, a prompt token takes "
            f"{result['layer_operations_per_token'] / 1e6:.0f} Mop",
            file=file,
        )
        print(
            f"{'prompt':>8}{'prefill tok/s':>16}{'of peak':>20}"
            f"{'decode tok/s':>15}{'of bandwidth':>20}",
            file=file,
        )
        for row in result["rows"]:
            print(
                f"{row['prompt_tokens']:>8}{row['prefill_tokens_per_s']:>16.1f}"
                f"{_shown(row['prefill_share_of_peak'])}{row['decode_tokens_per_s']:>15.1f}"
                f"{_shown(row['decode_share_of_bandwidth'])}",
                file=file,
            )
        if "kernels" in result:
            print_kernels(result["kernels"], file)
