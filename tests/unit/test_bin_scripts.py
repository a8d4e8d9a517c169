"""bin/demo, bin/test and bin/metal-marlin: what they print, what they start, and when they install.

Each runs in a small checkout made here, whose Python is a shell script that notes how it is called;
nothing is downloaded and nothing is served."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from stand_in_checkout import MODEL, Checkout, python_modules

# How bin/test has two processes run the tests.
SPREAD = "<-n><2><--dist><loadfile><--no-loadscope-reorder>"


@pytest.fixture
def bare(tmp_path, checkout):
    return Checkout(tmp_path / "a checkout", checkout)


@pytest.fixture
def ready(bare):
    bare.add_fake_venv()
    return bare


@pytest.mark.parametrize(
    "options, address",
    [
        *(([], "127.0.0.1:8000"), (["--port", "8123"], "127.0.0.1:8123")),
        *((["--port=8123"], "127.0.0.1:8123"), (["--port", "1", "--port=2"], "127.0.0.1:2")),
        (["--threads", "2", "--host", "10.0.0.7", "--port", "80"], "10.0.0.7:80"),
        (["--host=0.0.0.0"], "127.0.0.1:8000"),
        (["--host", "::"], "[::1]:8000"),
        (["--host", "fe80::1"], "[fe80::1]:8000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_demo_prints_a_curl_and_a_python_line_for_the_address_served(ready, options, address):
    done, _ = ready.run("demo", *options)
    assert done.returncode == 0, done.stderr
    url = f"http://{address}/v1/chat/completions"
    curl, python = [line for line in done.stdout.splitlines() if url in line]
    assert curl.startswith("curl ") and python.startswith("python3 -c ")
    assert '"model": "My-Model.Q4_1"' in curl and '"model": "My-Model.Q4_1"' in python


def test_the_python_line_of_demo_is_python(ready):
    done, _ = ready.run("demo")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("python3 -c ")]
    code = line.removeprefix("python3 -c '").removesuffix("'")
    assert "'" not in code
    compile(code, "the line", "exec")


def test_demos_lines_carry_the_key_by_its_variable_and_never_print_it(ready):
    done, _ = ready.run("demo", METAL_MARLIN_API_KEY="sesame-1234")
    assert "sesame-1234" not in done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "/v1/chat/completions" in line]
    sent = run_lines(ready, lines, METAL_MARLIN_API_KEY="sesame-1234")
    assert sent == ["Bearer sesame-1234"] * 2
    without = ready.run("demo")[0].stdout
    assert "Authorization" not in without


def run_lines(ready, lines, **environ):
    """The Authorization header that a curl and a python3 line would send."""
    tools = ready.root.parent / "tools"
    tools.mkdir()
    (tools / "curl").write_text('#!/bin/sh\nprintf "%s\\n" "$@" | grep "^Authorization"\n')
    (tools / "python3").write_text(
        "#!/bin/sh\n"
        f'exec "{sys.executable}" -c "import sys, urllib.request as u\n'
        "u.urlopen = lambda r: sys.exit(print('Authorization: ' + r.get_header('Authorization')))\n"
        'exec(sys.argv[1])" "$2"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    done = [
        subprocess.run(
            ["sh", "-c", line], env={"PATH": path, **environ}, capture_output=True, text=True
        )
        for line in lines
    ]
    return [one.stdout.strip().removeprefix("Authorization: ") for one in done]


def test_demo_on_any_free_port_points_to_the_line_that_names_it(ready):
    done, _ = ready.run("demo", "--port", "0")
    assert ":0/" not in done.stdout
    assert done.stdout.count("http://127.0.0.1:PORT/v1/") == 2
    assert "PORT is in the line that says what it serves" in done.stdout


def test_demo_serves_the_model_with_the_users_options_last(ready):
    _, calls = ready.run("demo", "--port", "8123", "--alias", "two words")
    command = str(ready.root / "bin" / "metal-marlin")
    assert calls[-1] == (
        f"<-S><{command}><serve><{MODEL}><--host><127.0.0.1><--port><8000>"
        "<--port><8123><--alias><two words>"
    )


def test_demo_help_sets_nothing_up_and_shows_serves_options(bare):
    done, calls = bare.run("demo", "--port", "1", "--help")
    assert done.returncode == 0 and "usage: bin/demo" in done.stdout
    assert done.stdout.splitlines()[-1] == "['help', 'serve']"
    assert calls == [] and not (bare.root / ".venv").exists()


def test_demo_checks_its_options_before_it_sets_anything_up(checkout, bare):
    shutil.rmtree(bare.root / "marlin")
    shutil.copytree(checkout / "marlin", bare.root / "marlin")
    for words, said in (
        (["--nosuch"], "no option --nosuch"),
        (["--port", "x"], "--port must be a whole number"),
    ):
        done, calls = bare.run("demo", *words)
        assert (done.returncode, done.stdout, calls) == (2, "", [])
        assert said in done.stderr
        assert not (bare.root / ".venv").exists()


def test_test_passes_its_arguments_to_pytest_in_the_checkout(ready):
    _, calls = ready.run("test", "-k", "a or b", "tests/unit")
    assert calls[-1] == f"<-m><pytest>{SPREAD}<-k><a or b><tests/unit>"


def test_tests_run_in_one_process_where_the_spreading_plugin_is_off(ready):
    _, calls = ready.run("test", "-p", "no:xdist", "tests/unit")
    assert calls[-1] == "<-m><pytest><-p><no:xdist><tests/unit>"


def test_the_first_run_installs_in_place_and_the_second_does_not(ready):
    assert ready.installs("demo") == ["<-m><pip><install><--editable><.>"]
    assert ready.installs("demo") == []


def test_tests_install_their_extras_and_that_is_enough_for_the_demo(ready):
    assert ready.installs("test") == ["<-m><pip><install><--editable><.[test]>"]
    assert ready.installs("demo") == []
    assert ready.installs("test") == []


def test_light_tests_install_no_pytorch_and_pass_the_rest_on_to_pytest(ready):
    _, calls = ready.run("test", "--light", "-q", "tests/unit")
    assert "<-m><pip><install><--editable><.[test-light]>" in calls
    assert calls[-1] == f"<-m><pytest>{SPREAD}<-q><tests/unit>"
    assert ready.installs("demo") == ready.installs("test", "--light") == []


def test_what_light_tests_install_is_not_enough_for_all_and_not_the_other_way_round(ready):
    ready.installs("test", "--light")
    assert ready.installs("test") == ["<-m><pip><install><--editable><.[test]>"]
    assert ready.installs("test", "--light") == []


@pytest.fixture
def linted(checkout, ready):
    """A checkout with a stand-in for clang-format, and a source of each kind."""
    tool = ready.root / ".venv" / "bin" / "clang-format"
    tool.write_text('#!/bin/sh\nprintf "<%s>" clang-format "$@" >>"$LOG"; echo >>"$LOG"\n')
    tool.chmod(0o755)
    for folder in ("shaders", "tests/native", *(f"tests/metal/{n}" for n in METAL_FOLDERS)):
        (ready.root / folder).mkdir(parents=True)
    for name in ("shaders/a b.metal", "metal_shim/x.c", "tests/native/y.h", "metal_shim/no.py"):
        (ready.root / name).touch()
    return ready


METAL_FOLDERS = ("sim", "msl", "misuse")


@pytest.mark.parametrize(
    ("words", "layout", "ruff"),
    [
        ([], "--dry-run", ["<format><--check>", "<check>"]),
        (["--fix"], "-i", ["<format>", "<check><--fix>"]),
    ],
)
def test_lint_looks_at_every_source_or_mends_it(linted, words, layout, ruff):
    linted.installs("test")
    _, calls = linted.run("lint", *words)
    assert "<-m><pip><install><--editable><.[lint]>" in calls
    clang_format, *others = calls[-4:]
    assert clang_format.startswith(f"<clang-format><{layout}><--Werror>")
    names = set(re.findall(r"<([^<>]*)>", clang_format)[3:])
    assert names == {"shaders/a b.metal", "metal_shim/x.c", "tests/native/y.h"}
    assert others == [f"<-m><ruff>{ruff[0]}", f"<-m><ruff>{ruff[1]}", "<-m><mypy>"]
    assert linted.installs("lint") == linted.installs("test") == linted.installs("demo") == []


def test_lint_fails_with_its_first_linter(linted):
    done, calls = linted.run("lint", LINT_EXIT="1")
    assert done.returncode == 1
    assert calls[-1] == "<-m><ruff><format><--check>"


def test_what_the_demo_installs_is_not_enough_for_the_tests(ready):
    ready.installs("demo")
    assert len(ready.installs("test")) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.cfg", "marlin/__init__.py"])
def test_a_change_to_the_packages_description_installs_again(ready, name):
    ready.installs("demo")
    (ready.root / name).write_text("# another\n")
    assert len(ready.installs("demo")) == 1
    assert ready.installs("demo") == []


def test_every_run_brings_the_native_library_up_to_date(ready):
    for _ in range(2):
        checked, built, *_ = ready.run("demo")[1]
        assert checked.endswith("<serve><--check><demo.gguf>")
        assert built == f"<{ready.root / 'metal_shim' / 'build' / 'build.py'}>"


def test_a_failed_install_is_tried_again(ready):
    done, calls = ready.run("demo", PIP_EXIT="1")
    assert done.returncode == 1 and "demo: pip could not install" in done.stderr
    assert calls[-1].startswith("<-m><pip>")
    assert len(ready.installs("demo")) == 1


def test_a_failed_build_stops_before_pip(ready):
    done, calls = ready.run("demo", BUILD_EXIT="1")
    assert done.returncode == 1 and "demo: the native library was not built" in done.stderr
    assert len(calls) == 2 and not [call for call in calls if call.startswith("<-m><pip>")]


def path_without_python(folder):
    folder.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "env", "mkdir"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def test_without_a_new_enough_python_demo_says_so(bare, tmp_path):
    tools = path_without_python(tmp_path / "tools")
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    done, _ = bare.run("demo", PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr == "demo: Python 3.10 or newer is needed, and none is on PATH\n"


def failing_python(tools, failing):
    """A PATH whose Python fails when its words have this pattern."""
    path_without_python(tools)
    words = f'case "$*" in {failing}) echo "venv: no such luck" >&2; exit 1 ;; esac'
    (tools / "python3").write_text(f"#!/bin/sh\n{words}\n")
    (tools / "python3").chmod(0o755)
    return str(tools)


def test_a_python_without_venv_is_told_which_package_brings_it(bare, tmp_path):
    path = failing_python(tmp_path / "tools", '"-m venv"* | *"import ensurepip"*')
    done, _ = bare.run("demo", PATH=path)
    assert done.returncode == 1 and "apt-get install python3-venv" in done.stderr


def test_a_python_with_venv_that_fails_all_the_same_has_the_last_word(bare, tmp_path):
    done, _ = bare.run("demo", PATH=failing_python(tmp_path / "tools", '"-m venv"*'))
    assert done.returncode == 1 and "apt-get" not in done.stderr
    last = f"demo: {bare.root}/.venv cannot be made; the reason is above"
    assert done.stderr.splitlines()[-2:] == ["venv: no such luck", last]


def test_a_checkout_that_cannot_be_written_is_told_as_that(bare):
    (bare.root / ".venv").write_text("")
    for script in ("demo", "test", "lint"):
        done, _ = bare.run(script)
        assert done.returncode == 1 and "apt-get" not in done.stderr
        assert f"{script}: {bare.root}/.venv cannot be made" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a:b", "with a colon"), ("a$x", "with $, { or }"), ("{cur}", "with $, { or }")],
)
def test_a_path_below_which_nothing_can_be_installed_is_refused_at_once(
    tmp_path, checkout, name, reason
):
    odd = Checkout(tmp_path / name, checkout)
    odd.add_fake_venv()
    done, calls = odd.run("test")
    assert (done.returncode, calls) == (1, [])
    (line,) = done.stderr.splitlines()
    assert line.startswith("test: ") and reason in line and line.endswith(str(odd.root))


@pytest.mark.parametrize("name", ["br[old]", "a b", "q'\"c", "\u00fcn\u00ef", "p%s&;#", "a$ b"])
def test_any_other_path_is_installed_from_where_it_lies(tmp_path, checkout, name):
    odd = Checkout(tmp_path / name, checkout)
    odd.add_fake_venv()
    assert odd.installs("test") == ["<-m><pip><install><--editable><.[test]>"]
    assert Path(f"{odd.log}.pip").read_text() == f"{odd.root}\n"
    done, calls = odd.run("demo")
    assert done.returncode == 0, done.stderr
    assert calls[-1].startswith(f"<-S><{odd.root}/bin/metal-marlin><serve>")


def run_command(bare, *arguments, script=None, cwd=None):
    return subprocess.run(
        [sys.executable, str(script or bare.root / "bin" / "metal-marlin"), *arguments],
        cwd=cwd or bare.root.parent,
        capture_output=True,
        text=True,
    )


def add_real_venv(bare, *modules):
    folder = bare.root / ".venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    python_modules(packages, *modules)
    return folder


def test_the_command_runs_on_the_checkouts_venv(bare):
    folder = add_real_venv(bare, "numpy", "safetensors", "tokenizers")
    done = run_command(bare, "serve", "a model")
    assert done.stdout.splitlines() == [str(folder), "['serve', 'a model']"]


def test_the_command_without_a_venv_runs_on_the_python_at_hand(bare):
    done = run_command(bare, "--version")
    assert done.stdout.splitlines() == [sys.prefix, "['--version']"]


def test_the_command_works_through_a_symlink_from_any_folder(bare, tmp_path):
    link = tmp_path / "elsewhere" / "marlin-link"
    link.parent.mkdir()
    link.symlink_to(bare.root / "bin" / "metal-marlin")
    python_modules(link.parent, "marlin", "numpy")
    done = run_command(bare, "bench", script=link, cwd=link.parent)
    assert done.stdout.splitlines()[-1] == "['bench']", done.stderr


def test_a_venv_whose_python_is_gone_is_passed_over(bare):
    folder = add_real_venv(bare)
    for python in (folder / "bin").glob("python*"):
        python.unlink()
    (folder / "bin" / "python").symlink_to("/nowhere/python3")
    assert run_command(bare).stdout.splitlines()[0] == sys.prefix


def test_missing_dependencies_are_one_sentence_that_says_what_to_run(bare):
    add_real_venv(bare, "numpy")
    done = run_command(bare, "serve")
    assert done.returncode == 1 and done.stdout == ""
    assert "safetensors is not installed" in done.stderr
    assert f"run '{bare.root / 'bin' / 'demo'}'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_command_that_is_interrupted_while_it_loads_says_nothing(bare):
    add_real_venv(bare, "numpy", "safetensors", "tokenizers")
    (bare.root / "marlin" / "cli.py").write_text("raise KeyboardInterrupt\n")
    done = run_command(bare, "serve")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere env cannot block signals")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_at_any_moment_from_the_start_on_ends_serve_without_a_word(checkout, workers):
    options = ["--host", "127.0.0.1", "--port", "0", "--workers", workers]
    command = [checkout / "bin" / "metal-marlin", "serve", *options]
    path = f"{Path(sys.executable).resolve().parent}:{os.environ['PATH']}"  # no shell script of it
    codes = []
    for moment_ms in range(0, 300, 15):
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": path},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(moment_ms / 1000)
        process.send_signal(signal.SIGINT)  # a Python that is interrupted itself says so at length
        _, said = process.communicate(timeout=60)
        codes.append(process.returncode)
        assert "Traceback" not in said and "ignored" not in said, (moment_ms, said)
    assert set(codes) <= {-signal.SIGINT, 130, 0}  # 0: it served
    assert -signal.SIGINT in codes


def test_every_script_is_executable(checkout):
    scripts = [checkout / "bin" / name for name in ("demo", "lint", "metal-marlin", "test")]
    assert all(os.access(script, os.X_OK) for script in [*scripts, checkout / ".ci" / "run"])
    assert Path(checkout, "bin", "setup-env").is_file()
