"""What a fault is given: servers to break, clients that go on meanwhile, and the questions that are
asked after every fault, all counted in one row of the table.

The rows themselves are in faults_*.py.
"""

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import judge
from victim import MODES, Load, Tally, Victim, until

# Of a run: enough kinds of requests, and few enough to have their right answers in two seconds.
NUMBERS = range(12)
FAULTS = []


@dataclass(frozen=True)
class Fault:
    """One injection, or a series of one kind.

    Attributes:
        area: heading of its row.
        act: function(arena); its name says what happens.
        modes: keys of victim.MODES in which it is injected.
        quick: those of them that every run of the tests has.
        may_lose: whether what a process had in hand may be lost; as many as there are clients.
    """

    area: str
    act: object
    modes: tuple
    quick: tuple
    may_lose: bool

    @property
    def name(self):
        return self.act.__name__.replace("_", " ")


def fault(area, *, modes=("one", "workers"), quick=(), may_lose=False):
    """Put a function into FAULTS."""

    def add(act):
        FAULTS.append(Fault(area, act, modes, quick, may_lose))
        return act

    return add


class Arena:
    """One run of one fault.

    Args:
        mode: key of victim.MODES.
        model: path of the model.
        reference: judge.Reference.
        folder: an empty folder of its own.
    """

    def __init__(self, mode, model, reference, folder):
        self.mode, self.model, self.reference, self.folder = mode, model, reference, folder
        self.tally = Tally()
        self.num_clients = 0
        self._stack = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    @property
    def has_workers(self):
        return self.mode.startswith("workers")

    def begin(self, *options, **how):
        """A Victim that may not serve yet, or ever."""
        victim = Victim(how.pop("model", self.model), (*MODES[self.mode], *options), **how)
        self._stack.callback(victim.close)
        return victim

    def start(self, *options, **how):
        """A Victim that serves."""
        victim = self.begin(*options, **how)
        victim.wait_until_well()
        return victim

    def injected(self, count=1):
        self.tally["injected"] += count

    @contextmanager
    def load(self, victim, num_clients=4, numbers=NUMBERS):
        """Clients that ask without a pause meanwhile, several streams under way at the start."""
        self.reference.prepare(numbers)
        self.num_clients += num_clients
        load = Load(victim, self.reference, numbers, num_clients)
        try:
            with load:
                yield load
        finally:
            self.tally.count(load.outcomes)

    def serves(self, victim, seconds=60):
        """It is well within this time, and then every answer is right."""
        try:
            until(lambda: victim.health() == 200, "it is well again", seconds, victim.log)
        except AssertionError:
            if victim.process.poll() is None and victim.health() != 503:
                self.tally.silent(f"neither well nor ended: {victim.log()[-500:]}")
            raise
        outcomes = [self._ask(victim, number) for number in NUMBERS[:4]]
        self.tally.count(outcomes)
        for outcome in outcomes:
            if outcome.kind != judge.RIGHT and victim.health() == 200:
                self.tally.silent(f"/health is 200 and an answer {outcome.kind} ({outcome.note})")

    def _ask(self, victim, number):
        """The outcome, after as many refusals as there are places for connections that end."""
        for _ in range(4):
            outcome = judge.ask(victim.port, number, self.reference)
            if outcome.retry_after is None:
                break
            time.sleep(outcome.retry_after)
        return outcome

    def ends(self, victim, codes, seconds=60, says=None):
        """All of it has ended within this time, with one of the codes, and said why.

        Args:
            says: what its log has to hold; None for nothing in particular.
        """
        code = victim.wait_for_end(seconds)
        log = victim.log()
        assert code in codes, f"it ended with {code}: {log}"
        assert "Traceback" not in log, log
        if says is not None and says not in log:
            self.tally.silent(f"ended with {code} and said only: {log[-500:]}")

    def check(self, may_lose):
        """Nothing was wrong or silent, and lost only what a process had in hand."""
        notes = "\n".join(f"{count} x {note}" for note, count in self.tally.notes.items())
        assert self.tally["injected"], "nothing was injected"
        assert not self.tally[judge.WRONG] and not self.tally["silent"], notes
        most = self.num_clients if may_lose else 0
        assert self.tally[judge.LOST] <= most, notes
