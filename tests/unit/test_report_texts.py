"""What commands print of their reports, whole: every line, number and unit of made-up figures."""

import io
from argparse import Namespace
from collections import Counter
from textwrap import dedent

import pytest

from marlin.commands import bench, bench_kernels, info, plan, quantize, selftest
from marlin.weights.convert import RoleError


def text_of(show, *arguments):
    printed = io.StringIO()
    show(*arguments, printed)
    return printed.getvalue()


def page(text):
    return dedent(text).lstrip("\n")


ROW = {
    "prompt_tokens": 128,
    "prefill_tokens_per_s": 1699.04,
    "prefill_share_of_peak": 0.42,
    "decode_tokens_per_s": 267.26,
    "decode_share_of_bandwidth": 0.914,
}
RESULT = {
    "threads": 2,
    "device": "Apple M1",
    "isa": "avx2",
    "read_bytes_per_s": 28.26e9,
    "peak": "int8",
    "peak_operations_per_s": 858.4e9,
    "bytes_per_token": 93.44e6,
    "layer_operations_per_token": 212.6e6,
    "rows": [ROW, ROW | {"prompt_tokens": 2048, "prefill_share_of_peak": 0.06}],
}
BENCH = {"model": "m.gguf", "machine": {"cores": 4, "cpu": "Xeon"}, "results": [RESULT]}


def test_bench_prints_each_speed_beside_its_share_of_what_there_is():
    lines = [
        "m.gguf on 4 cores of Xeon",
        "",
        "2 threads, avx2: reads 28.3 GB/s, int8 858 Gop/s; a decoded token reads 93.4 MB of "
        "weights, a prompt token takes 213 Mop",
        "  prompt   prefill tok/s             of peak   decode tok/s        of bandwidth",
        "     128          1699.0  ####......     42%          267.3  #########.     91%",
        "    2048          1699.0  #.........      6%          267.3  #########.     91%",
    ]
    assert text_of(bench.print_table, BENCH).splitlines() == lines
    gpu = BENCH | {"results": [RESULT | {"peak": "float32", "isa": "metal"}]}
    assert "\nApple M1, metal: reads 28.3 GB/s, float32 858 Gop/s;" in text_of(
        bench.print_table, gpu
    )


CPU = {
    "name": "Xeon", "kind": "cpu", "isa": "avx2",
    "memory_bytes": (5 << 20) + 1, "page_bytes": 4096,
}  # fmt: skip
PASSES = {
    "kernel": "rms_norm", "cases": 3, "passed": True, "problem": None,
    "stored_error": 1.24e-6, "cpu_error": 0, "tolerance": 1e-5,
}  # fmt: skip
FAILS = PASSES | {
    "kernel": "silu_mul",
    "passed": False,
    "problem": "case 7: y is off",
    "cpu_error": None,
}
SELFTEST = {
    "device": CPU, "beside": CPU, "machine": {"system": "Linux 6", "cores": 4, "cpu": "Xeon"},
    "versions": {"metal-marlin": "1.0", "numpy": "2.1"},
    "open_s": 0.0016, "compile_s": 1.2344, "run_s": 0.5,
    "kernels": [PASSES, FAILS], "passed": False, "problem": None,
}  # fmt: skip


def test_selftest_prints_the_device_its_kernels_and_a_verdict():
    assert text_of(selftest.print_report, SELFTEST) == page(
        """
        device    Xeon (cpu, avx2), 5 MiB, pages of 4096 bytes
        system    Linux 6, 4 cores of Xeon
        packages  metal-marlin 1.0, numpy 2.1
        beside    Xeon (cpu, avx2), 5 MiB, pages of 4096 bytes
        took      0.002 s to open, 1.234 s to make the kernels, 0.500 s to run them

        kernel             cases      error  beside CPU  tolerance
        rms_norm               3    1.2e-06     0.0e+00    1.0e-05  pass
        silu_mul               3    1.2e-06           -    1.0e-05  FAIL case 7: y is off

        FAIL: 1 of 2 kernels
        """
    )
    passed = SELFTEST | {"kernels": [PASSES], "passed": True}
    assert text_of(selftest.print_report, passed).endswith("\n\npass: 1 of 1 kernels\n")
    none = SELFTEST | {"device": None, "problem": "no GPU"}
    text = text_of(selftest.print_report, none)
    assert text.startswith("device    none\n") and text.endswith("numpy 2.1\n\nFAIL: no GPU\n")


FACTS = {
    "family": "gemma3", "format": "GGUF Q4_K", "parameters": 4_300_040_000, "layers": 34,
    "layers_with_window": 29, "max_context_tokens": 131072, "weight_bytes": (7 << 20) + 1,
    "kv_bytes_per_token": 20480, "kv_bytes_at_any_length": (3 << 20) + 1,
    "context_tokens_on_macs": {"16": 4096, "24": 0},
}  # fmt: skip


def test_info_prints_what_a_model_is_and_takes():
    assert text_of(info.print_model, FACTS) == page(
        """
        family        gemma3
        format        GGUF Q4_K
        parameters    4,300.0 million
        layers        34, 29 of them with a window
        context       131072 tokens
        weights       8 MiB
        KV cache      20 KiB a token, and 4 MiB of windows
        16 GB Mac     a context of 4096 tokens
        24 GB Mac     too large
        """
    )
    states = text_of(info.print_model, FACTS | {"layers_with_window": 0})
    assert "\nlayers        34\n" in states and "20 KiB a token, and 4 MiB of states\n" in states
    plain = text_of(info.print_model, FACTS | {"kv_bytes_at_any_length": 0})
    assert "\nKV cache      20 KiB a token\n" in plain
    encoder = {name: value for name, value in FACTS.items() if not name.startswith("kv_")}
    assert text_of(info.print_model, encoder).endswith("\nweights       8 MiB\n")


