"""Clients that need Node, a browser or heavy packages, against servers that run. `make test-clients` installs them."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from builder.made.demo import files
from tests.support.http_worker import serving
from tests.support.places import PHOTOS, ROOT

pytestmark = pytest.mark.clients

HERE = ROOT / "tests" / "clients"
LITELLM = ROOT / "build" / "clients-venv" / "bin" / "python"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEY = "a-key-for-the-tests-alone"

LONGEST_S = 600.0
"""For one file of tests. It only ends one that hangs."""


class Run(NamedTuple):
    """How a program ended, and what it wrote."""

    code: int | str
    output: str
    errors: str


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The addresses of two servers as variables: the demo model's, and one with a key on the device of the tests."""
    folder = tmp_path_factory.mktemp("servers")
    files.write(folder / "demo")
    with (
        serving(folder / "demo", folder / "open", "handler.py") as demo,
        serving(folder / "demo", folder / "locked", QWEN_EDIT_API_KEY=KEY) as locked,
    ):
        yield {"BASE_URL": demo.base, "LOCKED_URL": locked.base, "LOCKED_KEY": KEY}


@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda file: file.name)
def test_the_tests_of_a_client_in_node_pass(file: Path, servers: Mapping[str, str], tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), "")
    environ = {**os.environ, **servers, "CHROMIUM": browser, "PYTHON": sys.executable}

    done = run("node", "--test", "--test-reporter=tap", file.name, environ=environ, folder=tmp_path)

    assert done.code == 0, done.output + done.errors
    assert "\n# pass 0" not in done.output, "no test was found"


def test_litellm_edits_and_tells_its_caller_what_was_wrong(servers: Mapping[str, str], tmp_path: Path) -> None:
    asked = (str(LITELLM), "litellm_client.py", servers["LOCKED_URL"], KEY, str(PHOTOS / "chelsea.png"))
    done = run(*asked, environ=os.environ, folder=tmp_path)

    assert done.code == 0, done.errors
    told = json.loads(done.output.splitlines()[-1])
    assert [base64.b64decode(picture)[1:4] for picture in told["pictures"]] == [b"PNG"] * 2
    assert told["failed"].startswith("InternalServerError: ")
    assert "true_cfg_scale is 'high', expected a number" in told["wrong"]
    assert told["locked"].startswith("AuthenticationError: ")


def run(*command: str, environ: Mapping[str, str], folder: Path) -> Run:
    """Run a program to its end, or kill it with what it started. Its output is there where it hangs, too."""
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=HERE, env=dict(environ), stdout=stdout, stderr=stderr, start_new_session=True
        )
    try:
        code: int | str = process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        code = f"none within {LONGEST_S:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the browser ends with the program that holds its pipe
        process.wait()
    return Run(code, out.read_text(), err.read_text())
