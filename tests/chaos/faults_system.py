"""What a system can take away from a server: descriptors, threads, memory, disks, readers of its
output, the right time, names that can be said."""

import os
import resource
import signal
import time

import pytest
from arena import fault
from faults_signals import ALL, INJECTED
from judge import MODEL
from victim import until

_CLOSED = (">&-", "2>&-", "<&-", "<&- >&- 2>&-")


def _serves_or_says_why_not(arena, how, numbers=(0, 1, 2, 3), num_clients=4):
    """Started with less than it wants, a server answers right, or ends with a line of reason."""
    victim = arena.begin(**how)
    arena.injected()

    def is_settled():
        no_worker_can = "replaced in 1 s" in victim.log()  # nor could one before
        return victim.process.poll() is not None or victim.health() == 200 or no_worker_can

    until(is_settled, f"it serves or ends with {how}", log=victim.log)
    if victim.process.poll() is not None or victim.health() != 200:
        _says_why_not(arena, victim, how)
        return
    with arena.load(victim, num_clients, numbers):
        time.sleep(1)
    arena.serves(victim)
    victim.metrics()
    victim.process.terminate()
    arena.ends(victim, {0})


def _says_why_not(arena, victim, how):
    victim.process.terminate()
    victim.wait_for_end(60)
    log = victim.log()
    # 0: it was told to stop. The signal: OpenBLAS, which numpy loads, interrupts a process that has
    # no room for its threads.
    assert victim.process.returncode in (0, 1, 2, 130, -signal.SIGINT), log
    assert "Traceback" not in log, log
    reasons = [line for line in log.splitlines() if "metal-marlin: " in line or "OpenBLAS" in line]
    if not reasons:
        arena.tally.silent(f"it did not start, with {how}: {log[-300:]}")
    arena.tally["refused"] += 1
    arena.tally.notes[f"refused at the start: {''.join(reasons[-1:])[:150]}"] += 1


@fault("limits", modes=ALL)
def few_descriptors(arena):
    for number in (16, 24, 64, 145, 160, 1024):
        _serves_or_says_why_not(arena, {"shell": f"ulimit -n {number}"})


@fault("limits", modes=ALL)
def little_address_space(arena):
    for megabytes in (200, 400, 600, 800, 1200, 2000):
        _serves_or_says_why_not(arena, {"shell": f"ulimit -v {megabytes * 1024}"})


@fault("limits", modes=ALL)
def other_limits(arena):
    for words in ("-f 0", "-f 100", "-s 256", "-l 0", "-c 0", "-d 300000"):
        _serves_or_says_why_not(arena, {"shell": f"ulimit {words}"})


@fault("limits", modes=ALL)
def few_threads(arena):
    if os.geteuid() != 0:
        pytest.skip("a limit on a user's threads needs a user of its own, and root to become it")
    for number in (1, 2, 4, 8, 12, 16, 32):
        # A user that nobody else is, who may read what root reads and write the log.
        user = f"setpriv --reuid {50_000 + os.getpid() % 10_000} --inh-caps +dac_override"
        shell = f'set -- {user} --ambient-caps +dac_override prlimit --nproc={number} "$@"'
        _serves_or_says_why_not(arena, {"shell": shell})


def _while_limited(arena, victim, what, limit):
    """Take a resource away from every process for a while, in the middle of its work."""
    before = [(pid, resource.prlimit(pid, what)) for pid in victim.pids()]
    with arena.load(victim):
        for pid, (_, hard) in before:
            resource.prlimit(pid, what, (limit(pid), hard))
            arena.injected()
        time.sleep(2)
        for pid, limits in before:
            try:
                resource.prlimit(pid, what, limits)
            except ProcessLookupError:  # it has ended
                pass
    arena.serves(victim)


@fault("limits", modes=ALL)
def no_descriptor_is_left_for_a_while(arena):
    _while_limited(arena, arena.start(), resource.RLIMIT_NOFILE, lambda pid: 3)


