"""Which lines of marlin/ each test runs, in pytest's process and in every process that it starts.

Owns the record while it is made. Knows nothing of mutants. A process finds the folder of the record
by its own Python (`.venv/` of the copied tree, whose `.pth` imports this), so that no environment
has to reach it. Lines are written when they are first seen: a process that is killed loses none.
"""

import os
import sys
import threading
import time

_LOOK_S = 0.02  # how often a process other than pytest's looks which test runs
# What a test has not run by then it hardly will: calls of a function, lines of a call, all calls.
_MOST_CALLS, _MOST_LINES, _MOST_ALL = 100, 5_000, 300_000


class Tracer:
    """Traces marlin/ in this process.

    Args:
        folder: of the record; `current` in it holds the number of the test that runs.
        package: the folder whose files are traced.
        follows: whether another process says which test runs (else `begin` does).
    """

    def __init__(self, folder, package, follows):
        self._folder, self._package, self._follows = folder, package + os.sep, follows
        self._test = b"0"
        self._looked = 0.0
        self._seen = set()
        self._pending = []
        self._ours = {}  # code -> its file within the package, or None
        self._calls = {}  # code -> how often this test has called it
        self._all = 0  # calls of this test

    def install(self):
        threading.settrace(self._called)
        sys.settrace(self._called)

    def begin(self, test):
        """What runs from now on is this test's; `follows` processes read it from `current`."""
        self.install()  # anew: an error within, as of a stack that is full, ends all tracing
        self._test, self._seen, self._calls, self._all = test, set(), {}, 0
        with open(os.path.join(self._folder, "current"), "wb") as file:
            file.write(test)

    def flush(self):
        """Append what is pending; what cannot be written (no descriptors left) is seen anew."""
        pending, self._pending = self._pending, []
        text = "".join(f"{name}:{line}\n" for name, line in pending)
        path = os.path.join(self._folder, f"lines.{self._test.decode()}.{os.getpid()}")
        try:
            with open(path, "a") as file:
                file.write(text)
        except OSError:
            self._seen.difference_update(pending)

    def _look(self):
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            with open(os.path.join(self._folder, "current"), "rb") as file:
                test = file.read()
        except OSError:
            return
        if test and test != self._test:
            self._test, self._seen, self._calls = test, set(), {}

    def _called(self, frame, _event, _argument):
        code = frame.f_code
        self._all += 1
        if self._all > _MOST_ALL and not self._follows:
            sys.settrace(None)
            return None
        name = self._ours.get(code, "")
        if name == "":
            path = code.co_filename
            name = path[len(self._package) :] if path.startswith(self._package) else None
            self._ours[code] = name
        if name is None:
            return None
        if self._follows:
            self._look()
        if (name, frame.f_lineno) not in self._seen:
            self._note(name, frame.f_lineno)
        calls = self._calls[code] = self._calls.get(code, 0) + 1
        if calls > _MOST_CALLS:
            return None
        lines = 0

        def ran(frame, event, _argument):
            nonlocal lines
            lines += 1
            frame.f_trace_lines = lines < _MOST_LINES
            if event == "line" and (name, frame.f_lineno) not in self._seen:
                self._note(name, frame.f_lineno)
            return ran

        return ran

    def _note(self, name, line):
        self._seen.add((name, line))
        self._pending.append((name, line))
        if self._follows:
            self.flush()


def follow(root):
    """Trace this process, which a test started, while a record is being made (for the `.pth`)."""
    folder = os.path.join(root, ".mutate")
    if os.path.exists(os.path.join(folder, "current")):
        Tracer(folder, os.path.join(root, "marlin"), follows=True).install()
