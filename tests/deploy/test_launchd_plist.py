"""deploy/com.metal-marlin.server.plist, as far as a machine without launchd can judge it."""

import plistlib

import pytest

from marlin.cli import read
from marlin.config import OPTIONS, serve_config
from marlin.server.http.limits import Limits


@pytest.fixture
def plist(deploy):
    with open(deploy / "com.metal-marlin.server.plist", "rb") as file:
        return plistlib.load(file)


def test_its_command_and_variables_are_settings_that_the_server_takes(plist):
    program, *flags, marlin, command, model = plist["ProgramArguments"]
    assert program.endswith("/bin/python") and (flags, marlin) == (["-I", "-B", "-m"], "marlin")
    words = [command, model]
    variables = plist["EnvironmentVariables"]
    assert set(variables) <= {option.variable for option in OPTIONS}
    arguments = vars(read(words, {}))
    assert serve_config(arguments, variables).model_path == "/opt/models/qwen3_4b_fp4"


def test_it_does_not_start_without_a_key(plist):
    assert plist["EnvironmentVariables"]["METAL_MARLIN_REQUIRE_KEY"] == "true"


def test_it_starts_with_the_machine_and_again_after_a_crash(plist):
    assert plist["RunAtLoad"] is True and plist["KeepAlive"] is True
    assert plist["ThrottleInterval"] == 10


def test_streams_in_flight_have_their_time_before_launchd_kills(plist):
    assert plist["ExitTimeOut"] > Limits().drain_s


def test_every_connection_has_its_descriptor(plist):
    for limits in (plist["SoftResourceLimits"], plist["HardResourceLimits"]):
        assert limits["NumberOfFiles"] > Limits().num_connections
    assert plist["Umask"] == 0o077
