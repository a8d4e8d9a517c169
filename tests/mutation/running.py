"""One run of pytest in the copied tree, in a fork, with a time limit for each test.

The fork has the heavy packages already; marlin it imports anew, as a mutant has it. Knows no
mutants. Ends what a run leaves behind.
"""

import json
import os
import sys
import time

import copied_tree


class Run:
    """A pytest plugin: only the chosen tests, in the order given; says which runs and how it ends.

    Args:
        folder: `running` there holds the number of the test that runs.
        order: test ids, or None for all that are collected.
        tracer: a tracing.Tracer to tell, or None.
    """

    def __init__(self, folder, order=None, tracer=None):
        self.folder, self.order, self.tracer = folder, order, tracer
        self.tests = []  # [id, outcome, seconds]

    def pytest_collection_modifyitems(self, items):
        if self.order is not None:
            place = {name: number for number, name in enumerate(self.order)}
            items[:] = sorted(
                (item for item in items if item.nodeid in place),
                key=lambda item: place[item.nodeid],
            )

    def pytest_runtest_logstart(self, nodeid):
        self.tests.append([nodeid, "passed", 0.0])
        (self.folder / "running").write_text(json.dumps([nodeid, time.time()]))
        if self.tracer:
            self.tracer.begin(str(len(self.tests)).encode())

    def pytest_runtest_logreport(self, report):
        test = self.tests[-1]
        test[2] += report.duration
        if report.outcome != "passed":
            test[1] = report.outcome

    def pytest_runtest_logfinish(self):
        if self.tracer:
            self.tracer.flush()


def run_pytest(root, arguments, plugin_of, limit=None):
    """Run pytest in a fork, which has the heavy packages already; returns (exit code, Run.tests).

    Args:
        plugin_of: folder -> Run, called in the fork.
        limit: test id -> seconds after which all is killed; exit code is then None.
    """
    import pytest

    folder = root / ".mutate"
    for name in ("running", "outcome"):
        (folder / name).unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(root)
        plugin = plugin_of(folder)
        options = ["-p", "no:cacheprovider", "-q", "--tb=line", *arguments]
        code = pytest.main(options, plugins=[plugin])
        (folder / "outcome").write_text(json.dumps([int(code), plugin.tests]))
        os._exit(0)
    started = time.time()
    while not os.waitpid(pid, os.WNOHANG)[0]:
        time.sleep(0.05)
        if limit and time.time() > _deadline(folder, started, limit):
            break
    copied_tree.end_processes(root, pid)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
    if (folder / "outcome").exists():
        return json.loads((folder / "outcome").read_text())
    running = folder / "running"
    return None, [[json.loads(running.read_text())[0], "hung", 0]] if running.exists() else []


def _deadline(folder, started, limit):
    """When the test that runs, or what comes before any, has had its time."""
    try:
        name, since = json.loads((folder / "running").read_text())
    except (OSError, ValueError):
        return started + 90
    return since + limit(name)
