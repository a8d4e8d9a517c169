"""The shipped deployment files, and the programs that judge them."""

import shutil

import pytest


@pytest.fixture(scope="session")
def deploy(checkout):
    """The folder of shipped files."""
    return checkout / "deploy"


@pytest.fixture(scope="session")
def program():
    """program("nginx") is its path; the test is skipped, with a reason, where it is missing."""

    def find(name):
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{name} is not installed; .ci/run installs it")
        return path

    return find