MEMORY = {
    "weight_bytes": 3 << 30, "kv_bytes": (1 << 30) + 1, "activation_bytes": 1 << 20,
    "device_bytes": 8 << 30, "fits": True, "streams_that_fit": 7,
}  # fmt: skip
PLAN = {
    "memory": MEMORY,
    "speed": {
        "decode_of_one": [40.4, 50.6], "decode_of_all": [160.0, 180.0], "prefill": [900.0, 1234.4]
    },
}  # fmt: skip
FLEET = {
    "servers": 3, "is_enough": True, "first_token_s": {"50": 0.254, "99": 1.5},
    "tokens_per_s": 1234.4, "busy": 0.756,
}  # fmt: skip
ASKED = Namespace(streams=4, context=2048, device="metal", first_token=2.0)


def test_plan_prints_memory_streams_and_speeds():
    assert text_of(plan.show, PLAN, ASKED) == page(
        """
        weights       3,072 MiB
        KV cache      1,025 MiB: 4 of 2048 tokens
        activations   1 MiB
        in all        4,098 MiB of 8,192 MiB that a Mac's GPU gets: fits
        streams       7 of that context fit
        decode of 1   40 to 51 tokens/s
        decode of 4   160 to 180 tokens/s, 40.0 to 45.0 each
        prefill       900 to 1,234 tokens/s
        """
    )
    little = PLAN | {"memory": MEMORY | {"fits": False, "streams_that_fit": plan._MOST_STREAMS}}
    cpu = text_of(plan.show, little, Namespace(**vars(ASKED) | {"device": "cpu"}))
    assert "4,098 MiB of 8,192 MiB: does not fit\n" in cpu
    assert f"{plan._MOST_STREAMS} or more of that context fit" in cpu


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"is_enough": False}, ", which is more than 2 s"),
        (
            {"is_enough": False, "servers": plan._MOST_SERVERS},
            ", which is more than 2 s on any number: a long prompt alone takes so long",
        ),
    ],
)
def test_plan_prints_what_a_fleet_comes_to(changes, says):
    text = text_of(plan.show, PLAN | {"fleet": FLEET | changes}, ASKED)
    servers = (FLEET | changes)["servers"]
    assert text.splitlines()[-3:] == [
        f"servers       {servers}, 76% of the time busy",
        f"first token   after 0.25 s in the median, 1.50 s at p99{says}",
        "answers       1,234 tokens/s in all",
    ]


def test_quantize_prints_sizes_errors_and_how_to_serve():
    report = quantize.Report(
        source_bytes=269_060_000,
        result_bytes=89_840_000,
        bits_per_weight=4.254,
        errors={"attention": RoleError(4.0, 400.0)},
        narrowed=Counter({64: 14}),
        layer_bits=4.5,
        forms=Counter({("int8", 64): 2, ("fp4", 32): 9}),
    )
    assert quantize._describe(report, "out dir", "fp4", 128) == page(
        """
        out dir: fp4, groups of 128
          weights before   269.1 MB
          weights after    89.8 MB
          bits a weight    4.25
          attention        relative RMS error 0.1
          14 matrices in groups of 64: 128 do not divide them
        Serve it with: metal-marlin serve 'out dir'
        """
    ).rstrip("\n")
    mixed = quantize._describe(report, "out", quantize.MIXED, 128).splitlines()
    assert mixed[0] == f"out: {quantize.MIXED}"
    assert mixed[4:7] == [
        "  of layers        4.50",
        "    9 matrices fp4, groups of 32",
        "    2 matrices int8, groups of 64",
    ]


def test_bench_prints_the_time_and_speed_of_each_kernel():
    row = {
        "kernel": "matmul", "n": 576, "k": 1536, "rows": 32, "matrices": 30, "seconds": 12.34e-6,
        "bytes": 500_000, "operations": 56_600_000,
    }  # fmt: skip
    lines = [
        "",
        "kernel             n       k  rows  matrices        us    GB/s  GFLOP/s",
        "matmul           576    1536    32        30      12.3    40.5     4587",
    ]
    assert text_of(bench_kernels.print_kernels, [row]).splitlines() == lines


DEVICE = {
    "library": "libmarlin_cpu.so", "name": "Xeon", "kind": "cpu", "isa": "avx2",
    "memory_bytes": 5 << 30, "max_buffer_bytes": 3 << 20, "page_bytes": 4096,
    "kernels": ["a", "b"], "missing": [], "num_threads": 4,
    "instruction_sets": ["avx2", "scalar"],
}  # fmt: skip


def test_info_prints_each_device_or_why_there_is_none():
    report = {
        "versions": {"metal-marlin": "1.0", "python": "3.12"},
        "machine": {"system": "Linux 6", "cores": 4, "cpu": "Xeon"},
        "devices": {"cpu": DEVICE, "metal": {"library": "lib.dylib", "reason": "no Mac"}},
    }
    assert text_of(info.print_report, report) == page(
        """
        metal-marlin 1.0, python 3.12
        Linux 6, 4 cores of Xeon

        cpu
          device        Xeon
          library       libmarlin_cpu.so
          isa           avx2
          also          avx2, scalar
          threads       4
          memory        5120 MiB, the machine's
          buffers       3 MiB at most each
          pages         4096 bytes
          kernels       2 of 2

        metal
          device        none: no Mac
          library       lib.dylib
        """
    )
    less = DEVICE | {"missing": ["c", "d"], "kernels": ["a"], "num_threads": 0}
    text = text_of(info.print_report, report | {"devices": {"cpu": less}})
    assert "  kernels       1 of 3; missing: c, d\n" in text and "threads" not in text
