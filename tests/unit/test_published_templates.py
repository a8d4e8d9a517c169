"""The chat templates that llama.cpp is published with, as jinja2 renders them; 70 of them."""

import subprocess
import sys
import tarfile

import pytest
from test_chat_template import (
    CONVERSATIONS,
    OPTIONS,
    compile_with_jinja2,
    expected_text,
    rendered_text,
    variables_for,
)

from marlin.text.chat_template import ChatTemplate

pytestmark = pytest.mark.downloads

PACKAGE = "llama-cpp-python==0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FOLDER = "/vendor/llama.cpp/models/templates/"


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """{file name: source}; pip fetches the package's sources, 75 MB."""
    folder = tmp_path_factory.mktemp("sdist")
    (folder / "requirements.txt").write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
    command += [":all:", "--dest", str(folder), "--requirement", str(folder / "requirements.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["pip says nothing"]
        pytest.skip(f"{PACKAGE} cannot be had: {lines[-1]}")
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {
            member.name.rpartition("/")[2]: archive.extractfile(member).read().decode()
            for member in archive
            if FOLDER in member.name and member.name.endswith(".jinja")
        }


def test_every_published_template_renders_every_conversation_as_jinja2_does(templates):
    assert len(templates) == 70
    failed, num_rendered = [], dict.fromkeys(templates, 0)
    for file_name, source in templates.items():
        ours, theirs = ChatTemplate(source), compile_with_jinja2(source)
        for name, messages in CONVERSATIONS.items():
            for options in OPTIONS:
                variables = variables_for(messages, options)
                expected = expected_text(theirs, variables)
                num_rendered[file_name] += expected is not None
                if rendered_text(ours, variables) != expected:
                    failed.append((file_name, name, options))
    assert failed == []
    assert min(num_rendered.values()) >= 20
