"""Which kind of device is opened: the one asked for or a clear refusal, and the best one here
without being asked."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from marlin.config import DEVICE_KINDS, MAX_THREADS
from marlin.device import abi, device
from marlin.device.device import Device
from marlin.errors import ConfigError, DeviceError, NoDeviceError

FAILURES = {
    abi.ENODEV: (NoDeviceError, "no metal device: this system has no Metal GPU"),
    -4: (DeviceError, "^this system has no Metal GPU"),
}


@pytest.fixture(params=FAILURES)
def no_gpu(monkeypatch, request):
    """A Mac that has the Metal library built and no GPU for it, or one that fails."""
    library = SimpleNamespace(
        marlin_abi_version=lambda: abi.ABI_VERSION,
        marlin_device_open=lambda options, out: request.param,
        marlin_last_error=lambda: b"this system has no Metal GPU",
    )
    real_load = abi.load_library
    monkeypatch.setattr(device, "why_not", lambda kind: None)
    monkeypatch.setattr(
        abi, "load_library", lambda path: library if "metal" in path.name else real_load(path)
    )
    return FAILURES[request.param]


@pytest.fixture
def posing():
    """The CPU's library opened as if it were Metal's."""
    opened = Device(library_path=abi.library_path("cpu"), kind="metal")
    yield opened
    opened.close()


def test_the_command_line_knows_the_kinds_of_the_library():
    assert set(DEVICE_KINDS) == set(abi.DEVICE_KINDS)


def test_a_device_tells_its_kind(any_device, posing):
    assert (any_device.kind, any_device.info()["kind"]) == ("cpu", "cpu")
    assert (posing.kind, posing.info()["kind"]) == ("metal", "metal")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have Metal")
def test_off_a_mac_metal_is_refused_and_the_default_is_the_cpu():
    with pytest.raises(NoDeviceError, match="no metal device: Metal is a Mac's"):
        Device(kind="metal")
    opened = Device()
    assert opened.kind == "cpu"
    opened.close()


def test_on_a_mac_without_the_library_metal_is_refused_with_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(abi, "library_path", lambda kind: tmp_path / f"libmarlin_{kind}.dylib")
    with pytest.raises(NoDeviceError, match="libmarlin_metal.dylib was not built.*build.py"):
        Device(kind="metal")
    assert device.expected_kind() == "cpu"


@pytest.mark.parametrize(
    ("version", "kind"),
    [("13.6.1", "cpu"), ("14.0", "metal"), ("26.1", "metal"), ("10.15.7", "cpu")],
)
def test_a_macos_whose_compiler_is_too_old_has_no_metal(monkeypatch, tmp_path, version, kind):
    monkeypatch.setattr(device, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(device.platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    monkeypatch.setattr(abi, "library_path", lambda kind: tmp_path / f"libmarlin_{kind}.dylib")
    (tmp_path / "libmarlin_metal.dylib").touch()
    assert device.expected_kind() == kind
    if kind == "cpu":
        with pytest.raises(NoDeviceError, match=f"need macOS 14, and this is {version}"):
            Device(kind="metal")


def test_on_a_mac_with_the_library_the_default_is_metal(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(abi, "library_path", lambda kind: tmp_path / f"libmarlin_{kind}.dylib")
    (tmp_path / "libmarlin_metal.dylib").touch()
    assert device.expected_kind() == "metal"


def test_where_metal_fails_the_default_is_the_cpu_and_a_warning_and_metal_a_refusal(no_gpu, caplog):
    opened = Device()
    assert opened.kind == "cpu" and opened.info()["num_threads"] >= 1
    opened.close()
    (said,) = caplog.messages
    assert said.startswith("the CPU computes, many times slower") and "no Metal GPU" in said
    kind, text = no_gpu
    with pytest.raises(kind, match=text):
        Device(kind="metal")


def test_a_library_that_the_system_cannot_load_leaves_the_cpu(monkeypatch, tmp_path, caplog):
    broken, real = tmp_path / "libmarlin_metal.dylib", abi.library_path("cpu")
    broken.write_bytes(b"cut sho")
    monkeypatch.setattr(device, "why_not", lambda kind: None)
    monkeypatch.setattr(abi, "library_path", lambda kind: broken if kind == "metal" else real)
    opened = Device()
    opened.close()
    assert opened.kind == "cpu"
    assert "native library libmarlin_metal.dylib cannot be loaded" in caplog.text


def test_what_is_not_as_it_should_be_is_a_warning(monkeypatch, caplog):
    told = Device.info
    monkeypatch.setattr(Device, "info", lambda self: told(self) | {"note": "something is slow"})
    Device(library_path=abi.library_path("cpu"), kind="metal").close()
    assert caplog.messages == ["something is slow"]


@pytest.mark.parametrize(
    ("options", "named"), [({"num_threads": 2}, "--threads"), ({"isa": "neon"}, "--isa")]
)
def test_a_metal_device_refuses_what_only_a_cpu_has(no_gpu, options, named):
    for kind in ("metal", None):  # asked for, or what the default would be
        with pytest.raises(ConfigError, match=f"{named} is the CPU device's"):
            Device(kind=kind, **options)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have Metal")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 1, "there is no metal device: Metal is a Mac's"),
        (["--threads", "2"], 2, "--threads is the CPU device's"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "generate", "bench"])
def test_a_command_that_cannot_have_its_device_ends_with_one_line(
    command, words, code, said, tmp_path
):
    prompt = ["--prompt", "x"] if command == "generate" else []
    address = ["--host", "127.0.0.1", "--port", "0"] if command == "serve" else []
    words = [command, str(tmp_path), "--device", "metal", *words, *prompt, *address]
    # A process of its own, since one that begins to serve is locked down for good.
    program = "import sys; from marlin.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_an_unknown_kind_is_named():
    with pytest.raises(DeviceError, match="no device is a 'gpu'"):
        Device(kind="gpu")


def test_more_cores_than_the_library_has_room_for_open_as_many_threads_as_it_has(monkeypatch):
    monkeypatch.setattr(device, "usable_cores", lambda: 384)
    for num_processes, num_threads in ((1, 256), (3, 128)):
        opened = Device(kind="cpu", num_processes=num_processes)
        assert opened.info()["num_threads"] == num_threads
        opened.close()


def test_the_options_limit_on_threads_is_the_librarys(checkout):
    source = (checkout / "metal_shim" / "cpu" / "cpu.c").read_text()
    assert int(re.search(r"#define MAX_THREADS (\d+)", source)[1]) == MAX_THREADS


def test_processes_that_share_the_machine_divide_its_cores(monkeypatch):
    monkeypatch.setattr(device, "usable_cores", lambda: 7)
    for num_processes, num_threads in ((1, 7), (3, 2), (9, 1)):
        opened = Device(kind="cpu", num_processes=num_processes)
        assert opened.info()["num_threads"] == num_threads
        opened.close()
