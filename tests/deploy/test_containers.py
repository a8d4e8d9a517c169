"""deploy/Dockerfile and docker-compose.yml: what can be judged without a container engine."""

import json
import os
import re
import subprocess
import sys

import pytest
from served import serve_mock

from marlin.cli import read
from marlin.config import OPTIONS, serve_config
from marlin.server.http.limits import Limits


@pytest.fixture
def dockerfile(deploy):
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = (deploy / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


@pytest.fixture
def compose(deploy):
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the compose file")
    return yaml.safe_load((deploy / "docker-compose.yml").read_text())


def arguments_of(dockerfile, instruction):
    return [arguments for name, arguments in dockerfile if name == instruction]


def environment(dockerfile):
    """The variables of the image's last stage."""
    pairs = " ".join(arguments_of(dockerfile, "ENV")).split()
    return dict(pair.split("=", 1) for pair in pairs)


def health_command(dockerfile):
    (health,) = arguments_of(dockerfile, "HEALTHCHECK")
    return json.loads(health.partition(" CMD ")[2])


def run_health_check(dockerfile, port):
    name, *words = health_command(dockerfile)
    assert name == "python"
    environ = {**os.environ, "METAL_MARLIN_PORT": str(port)}
    return subprocess.run([sys.executable, *words], env=environ, stderr=subprocess.DEVNULL)


def test_everything_it_copies_is_in_the_checkout_and_let_through(dockerfile, deploy, checkout):
    copied = [words.split()[:-1] for words in arguments_of(dockerfile, "COPY") if "--" not in words]
    sources = [source for words in copied for source in words]
    assert "marlin" in sources
    let_through = (deploy / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (checkout / source).exists() and f"!{source}" in let_through


def test_the_compiler_stays_in_the_first_stage(dockerfile):
    stages = [index for index, (name, _) in enumerate(dockerfile) if name == "FROM"]
    assert len(stages) == 2 and dockerfile[stages[0]][1].endswith(" AS build")
    last = dockerfile[stages[1] :]
    assert not any("gcc" in arguments or "apt-get" in arguments for _, arguments in last)


def test_both_stages_begin_with_a_digest_that_has_no_default(dockerfile, compose):
    bases = {arguments.removesuffix(" AS build") for arguments in arguments_of(dockerfile, "FROM")}
    assert bases == {"${BASE}@sha256:${BASE_SHA256}"}
    assert "BASE_SHA256" in arguments_of(dockerfile, "ARG")
    given = compose["services"]["metal-marlin"]["build"]["args"]
    assert given["BASE_SHA256"].startswith("${BASE_SHA256:?")


def test_it_does_not_run_as_root(dockerfile):
    (user,) = arguments_of(dockerfile, "USER")
    assert int(user) > 0


def test_its_command_is_one_that_the_server_takes(dockerfile):
    (entry,), (command,) = (arguments_of(dockerfile, name) for name in ("ENTRYPOINT", "CMD"))
    assert json.loads(entry) == ["python", "-I", "-B", "-m", "marlin"]
    arguments = vars(read(json.loads(command), {}))
    config = serve_config(arguments, environment(dockerfile))
    assert (config.host, config.port) == ("0.0.0.0", 8000)
    assert arguments_of(dockerfile, "EXPOSE") == ["8000"]


def test_a_variable_given_to_the_container_sets_its_address(dockerfile):
    (command,) = arguments_of(dockerfile, "CMD")
    arguments = vars(read(json.loads(command), {}))
    given = environment(dockerfile) | {"METAL_MARLIN_HOST": "10.0.0.7"}
    assert environment(dockerfile)["METAL_MARLIN_HOST"] == "0.0.0.0"
    assert serve_config(arguments, given).host == "10.0.0.7"


def test_its_health_check_tells_a_server_from_none(dockerfile):
    with serve_mock() as served:
        assert run_health_check(dockerfile, served.port).returncode == 0
    assert run_health_check(dockerfile, served.port).returncode != 0


def test_compose_builds_this_dockerfile_and_has_no_obsolete_version(compose, deploy):
    assert "version" not in compose
    build = compose["services"]["metal-marlin"]["build"]
    context = (deploy / build["context"]).resolve()
    assert (context / build["dockerfile"]).samefile(deploy / "Dockerfile")


def test_compose_gives_variables_that_the_server_takes(compose):
    environ = compose["services"]["metal-marlin"]["environment"]
    known = {option.variable for option in OPTIONS} | {"METAL_MARLIN_API_KEY"}
    assert set(environ) <= known
    settings = {name: re.sub(r"\$\{.*\}", "", value) for name, value in environ.items()}
    assert serve_config({}, settings).port == 8000


def test_compose_lets_streams_finish_and_mounts_what_is_shipped(compose, deploy):
    services = compose["services"]
    grace = services["metal-marlin"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Limits().drain_s
    sources = [volume.split(":")[0] for volume in services["nginx"]["volumes"]]
    assert "./nginx.conf" in sources and (deploy / "nginx.conf").is_file()
