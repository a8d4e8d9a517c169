"""metal.m through Python and ctypes, on the simulated Metal: what it opens, encodes, reports, keeps
and gives back; its memory is in test_shim_memory.py. What any device must do is in tests/device."""

import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from silu import DIM, run_silu, silu_program

from marlin.device import ops
from marlin.device.program import Recorder, View
from marlin.errors import DeviceError, NoDeviceError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


# --- opening ---


def test_a_device_says_which_gpu_it_is(metal_device):
    info = metal_device.info()
    assert (info["name"], info["isa"]) == ("Simulated Apple GPU", "apple9")
    assert (info["num_threads"], info["memory_bytes"]) == (0, 8 << 30)
    assert info["page_bytes"] == mmap.PAGESIZE


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("SIMMETAL_NO_DEVICE", "1", "this system has no Metal GPU, or shows none to this session"),
        ("SIMMETAL_FAMILY", "6", "Simulated Apple GPU is no Apple GPU of family 7"),
    ],
)
def test_a_system_without_a_usable_gpu_has_no_device(
    simulated_metal, sim, monkeypatch, name, value, reason
):
    before = sim.objects
    monkeypatch.setenv(name, value)
    with pytest.raises(NoDeviceError, match=reason):
        simulated_metal.open()
    assert sim.objects == before


def test_a_virtual_machines_gpu_that_is_too_old_is_named(simulated_metal, monkeypatch):
    monkeypatch.setenv("SIMMETAL_FAMILY", "5")
    monkeypatch.setenv("SIMMETAL_NAME", "Apple Paravirtual device")
    with pytest.raises(NoDeviceError, match="Paravirtual device is a virtual machine's GPU"):
        simulated_metal.open()


def test_a_session_without_a_default_gpu_takes_the_first_of_all(fresh, monkeypatch):
    monkeypatch.setenv("SIMMETAL_NO_DEVICE", "2")
    device = fresh()
    assert device.info()["name"] == "Simulated Apple GPU"
    run_silu(device)


def test_a_gpu_of_another_family_is_named(fresh, monkeypatch):
    monkeypatch.setenv("SIMMETAL_FAMILY", "7")
    assert fresh().info()["isa"] == "apple7"


def test_closing_gives_everything_back(simulated_metal, sim):
    before = sim.objects, sim.bytes, sim["resident"]
    device = simulated_metal.open()
    program, _ = silu_program(device, 3)
    program.run(1)
    assert sim.objects > before[0] and sim.bytes > before[1]
    device.close()
    assert (sim.objects, sim.bytes, sim["resident"]) == before


def test_steps_leave_nothing_behind(metal_device, sim):
    program, _ = silu_program(metal_device, 3)
    for _ in range(3):  # from then on one that is encoded ahead is there at any time
        program.run(1)
    before = sim.objects
    for _ in range(20):
        program.run(1)
    assert sim.objects == before
    program.close()


# --- what a replay encodes ---


def test_only_what_changes_is_bound_again_and_barriers_stand_where_recorded(metal_device, sim):
    program, _ = silu_program(metal_device, 3)
    buffers, barriers = sim["set_buffer"], sim["barrier"]
    program.run(1)
    # Status, constants twice; three buffers of the first dispatch, and of the next ones each two
    # inputs and an output.
    assert sim["set_buffer"] - buffers == 3 + 9
    assert sim["barrier"] - barriers == 2
    buffers = sim["set_buffer"]
    program.run(0)
    assert sim["set_buffer"] - buffers == 1
    program.close()


# --- failures ---


@pytest.mark.parametrize(
    "failure, index, reason", [("0", 0, "Address Fault"), ("2:timeout", 2, "GPU Timeout")]
)
def test_a_gpu_failure_names_the_dispatches_then_the_one_and_the_device_goes_on(
    fresh, sim, monkeypatch, failure, index, reason
):
    """How far a pass gets is asked for once one has failed: it takes time."""
    program, _ = silu_program(fresh(), 3)
    program.run(1)
    objects = sim.objects
    monkeypatch.setenv("SIMMETAL_FAIL", failure)
    where = r"dispatches \[0, 3\), from silu_mul on"
    with pytest.raises(DeviceError, match=rf"{where}: the GPU failed: Caused .*{reason}"):
        program.run(1)
    expected = rf"dispatch {index} \(silu_mul\): the GPU failed: Caused .*{reason}"
    with pytest.raises(DeviceError, match=expected):
        program.run(1)
    assert sim.objects == objects
    monkeypatch.delenv("SIMMETAL_FAIL")
    program.run(1)
    program.close()


