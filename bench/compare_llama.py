#!/usr/bin/env python3
"""Metal Marlin beside llama.cpp on one GGUF file, in one run: prefill of 512 tokens, decode of 128.

    python3 bench/compare_llama.py MODEL.gguf --llama-bench PATH/llama-bench [--rounds 5]
    [--threads 2] [--prompt-tokens 512] [--output-tokens 128] [--repeat 3]

Where no published file can be had, make_model.py writes one of a model's shape.

The two take turns, so that a machine whose speed drifts favours neither; the figures are medians,
the ratio is the median of the rounds' ratios. llama-bench is yours to build (llama.cpp, Release,
for this machine).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

COMMAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bin", "metal-marlin")


def ours(asked):
    """(prefill tokens/s, decode tokens/s from an empty context, the whole report)."""
    command = [COMMAND, "bench", asked.model, "--threads", asked.threads, "--repeat", asked.repeat]
    command += ["--prompt-tokens", f"1,{asked.prompt_tokens}", "--json", "-"]
    command += ["--output-tokens", asked.output_tokens]
    report = json.loads(run(command))
    first, last = report["results"][0]["rows"]
    return last["prefill_tokens_per_s"], first["decode_tokens_per_s"], report


def theirs(asked):
    """(prefill tokens/s, decode tokens/s)."""
    command = [asked.llama_bench, "-m", asked.model, "-t", asked.threads, "-r", asked.repeat]
    command += ["-o", "json", "-p", asked.prompt_tokens, "-n", asked.output_tokens]
    prefill, decode = json.loads(run(command))
    return prefill["avg_ts"], decode["avg_ts"]


def run(command):
    command = [str(word) for word in command]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        prefill, decode, report = ours(arguments)
        other_prefill, other_decode = theirs(arguments)
        rounds.append((prefill, other_prefill, decode, other_decode))
        result = report["results"][0]
        print(
            f"round {number + 1}: prefill {prefill:.0f} and {other_prefill:.0f}, "
            f"decode {decode:.1f} and {other_decode:.1f} tok/s; reads "
            f"{result['read_bytes_per_s'] / 1e9:.1f} GB/s, "
            f"int8 {result['peak_operations_per_s'] / 1e9:.0f} Gop/s",
            file=sys.stderr,
        )
    print(f"{'':>16}{'Metal Marlin':>14}{'llama.cpp':>12}{'ratio':>8}   median of {len(rounds)}")
    rows = (f"prefill {arguments.prompt_tokens}", 0), (f"decode {arguments.output_tokens}", 2)
    for name, at in rows:
        mine = statistics.median(row[at] for row in rounds)
        other = statistics.median(row[at + 1] for row in rounds)
        ratio = statistics.median(row[at] / row[at + 1] for row in rounds)
        print(f"{name:>16}{mine:>14.1f}{other:>12.1f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
