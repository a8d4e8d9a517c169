"""`metal-marlin plan`: what of a model fits on a machine that need not be here, how fast it should
be, and how many such machines a stream of requests takes.

Reads the model's headers and loads nothing. Memory is counted by what admits it when a model is
loaded (engine/memory.py); speed is a forecast (engine/forecast.py), and is said as a range.
"""

import json
import os
import re
import sys
from typing import Any

from marlin.commands.parser import typed
from marlin.device.device import Device
from marlin.engine.capacity import gpu_bytes
from marlin.engine.fleet import Fleet, jobs
from marlin.engine.forecast import Forecast, cpu, gpu
from marlin.engine.kv_cache import Paging, kv_bytes
from marlin.engine.load_draft import DraftFiles
from marlin.engine.memory import PREFILL_STEP_TOKENS, MemoryBudget, activation_bytes, check_memory
from marlin.errors import ConfigError
from marlin.models.checkpoint import open_checkpoint
from marlin.models.layers import StepSizes
from marlin.option_values import number, one_of, seconds, whole_number

_BLOCK = 16  # tokens of a KV cache block, as `serve` has them
_MOST_STREAMS, _MOST_SERVERS = 4096, 64
_NUM_JOBS = 1000  # of a simulation: p99 is the 10th from the end


def gigabytes(text):
    """64 or 64GB, as a whole number of 2^30 bytes."""
    return whole_number(1, 1 << 20)(re.sub("(?i)gi?b?$", "", text))


def tokens(text):
    """8192 or 8k."""
    factor = 1024 if text[-1:] in ("k", "K") else 1
    return factor * whole_number(1, 1 << 30)(text[:-1] if factor > 1 else text)


def above_zero(text):
    value = number(text)
    if value <= 0:
        raise ValueError("must be above 0")
    return value


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument("model", metavar="MODEL", help=".gguf file or model folder")
    for flag, parse, metavar, text in (
        (
            "--memory",
            gigabytes,
            "GB",
            "of the machine; a Mac's GPU gets two thirds or 3/4",
        ),
        ("--context", tokens, "TOKENS", "of each stream, prompt and answer together: 8192 or 8k"),
        ("--bandwidth", above_zero, "GB/S", "peak of its memory; of a CPU what bench reads"),
    ):
        required = {"required": True}
        parser.add_argument(flag, type=typed(parse), metavar=metavar, help=text, **required)
    for flag, parse, default, metavar, text in (
        ("--streams", whole_number(1, _MOST_STREAMS), 1, "N", "requests at once (default: 1)"),
        ("--compute", above_zero, None, "TFLOPS", "10^12 operations a second: that are reached, or "
         "a CPU's of bench (default: by the bandwidth)"),
        ("--device", one_of(("metal", "cpu")), "metal", "metal|cpu",
         "what computes (default: metal)"),
        ("--arrivals", above_zero, None, "N", "requests a second, on the mean: simulates a fleet"),
        ("--prompt-tokens", tokens, 1024, "N", "of a request, on the mean (default: 1024)"),
        ("--output-tokens", tokens, 256, "N", "of an answer, on the mean (default: 256)"),
        ("--servers", whole_number(1, _MOST_SERVERS), None, "N",
         "in the fleet (default: as many as --first-token takes)"),
        ("--first-token", seconds, 5.0, "SECONDS",
         "within which 99 of 100 requests have to have a token (default: 5)"),
    ):  # fmt: skip
        parser.add_argument(flag, type=typed(parse), default=default, metavar=metavar, help=text)
    parser.add_argument(
        "--draft-model", metavar="PATH", help="of serve's --speculative draft: counted, too"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments):
    """Print the plan. Returns the exit code: 1 where it does not fit."""
    device = Device(kind="cpu")
    try:
        checkpoint = open_checkpoint(arguments.model, device)
        spec, weight_bytes = checkpoint.spec, checkpoint.weight_bytes
        path, draft = arguments.draft_model, None
        if path is not None:
            draft = DraftFiles(path, device, None, "float16")
    finally:
        device.close()
    check(arguments, spec)
    report: dict[str, Any] = {"model": os.path.basename(os.path.abspath(arguments.model))}
    report["memory"] = memory(arguments, spec, weight_bytes, draft)
    forecasts = [Forecast(spec, weight_bytes, one) for one in machines(arguments)]
    report["speed"] = speed(arguments, forecasts)
    if arguments.arrivals is not None:
        report["fleet"] = fleet(arguments, forecasts[0])
    if arguments.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        show(report, arguments, sys.stdout)
    return 0 if report["memory"]["fits"] else 1


def check(arguments, spec):
    """Refuse what no plan can be made of. Raises ConfigError."""
    if spec.is_encoder:
        raise ConfigError(
            "an encoder writes no answers: metal-marlin info MODEL says what it takes"
        )
    most = spec.config.max_context_tokens
    if arguments.context > most:
        raise ConfigError(f"--context {arguments.context} is longer than the model's own, {most}")
    if arguments.device == "cpu" and arguments.compute is None:
        raise ConfigError(
            "--device cpu needs --compute: metal-marlin bench MODEL prints both rates"
        )


def machines(arguments):
    """(least, most) that it reaches."""
    bandwidth, compute = arguments.bandwidth * 1e9, arguments.compute
    if arguments.device == "cpu":
        return cpu(bandwidth, compute * 1e12)
    return gpu(bandwidth, compute and compute * 1e12)


