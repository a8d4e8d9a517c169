"""How many connections fit into what the system allows, on folders made to look like its own."""

import os
import resource

import pytest

from marlin.errors import ConfigError
from marlin.server.http.limits import Limits
from marlin.server.process import room

LIMITS = Limits()
OWN_THREADS = 2 * 4 + 16
INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A Linux of four cores; system(nofile, nproc, uid) are its limits."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    monkeypatch.setattr(room.sys, "platform", "linux")
    monkeypatch.setattr(room, "usable_cores", lambda: 4)

    def configure(nofile=(65536, 65536), nproc=INFINITY, uid=1000):
        limits = {resource.RLIMIT_NOFILE: nofile, resource.RLIMIT_NPROC: (nproc, nproc)}
        monkeypatch.setattr(room.resource, "getrlimit", limits.__getitem__)
        monkeypatch.setattr(room.resource, "setrlimit", limits.__setitem__)
        monkeypatch.setattr(room.os, "getuid", lambda: uid)
        return limits

    configure()
    configure.root = tmp_path
    return configure


def set_pids(folder, limit, current):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pids.max").write_text(f"{limit}\n")
    (folder / "pids.current").write_text(f"{current}\n")


def test_with_room_for_all_nothing_changes_and_nothing_is_said(system, caplog):
    assert room.fitted(LIMITS, root=system.root) == LIMITS
    assert caplog.text == ""


def test_the_soft_limit_of_descriptors_is_raised_to_what_is_wanted(system):
    limits = system(nofile=(1024, 65536))
    assert room.fitted(LIMITS, root=system.root).num_connections == 2048
    assert limits[resource.RLIMIT_NOFILE] == (2048 + 16 + 128, 65536)


def test_a_hard_limit_of_descriptors_leaves_a_reserve_and_is_said(system, caplog):
    system(nofile=(256, 1024))
    assert room.fitted(LIMITS, root=system.root).num_connections == 1024 - 128 - 16
    assert "limited to 880 instead of 2048 by 1024 file descriptors" in caplog.text


def test_without_descriptors_for_any_the_start_is_refused_with_how_many_lack(system):
    system(nofile=(100, 144))
    with pytest.raises(ConfigError, match="144 file descriptors leave no room .*: 1 too few"):
        room.fitted(LIMITS, root=system.root)
    system(nofile=(100, 145))
    assert room.fitted(LIMITS, root=system.root).num_connections == 1


@pytest.mark.parametrize(
    ("listing", "folder"),
    [
        ("0::/\n", "sys/fs/cgroup"),
        ("0::/a/b\n", "sys/fs/cgroup/a/b"),
        ("0::/a/b\n", "sys/fs/cgroup/a"),  # what is above counts, too
        ("3:cpu:/x\n8:pids:/docker/1\n0::/\n", "sys/fs/cgroup/pids/docker/1"),
    ],
)
def test_a_cgroups_threads_leave_some_for_the_process_itself(system, caplog, listing, folder):
    (system.root / "proc/self/cgroup").write_text(listing)
    set_pids(system.root / folder, 500, 100)
    assert room.fitted(LIMITS, root=system.root).num_connections == 400 - OWN_THREADS - 16
    assert "limited to 360 instead of 2048 by 400 threads (pids.max)" in caplog.text


def test_the_tightest_of_several_limits_counts_and_max_is_none(system):
    (system.root / "proc/self/cgroup").write_text("0::/a/b\n")
    set_pids(system.root / "sys/fs/cgroup/a/b", "max", 7)
    set_pids(system.root / "sys/fs/cgroup/a", 1000, 100)
    assert room.fitted(LIMITS, root=system.root).num_connections == 900 - OWN_THREADS - 16
    system(nofile=(500, 500))
    assert room.fitted(LIMITS, root=system.root).num_connections == 500 - 128 - 16


def test_workers_share_the_threads_and_each_has_its_own_reserve(system):
    (system.root / "proc/self/cgroup").write_text("0::/\n")
    set_pids(system.root / "sys/fs/cgroup", 1000, 0)
    assert room.fitted(LIMITS, 2, system.root).num_connections == 500 - OWN_THREADS - 16
    with pytest.raises(ConfigError, match=r"1000 threads \(pids.max\) leave no room .*: 1 too few"):
        room.fitted(LIMITS, 25, system.root)  # 40 for each: 24, 16 and no more


def test_a_users_threads_count_against_its_limit_and_root_has_none(system):
    for pid, num_threads in ((10, 3), (11, 1)):
        for thread in range(num_threads):
            (system.root / f"proc/{pid}/task/{thread}").mkdir(parents=True)
    (system.root / "proc/version").write_text("")
    mine = os.stat(system.root / "proc/10").st_uid
    system(nproc=104, uid=mine)
    if mine == 0:
        assert room.fitted(LIMITS, root=system.root) == LIMITS
        assert room._threads_of(0, system.root) == 4
    else:
        assert room.fitted(LIMITS, root=system.root).num_connections == 100 - OWN_THREADS - 16
    system(nproc=30, uid=mine + 1)
    with pytest.raises(
        ConfigError, match=r"30 threads \(RLIMIT_NPROC\) leave no room .*: 11 too few"
    ):
        room.fitted(LIMITS, root=system.root)
    assert room._threads_of(mine + 1, system.root) == 0
