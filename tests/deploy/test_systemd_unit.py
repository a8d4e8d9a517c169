"""deploy/metal-marlin.service: systemd accepts it, and the server runs under what it forbids."""

import configparser
import ctypes
import re
import resource
import subprocess
import sys

import pytest
from contract import CHAT, chat
from served import Served

from marlin.config import OPTIONS
from marlin.server.http.limits import Limits

UNIT = "metal-marlin.service"
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1  # linux/prctl.h


class Repeats(dict):
    """systemd's keys may repeat; the values of one are joined by line ends."""

    def __setitem__(self, key, value):
        if key in self and isinstance(value, list):
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


def read_unit(path):
    parser = configparser.ConfigParser(
        dict_type=Repeats, strict=False, interpolation=None, comment_prefixes=("#",)
    )
    parser.optionxform = str
    parser.read(path)
    return parser


@pytest.fixture
def unit(deploy):
    return read_unit(deploy / UNIT)


@pytest.fixture
def installed(deploy, tmp_path):
    """The unit with a command that exists on this machine."""
    text, count = re.subn(
        "^ExecStart=/opt/metal-marlin/venv/bin/python -I -B -m marlin ",
        "ExecStart=/bin/true ",
        (deploy / UNIT).read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1
    path = tmp_path / UNIT
    path.write_text(text)
    return path


def test_systemd_finds_no_fault(program, installed):
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", installed],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_rates_the_exposure_as_low(program, installed):
    # In tenths of systemd's scale, where 10.0 is no protection; its own "OK" begins at 5.0.
    command = [program("systemd-analyze"), "security", "--offline=true", "--threshold=10"]
    done = subprocess.run([*command, installed], capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot rate a file")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_it_listens_where_it_may_and_not_without_a_key(unit):
    service = unit["Service"]
    port = re.search(r"METAL_MARLIN_PORT=(\d+)", service["Environment"])[1]
    assert service["SocketBindDeny"] == "any" and service["SocketBindAllow"] == f"tcp:{port}"
    assert "METAL_MARLIN_REQUIRE_KEY=true" in service["Environment"]
    assert service["ExecStart"].split()[0].startswith(service["ExecPaths"].split()[0] + "/")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"  # which the key file is read again at


def test_streams_in_flight_have_their_time_before_systemd_kills(unit):
    service = unit["Service"]
    assert service["KillMode"] == "mixed"  # a worker must not get the signal twice
    assert int(service["TimeoutStopSec"]) > Limits().drain_s


def test_every_connection_of_every_worker_has_its_descriptor_and_thread(unit):
    service = unit["Service"]
    num_workers = int(re.search(r"METAL_MARLIN_WORKERS=(\d+)", service["Environment"])[1])
    assert int(service["LimitNOFILE"]) > Limits().num_connections + 256  # of each process
    assert int(service["TasksMax"]) >= num_workers * Limits().num_connections


def test_its_variables_are_ones_that_the_server_reads(unit, deploy):
    known = {option.variable for option in OPTIONS} | {
        "METAL_MARLIN_API_KEY",
        "METAL_MARLIN_MODEL_PATH",
    }
    example = (deploy / "metal-marlin.env.example").read_text()
    for text in (unit["Service"]["Environment"], example):
        names = set(re.findall(r"METAL_MARLIN_[A-Z_]+", text))
        assert names and names <= known


def test_an_env_file_copied_as_it_is_changes_none_of_the_units_settings(deploy):
    lines = (deploy / "metal-marlin.env.example").read_text().splitlines()
    given = [line for line in lines if line and not line.startswith("#")]
    assert given == ["METAL_MARLIN_API_KEY="]


def test_the_key_is_put_in_force_before_the_server_starts(checkout):
    page = (checkout / "docs" / "deployment.md").read_text()
    steps = page.partition("## systemd")[2].partition("```bash\n")[2].partition("```")[0]
    edit, start = (steps.index(word) for word in ("sudoedit /etc/metal-marlin.env", "enable --now"))
    assert edit < start
    assert "systemctl restart metal-marlin" in page


def _restrict():
    """What NoNewPrivileges and MemoryDenyWriteExecute set, in the child before it starts."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
        raise OSError("no PR_SET_MDWE")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def test_the_server_runs_where_memory_is_never_writable_and_executable(demo_model_path):
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0:  # PR_GET_MDWE
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    with Served(demo_model_path, "--host", "127.0.0.1", before_start=_restrict) as served:
        body = chat(model="SmolLM2-135M-Instruct.Q4_1", max_tokens=2)
        assert served.post(CHAT, body)["choices"]