def memory(arguments, spec, weight_bytes, draft=None):
    """What it takes of what there is, and how many streams would fit."""
    memory_bytes = arguments.memory << 30
    if arguments.device == "metal":
        memory_bytes = gpu_bytes(arguments.memory)

    def fits(num_streams):
        paging, step_tokens = _paging(spec, arguments.context, num_streams)
        budget = MemoryBudget(memory_bytes, weight_bytes)
        if draft is not None:
            beside = draft.bytes_beside(step_tokens, num_streams)
            budget = MemoryBudget(memory_bytes, weight_bytes + draft.weight_bytes, 1, beside)
        try:
            check_memory(budget, spec, paging, step_tokens, num_streams)
        except ConfigError:
            return False
        return True

    paging, step_tokens = _paging(spec, arguments.context, arguments.streams)
    sizes = StepSizes(step_tokens, arguments.streams, paging.max_splits)
    beside = {}
    if draft is not None:
        own = draft.bytes_beside(step_tokens, arguments.streams)(paging)
        beside = {"draft_bytes": draft.weight_bytes + own}
    return {
        "device_bytes": memory_bytes,
        "weight_bytes": weight_bytes,
        **beside,
        "kv_bytes": kv_bytes(spec, paging),
        "activation_bytes": activation_bytes(spec, sizes),
        "fits": fits(arguments.streams),
        "streams_that_fit": _most(fits),
    }


def _paging(spec, context, num_streams):
    stride = -(-context // _BLOCK)
    step_tokens = max(PREFILL_STEP_TOKENS, num_streams)
    paging = Paging(stride * num_streams, _BLOCK, stride)
    paging = paging.with_windows(spec, num_streams, step_tokens)
    return paging.with_states(spec, num_streams, 0), step_tokens


def _most(fits):
    """The largest number up to _MOST_STREAMS that fits; 0 where none does."""
    low, high = 0, _MOST_STREAMS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def speed(arguments, forecasts):
    """Ranges, [least, most], of tokens a second, at a full context."""
    context = arguments.context
    return {
        "decode_of_one": [1 / one.step_s([context]) for one in forecasts],
        "decode_of_all": [
            arguments.streams / one.step_s([context] * arguments.streams) for one in forecasts
        ],
        "prefill": [context / one.prefill_s(context, PREFILL_STEP_TOKENS) for one in forecasts],
    }


def fleet(arguments, forecast):
    """What a fleet of such machines comes to, by the slower forecast; as many as it takes."""
    lengths = arguments.prompt_tokens, arguments.output_tokens, arguments.context
    asked = jobs(0, _NUM_JOBS, arguments.arrivals, *lengths)

    def simulated(count):
        servers = Fleet(count, arguments.streams, PREFILL_STEP_TOKENS, forecast.step_s)
        return servers.run(asked)

    def is_enough(found):
        return _share(found.first_token_s, 99) <= arguments.first_token

    count = arguments.servers
    if count is None:
        low, count = 1, _MOST_SERVERS
        while low < count:
            middle = (low + count) // 2
            low, count = (low, middle) if is_enough(simulated(middle)) else (middle + 1, count)
    found = simulated(count)
    return {
        "servers": count,
        "is_enough": is_enough(found),
        "first_token_s": {str(of): _share(found.first_token_s, of) for of in (50, 99)},
        "tokens_per_s_of_a_stream": 1 / _share(found.token_s, 50) if found.token_s else None,
        "tokens_per_s": found.tokens_per_s,
        "busy": found.busy,
    }


def _share(ordered, percent):
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def show(report, arguments, file):
    """The report as text."""
    counted, streams = report["memory"], arguments.streams
    names = [name for name in ("weight", "draft", "kv", "activation") if f"{name}_bytes" in counted]
    total = sum(counted[f"{name}_bytes"] for name in names)
    whose = " that a Mac's GPU gets" if arguments.device == "metal" else ""
    most = counted["streams_that_fit"]
    verdict = "fits" if counted["fits"] else "does not fit"
    lines = [
        ("weights", _mib(counted["weight_bytes"])),
        ("KV cache", f"{_mib(counted['kv_bytes'])}: {streams} of {arguments.context} tokens"),
        ("activations", _mib(counted["activation_bytes"])),
        ("in all", f"{_mib(total)} of {_mib(counted['device_bytes'])}{whose}: {verdict}"),
        ("streams", f"{most}{' or more' if most == _MOST_STREAMS else ''} of that context fit"),
    ]
    if "draft" in names:
        lines.insert(1, ("draft model", f"{_mib(counted['draft_bytes'])}, its KV cache among them"))
    for label, name in (("decode of 1", "decode_of_one"), ("prefill", "prefill")):
        lines.append((label, "{:,.0f} to {:,.0f} tokens/s".format(*report["speed"][name])))
    each = [rate / streams for rate in report["speed"]["decode_of_all"]]
    words = "{:,.0f} to {:,.0f} tokens/s".format(*report["speed"]["decode_of_all"])
    lines.insert(-1, (f"decode of {streams}", words + ", {:,.1f} to {:,.1f} each".format(*each)))
    if "fleet" in report:
        lines += _fleet_lines(report["fleet"], arguments)
    for label, value in lines:
        print(f"{label:<14}{value}", file=file)


def _fleet_lines(found, arguments):
    wait = found["first_token_s"]
    enough = "" if found["is_enough"] else f", which is more than {arguments.first_token:g} s"
    if enough and found["servers"] == _MOST_SERVERS:
        enough += " on any number: a long prompt alone takes so long"
    yield "servers", f"{found['servers']}, {found['busy']:.0%} of the time busy"
    yield (
        "first token",
        f"after {wait['50']:.2f} s in the median, {wait['99']:.2f} s at p99{enough}",
    )
    yield "answers", f"{found['tokens_per_s']:,.0f} tokens/s in all"


def _mib(num_bytes):
    return f"{-(-num_bytes >> 20):,} MiB"
