"""Completions and the manual page: made from the parsers, and taken by the shells and by man."""

import os
import shutil
import subprocess

import pytest

from marlin import cli
from marlin.commands.manual import page
from marlin.commands.table import COMMANDS, facts


def printed(capsys, *words):
    assert cli.main(words, {}) == 0
    return capsys.readouterr().out


def completed(script, folder, *words):
    """What bash offers for the last of the words."""
    (folder / "metal-marlin.bash").write_text(script)
    program = (
        f'. {folder}/metal-marlin.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_metal_marlin; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program, "bash", "metal-marlin", *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return set(done.stdout.split())


def test_bash_completes_commands_options_values_and_files(capsys, tmp_path):
    script = printed(capsys, "completion", "bash")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").touch()
    assert completed(script, tmp_path, "") == set(COMMANDS)
    assert completed(script, tmp_path, "se") == {"serve", "selftest"}
    assert completed(script, tmp_path, "serve", "--max-c") == {
        "--max-choices",
        "--max-concurrent-requests",
        "--max-context",
    }
    assert completed(script, tmp_path, "serve", "--device", "") >= {"metal", "cpu"}
    assert completed(script, tmp_path, "serve", "models/t") == {"models/tiny.gguf"}
    assert completed(script, tmp_path, "info", "--") == {
        *("--help", "--json", "--kv-cache-dtype"),
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_of_every_command_is_in_a_shells_script(capsys, shell):
    script = printed(capsys, "completion", shell)
    for command in facts():
        for flag in command.flags:
            spelled = f"-l {flag[2:]} " if shell == "fish" and flag.startswith("--") else flag
            assert spelled.strip("-") in script, (command.name, flag)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_shell_reads_its_script(capsys, tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on PATH")
    (tmp_path / "script").write_text(printed(capsys, "completion", shell))
    done = subprocess.run(
        [shell, "-n", tmp_path / "script"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on PATH")
def test_fish_completes_options_and_values(capsys, tmp_path):
    (tmp_path / "script").write_text(printed(capsys, "completion", "fish"))

    def offered(line):
        command = f"source {tmp_path}/script; complete -C '{line}'"
        environ = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(["fish", "-c", command], capture_output=True, text=True, env=environ)
        return {line.split("\t")[0] for line in done.stdout.splitlines()}

    assert offered("metal-marlin se") == {"serve", "selftest"}
    assert "--max-context" in offered("metal-marlin serve --max-c")
    assert {"metal", "cpu"} <= offered("metal-marlin serve --device ")


def test_the_manual_page_has_every_command_option_and_variable(capsys):
    text = printed(capsys, "manual")
    assert text == page()
    plain = text.replace("\\-", "-").replace("\\&", "")
    for command in facts():
        assert f".SH {command.name.upper()}\n" in plain
        for option in (*command.arguments, *command.options):
            assert option.help in plain
            assert all(f"\\fB{flag}\\fR" in plain for flag in option.flags)
    assert "METAL_MARLIN_MAX_CONTEXT" in plain and "METAL_MARLIN_API_KEY" in plain


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff on PATH")
def test_the_page_that_is_installed_is_the_one_that_is_printed(checkout):
    installed = (checkout / "docs/metal-marlin.1").read_text()
    assert installed == page(), "make it anew: metal-marlin manual > docs/metal-marlin.1"


def test_groff_finds_nothing_to_warn_of_in_the_manual_page():
    command = ["groff", "-man", "-Tascii", "-ww", "-z"]
    done = subprocess.run(command, input=page(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
