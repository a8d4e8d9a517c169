#!/usr/bin/env python3
"""What a step of 16 streams costs beyond its kernels: in the engine alone, and under the server.

    .venv/bin/python bench/step_cost.py MODEL.gguf [--streams 16] [--rounds 3]

Times every replay of a recorded program, by wrapping Program.submit and Program.wait in a process
of its own; the server has no such switch. Two processes do the same work, one after the other:
  engine  the engine without readers: its kernels have the cores to themselves, and what lies
          between two replays is scheduling, filling inputs and publishing;
  server  the whole server, with the streaming client of serve_load.py on the same cores.
Figures are medians over decode steps with every stream in them. "beyond" is the part of the time
from step to step that undisturbed kernels do not need. Linux only (/proc).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from compare_serving import Server, our_command
from serve_load import measure, medians, print_table
from streams import SAMPLING, Prompts

from marlin import cli
from marlin.device.program import Program
from marlin.engine.load import Batching, load_model
from marlin.engine.sampling import SamplingParams

NUM_TOKENS = 128  # of a prompt, and of an answer
VOCAB = 32000
NUM_BLOCKS, BLOCK_SIZE = 1024, 16  # room for 64 streams
POLL_S = 0.02


class Replays:
    """Times of the replays of this process.

    Attributes:
        rows: of each replay its tokens, its samples, when it was submitted and done (seconds), and
            the processor time that the engine's thread had used at both.
    """

    def __init__(self):
        self.rows = []

    def record(self):
        """From now on note every replay."""
        submit, wait, rows = Program.submit, Program.wait, self.rows

        def timed_submit(program, *variables, **part):
            tokens, _, samples, *_ = variables or (0, 0, 0)  # repacking weights has none
            rows.append([tokens, samples, time.perf_counter(), 0.0, time.thread_time(), 0.0])
            submit(program, *variables, **part)

        def timed_wait(program):
            wait(program)
            rows[-1][3], rows[-1][5] = time.perf_counter(), time.thread_time()

        Program.submit, Program.wait = timed_submit, timed_wait


def run_recorded(path, task, arguments):
    """A child process: do a task, and leave the rows of its replays in a file.

    Args:
        task: "serve" with the command line's arguments, or "engine" with run_engine()'s.
    """
    replays = Replays()
    replays.record()
    if task == "serve":
        cli.main(["serve", *arguments])
    else:
        run_engine(arguments[0], *map(int, arguments[1:]))
    np.save(path, np.array(replays.rows, np.float64))


def run_engine(model, threads, num_streams, rounds):
    """Each round's requests all at once; nobody reads their events."""
    batching = Batching(NUM_BLOCKS, BLOCK_SIZE, num_streams)
    engine = load_model(model, num_threads=threads, batching=batching).engine
    params = SamplingParams(**SAMPLING, max_tokens=NUM_TOKENS, ignore_eos=True)
    for number in range(rounds):
        prompts = Prompts(number, VOCAB)
        for index in range(num_streams):
            engine.submit(prompts.next(NUM_TOKENS), params, f"r{index}")
        while (stats := engine.stats()).num_running + stats.num_waiting:
            time.sleep(POLL_S)
    engine.close()


def of_full_steps(rows, num_streams):
    """Medians over the decode steps of all streams that follow another such step, in ms.

    Args:
        rows: float64 [num_replays, 6], Replays.rows.

    Returns:
        dict: kernels; between, from a replay's end to the next one's start; cpu, the engine
        thread's processor time in that; period, from end to end; steps, how many.
    """
    full = (rows[:, 0] == num_streams) & (rows[:, 1] == num_streams)
    places = np.flatnonzero(full[1:] & full[:-1]) + 1
    before, now = rows[places - 1], rows[places]
    columns = {
        "kernels": now[:, 3] - now[:, 2],
        "between": now[:, 2] - before[:, 3],
        "cpu": now[:, 4] - before[:, 5],
        "period": now[:, 3] - before[:, 3],
    }
    figures = {name: 1000 * float(np.median(values)) for name, values in columns.items()}
    return figures | {"steps": len(places)}


def in_engine(path, arguments):
    """The rows of the engine alone."""
    words = [arguments.model, arguments.threads, arguments.streams, arguments.rounds]
    command = [sys.executable, __file__, "--record", path, "engine", *map(str, words)]
    subprocess.run(command, check=True)
    return np.load(path)


def in_server(path, arguments):
    """(the rows of the server, the client's figures)."""
    own = our_command(arguments.model, arguments.threads, arguments.streams)
    server = Server([sys.executable, __file__, "--record", path, *own[1:]])
    try:
        load = argparse.Namespace(
            requests=arguments.streams,
            prompt_tokens=NUM_TOKENS,
            output_tokens=NUM_TOKENS,
            vocab=VOCAB,
            pid=server.process.pid,
        )
        rounds = range(arguments.rounds)
        client = [measure(server.streams, arguments.streams, load, seed) for seed in rounds]
    finally:
        server.close()
    return np.load(path), medians(client)


def main():
    if sys.argv[1:2] == ["--record"]:
        run_recorded(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "replays.npy")
        alone = of_full_steps(in_engine(path, arguments), arguments.streams)
        rows, client = in_server(path, arguments)
    served = of_full_steps(rows, arguments.streams)
    print("ms a step  kernels  between  of it processor time  step to step  beyond  steps")
    for name, row in (("engine", alone), ("server", served)):
        beyond = 1 - alone["kernels"] / row["period"]
        print(
            f"{name:<9}{row['kernels']:9.2f}{row['between']:9.2f}{row['cpu']:23.2f}"
            f"{row['period']:14.2f}{beyond:8.0%}{row['steps']:7}"
        )
    print_table([client])


if __name__ == "__main__":
    main()