def _num_virtual_bytes(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


@fault("limits", modes=ALL, may_lose=True)
def no_memory_is_left_for_a_while(arena):
    """Nor a thread, since each needs a stack."""
    _while_limited(arena, arena.start(), resource.RLIMIT_AS, _num_virtual_bytes)


@fault("descriptors", modes=ALL)
def standard_descriptors_are_closed(arena):
    _without(arena, _CLOSED)


@fault("descriptors", modes=("workers",), quick=("workers",))
def output_and_error_are_closed(arena):
    _without(arena, (">&- 2>&-",))


def _without(arena, all_redirections):
    for redirections in all_redirections:
        victim = arena.start(redirections=redirections)
        arena.injected()
        with arena.load(victim):
            pass
        arena.serves(victim)
        victim.process.terminate()
        arena.ends(victim, {0})


@fault("descriptors", modes=("one", "workers"))
def standard_descriptors_are_odd(arena):
    """Open to read what is to be written and the other way round; many open files beside them."""
    held = " ".join(f"{fd}>{arena.folder}/held{fd}" for fd in range(3, 10))
    for redirections in (
        "</dev/full",
        ">/dev/null </dev/full",
        "1</dev/null 2</dev/null",
        held,
        f"{held} 2>&-",
    ):
        victim = arena.start(redirections=redirections)
        arena.injected()
        with arena.load(victim):
            pass
        arena.serves(victim)
        assert [path.name for path in arena.folder.iterdir() if path.stat().st_size] == []
        victim.process.terminate()
        arena.ends(victim, {0})


@fault("disks", modes=("one", "workers"))
def output_goes_to_a_full_disk(arena):
    for redirections in (">/dev/full 2>/dev/full", f"2>{arena.folder}/log"):
        shell = "ulimit -f 8" if "log" in redirections else ":"
        if shell != ":" and arena.has_workers:
            continue  # it would be the limit of the weights that workers share, too
        victim = arena.start("--log-level", "DEBUG", shell=shell, redirections=redirections)
        arena.injected()
        with arena.load(victim):
            time.sleep(1)
        arena.serves(victim)
        victim.process.terminate()
        arena.ends(victim, {0})


@fault("disks", modes=("one", "workers"))
def every_file_system_is_full_or_read_only(arena):
    """In a name space of its own: the root read-only, /var/tmp and /dev/shm without a byte."""
    if os.geteuid() != 0:
        pytest.skip("file systems of its own need root")
    mounts = (
        "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 1M /dev/zero >/dev/shm/all",
        "mount -t tmpfs -o size=4k tmpfs /var/tmp && head -c 1M /dev/zero >/var/tmp/all",
        "mount -o remount,ro,bind /",
    )
    for mount in mounts:
        shell = f'set -- unshare -m sh -c \'{{ {mount}; }} 2>/dev/null; exec "$@"\' sh "$@"'
        environ = {"TMPDIR": "/var/tmp", "HOME": "/nowhere"}
        _serves_or_says_why_not(arena, {"shell": shell, "environ": environ})


@fault("pipes", modes=("one", "workers"), quick=("one",), may_lose=True)
def nobody_reads_the_log(arena):
    """The pipe is full from the beginning; a stop takes no longer for it."""
    fifo = arena.folder / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.close(writer)
    victim = arena.start("--log-level", "DEBUG", redirections=f"2>{fifo} >{fifo}")
    arena.injected()
    with arena.load(victim):
        time.sleep(1)
        if arena.has_workers:
            victim.signal(9, victim.workers()[0])
            arena.injected()
            until(lambda: len(victim.workers()) == 2, "it is replaced")
    arena.serves(victim)
    victim.process.terminate()
    arena.ends(victim, {0})
    os.close(reader)


@fault("pipes", modes=("one", "workers"))
def whoever_reads_the_log_leaves(arena):
    victim = arena.start(shell='set -- sh -c \'exec "$@" 2>&1 | true\' sh "$@"')
    arena.injected()
    with arena.load(victim):
        pass
    arena.serves(victim)


@fault("clock", modes=ALL, quick=("batching",))
def the_time_of_day_jumps_in_mid_stream(arena):
    steps = arena.folder / "steps"
    environ = {"PYTHONPATH": INJECTED, "CLOCK_STEPS": str(steps)}
    victim = arena.start(environ=environ)
    day = 24 * 3600
    with arena.load(victim):
        for seconds in (-2 * 365 * day, 10 * 365 * day, -day, -50 * 365 * day, 3.5):
            steps.write_text(str(seconds))
            arena.injected()
            time.sleep(0.2)
    arena.serves(victim)
    victim.process.terminate()
    arena.ends(victim, {0})


@fault("names", modes=("one", "workers"))
def locales_that_lack_letters(arena):
    """A name that the locale can say is served, with escapes where output lacks it; another is
    refused at the start."""
    named = arena.folder / "модель-深い.gguf"
    named.symlink_to(arena.model)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    spoken = (
        {"LANG": "C", "LC_ALL": "C"},
        {"LC_ALL": "POSIX"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1", "LANG": "C"},
        {"LC_ALL": "nowhere.KOI8-R"},
    )
    for environ in spoken:
        victim = arena.start("--served-model-name", MODEL, model=named, environ=environ)
        arena.injected()
        arena.serves(victim)
        victim.process.terminate()
        arena.ends(victim, {0})
    for name in (named, os.fsencode(arena.folder) + b"/m\xff.gguf"):
        environ = ascii_only if name is named else {}
        victim = arena.begin(model=name, environ=environ)
        arena.injected()
        arena.ends(victim, {2}, 20, says="not UTF-8")
        arena.tally["refused"] += 1