def test_a_kernel_whose_pipeline_cannot_be_made_is_named(fresh, sim, monkeypatch):
    monkeypatch.setenv("SIMMETAL_NIL_PIPELINE", "silu_mul")
    device = fresh()
    views = [View.of(device.create(4 * DIM)) for _ in range(2)]
    before = sim.objects
    for _ in range(2):
        recorder = Recorder(device)
        ops.silu_mul(recorder, views[0], views[0], views[1], DIM)
        with pytest.raises(DeviceError, match="kernel silu_mul cannot be made: Compiler"):
            recorder.finish()
    assert sim.objects == before


def test_a_gpu_with_too_few_threads_for_a_kernel_is_refused_each_time(fresh, monkeypatch):
    monkeypatch.setenv("SIMMETAL_MAX_THREADS", "64")
    device = fresh()
    for _ in range(2):
        with pytest.raises(DeviceError, match="silu_mul needs threadgroups of 256.* with 64 in 32"):
            silu_program(device)


def test_closing_a_device_waits_for_its_replay(simulated_metal, sim, monkeypatch):
    monkeypatch.setenv("SIMMETAL_DELAY_US", "20000")
    before = sim.objects
    device = simulated_metal.open()
    program, _ = silu_program(device)
    program.submit(1)
    device.close()
    assert sim.objects == before


# --- where kernels come from ---


def archive_in(home):
    (path,) = (home / "Library" / "Caches" / "metal-marlin").iterdir()
    return path


def use_once(simulated_metal, home):
    """Runs a program on a device of its own and closes that."""
    device = simulated_metal.open(home=home)
    run_silu(device)
    device.close()


