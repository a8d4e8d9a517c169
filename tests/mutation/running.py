"""One run of pytest in the copied tree, in a fork, with a time limit for each test.

The fork has the heavy packages already; marlin it imports anew, as a mutant has it. Knows no
mutants. Ends what a run leaves behind.
"""

import json
import os
import sys
import time

import copied_tree
import pytest
from _pytest.runner import runtestprotocol


class Run:
    """A pytest plugin: only the chosen tests, in the order given; says which runs and how it ends.

    A test that fails is run again at once: one that fails once only proves nothing.

    Args:
        folder: `running` there holds the test that runs and since when.
        order: test ids, or None for all that are collected.
        watch: told of each test, begin() and end(id, outcome, seconds), or None. Watched, no test
            is run again.
        builds: whether the native library may have changed since it was built.
        cpu_s: of this process and its children, after which no other test begins; None: no limit.
    """

    def __init__(self, folder, order=None, watch=None, builds=False, cpu_s=None):
        self.folder, self.order, self.watch, self.builds = folder, order, watch, builds
        self.cpu_s = cpu_s
        self.tests = []  # [id, outcome, seconds]

    def pytest_collection_modifyitems(self, items):
        if self.order is not None:
            place = {name: number for number, name in enumerate(self.order)}
            items[:] = sorted(
                (item for item in items if item.nodeid in place),
                key=lambda item: place[item.nodeid],
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_finish(self, session):
        """tests/conftest.py looks here whether all is built, unless nothing is to run."""
        session.config.option.collectonly = not self.builds
        try:
            return (yield)
        finally:
            session.config.option.collectonly = False

    def pytest_runtest_protocol(self, item, nextitem):
        self.tests.append([item.nodeid, "passed", 0.0])
        (self.folder / "running.new").write_text(json.dumps([item.nodeid, time.time()]))
        (self.folder / "running.new").replace(self.folder / "running")
        if self.watch:
            self.watch.begin()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not self.watch and any(report.failed for report in reports):
            item._initrequest()
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
            self.tests[-1][2] += report.duration
            if report.outcome != "passed":
                self.tests[-1][1] = report.outcome
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if self.cpu_s is not None and sum(os.times()[:4]) > self.cpu_s:
            item.session.shouldstop = "its time is used up"
        if self.watch:
            self.watch.end(*self.tests[-1])
        return True


def run_pytest(root, arguments, plugin_of, limit=None):
    """Run pytest in a fork, which has the heavy packages already; returns (exit code, Run.tests).

    Args:
        plugin_of: folder -> Run, called in the fork.
        limit: test id -> seconds after which all is killed; exit code is then None.
    """
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
    watch = _Watch(folder, limit)
    while not os.waitpid(pid, os.WNOHANG)[0]:
        time.sleep(0.05)
        if limit and watch.is_over():
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


class _Watch:
    """Whether the test that runs, or what comes before any, has had its time.

    A moment in which this process was stopped as well, as a machine that sleeps has them, is no
    time of the test.
    """

    def __init__(self, folder, limit):
        self._folder, self._limit = folder, limit
        self._name, self._spent, self._looked = None, 0.0, time.monotonic()

    def is_over(self):
        now = time.monotonic()
        self._spent += min(now - self._looked, 1.0)
        self._looked = now
        try:
            name, _ = json.loads((self._folder / "running").read_text())
        except (OSError, ValueError):
            name = None
        if name != self._name:
            self._name, self._spent = name, 0.0
        return self._spent > (300 if name is None else self._limit(name))