def test_pipelines_are_kept_for_the_next_process(simulated_metal, sim, tmp_path):
    use_once(simulated_metal, tmp_path)
    saved, written = sim["saved"], archive_in(tmp_path)
    assert written.suffix == ".metallib"
    use_once(simulated_metal, tmp_path)
    assert sim["saved"] == saved  # it had all


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("METAL_MARLIN_KEEP_PIPELINES", "0"),
        ("SIMMETAL_NO_ARCHITECTURE", "1"),
        ("SIMMETAL_NAME", "Apple Paravirtual device"),
    ],
)
def test_no_archive_is_opened_where_that_is_not_wanted_or_has_ended_processes(
    simulated_metal, tmp_path, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    use_once(simulated_metal, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pipelines_are_made_from_the_archive_that_they_are_compiled_into(
    simulated_metal, sim, tmp_path
):
    made = sim["from_archive"]
    use_once(simulated_metal, tmp_path)
    assert sim["from_archive"] == made + 1


def test_pipelines_are_written_once_when_the_device_closes(simulated_metal, sim, tmp_path):
    saved, device = sim["saved"], simulated_metal.open(home=tmp_path)
    run_silu(device)
    weight, out = device.create(4 * DIM), device.create(4 * DIM)
    recorder = Recorder(device)
    ops.rms_norm(recorder, View.of(out), View.of(weight), View.of(out), DIM, 1e-5)
    recorder.finish().run(1)
    assert sim["saved"] == saved
    device.close()
    assert sim["saved"] == saved + 1
    use_once(simulated_metal, tmp_path)  # everything that it needs is there
    assert sim["saved"] == saved + 1


def test_a_damaged_archive_is_made_anew(simulated_metal, tmp_path):
    use_once(simulated_metal, tmp_path)
    good = archive_in(tmp_path).read_bytes()
    archive_in(tmp_path).write_bytes(b"cut sho")
    use_once(simulated_metal, tmp_path)
    assert archive_in(tmp_path).read_bytes() == good


DAY_S = 24 * 3600


def test_archives_that_nothing_wrote_for_30_days_go_when_a_new_one_is_written(
    simulated_metal, tmp_path
):
    folder = tmp_path / "Library" / "Caches" / "metal-marlin"
    folder.mkdir(parents=True)
    days = {"0a.metallib": 31, "0b.metallib": 29, "0c.metallib.7.0x1": 31, "notes.txt": 99}
    for name, age in days.items():
        (folder / name).write_text("")
        os.utime(folder / name, (time.time() - age * DAY_S,) * 2)
    use_once(simulated_metal, tmp_path)
    (written,) = {path.name for path in folder.iterdir()} - {"0b.metallib", "notes.txt"}
    os.utime(folder / written, (time.time() - 99 * DAY_S,) * 2)
    use_once(simulated_metal, tmp_path)  # writes nothing
    assert {path.name for path in folder.iterdir()} == {"0b.metallib", "notes.txt", written}


@pytest.mark.parametrize("home", ["/dev/null", "relative", "/" + "long/" * 300])
def test_a_home_that_cannot_be_written_is_no_error(simulated_metal, home):
    use_once(simulated_metal, home)


SCRIPT = """
import sys
from marlin.device.device import Device
try:
    device = Device(kind="metal", library_path=sys.argv[1])
    device.create(64)
    device.close()
    print("opened", device.library.sim_counted(0), device.library.sim_live_objects())
except Exception as error:
    print("refused", error)
"""


def run_elsewhere(script, *arguments, folders=(), **environment):
    """The finished process of a script: two libraries in one would have the same class names."""
    path = os.pathsep.join(map(str, (ROOT, *folders)))
    environment = os.environ | {"PYTHONPATH": path} | environment
    command = [sys.executable, *script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def said_by(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def alone(simulated_metal, tmp_path):
    """A copy of the library without a metallib: it compiles the source that it holds."""
    return Path(shutil.copy(simulated_metal.library, tmp_path))


def test_instead_of_a_damaged_metallib_the_source_is_compiled_and_a_warning_says_so(
    alone, simulated_metal, tmp_path
):
    """Without its path: reports are made to be shown. What follows are Metal's own words."""
    (tmp_path / "marlin.metallib").write_bytes(b"cut sho")
    whole = simulated_metal.library.with_name("marlin.metallib")
    compiler = f"""sh -c 'cp "{whole}" "$2"' compiler"""
    done = run_elsewhere(["-c", SCRIPT], alone, SIMMETAL_COMPILER=compiler)
    assert said_by(done).startswith("opened 1 ")
    said = "marlin.metallib does not load, so the shaders' source was compiled: "
    assert said in done.stderr and str(tmp_path) not in done.stderr.split(said)[0]


def test_the_whole_source_is_compiled_without_a_metallib_and_its_pipelines_are_kept(
    alone, simulated_metal, tmp_path
):
    import simulated

    environment = simulated_metal.environment | {"HOME": str(tmp_path)}
    environment["SIMMETAL_COMPILER"] = simulated.compiler_command(simulated_metal.home.parent)
    script = [HERE / "sim" / "run_kernels.py"]
    folders = (HERE.parent / "support", HERE.parent / "device")
    archives = []
    for kept in ("anew", "from the archive"):
        done = run_elsewhere(script, alone, folders=folders, **environment)
        assert said_by(done) == f"compiled 1 {kept}"
        archives.append(archive_in(tmp_path).read_text())
    assert archives[0] == archives[1] and "matvec_int4" in archives[0]


def test_a_source_that_does_not_compile_says_why(alone):
    compiler = "sh -c 'echo line 7 is bad; false'"
    said = said_by(run_elsewhere(["-c", SCRIPT], alone, SIMMETAL_COMPILER=compiler))
    assert said.startswith("refused the shaders do not compile: line 7 is bad")


# --- the simulation sees what the shim encodes ---

BARRIER_SCRIPT = """
import sys
from marlin.device import ops
from marlin.device.device import Device
from marlin.device.program import Program, Recorder, View

device = Device(kind="metal", library_path=sys.argv[1])
views = [View.of(device.create(256)) for _ in range(3)]
recorder = Recorder(device)
ops.silu_mul(recorder, views[0], views[0], views[1], 64)
ops.silu_mul(recorder, views[1], views[1], views[2], 64)
records = recorder.finish().records.copy()
assert records["barrier"].tolist() == [0, 1]
records["barrier"][1] = sys.argv[2] == "with"
Program(device, records, ["", ""]).run(1)
device.close()
"""


@pytest.mark.parametrize("barrier", ["with", "without"])
def test_a_record_without_its_barrier_is_caught(simulated_metal, barrier):
    arguments = (simulated_metal.library, barrier)
    done = run_elsewhere(["-c", BARRIER_SCRIPT], *arguments, **simulated_metal.environment)
    expected = "dispatch 1 (silu_mul) reads buffer 0, which dispatch 0 (silu_mul) writes"
    assert (done.returncode == 0) == (barrier == "with"), done.stderr
    assert (expected in done.stderr) == (barrier == "without")
