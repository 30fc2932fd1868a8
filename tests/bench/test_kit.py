import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.gpu.__main__ import parse
from bench.gpu.run import CHANGES, MEASURES
from bench.kit import __main__ as kit
from bench.kit import wheels
from bench.kit.commands import MINUTES, SETTING_UP, Command, commands, gpu_tests, lines
from tests.support.places import ROOT

BENCH = [command for command in commands() if command.module == "bench.gpu"]


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """Files with the names of the wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, version in wheels.pinned().items():
        tags = "cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64" if name == "pydantic-core" else "py3-none-any"
        (folder / f"{name.replace('-', '_')}-{version}-{tags}.whl").write_bytes(name.encode())
    return folder


OF_THE_ENGINE = {"fused"}
"""Changes of the nunchaku backend, whose engine the archive does not hold."""


@pytest.mark.parametrize("command", BENCH, ids=str)
def test_a_command_names_options_runs_and_measures_that_exist(command: Command) -> None:
    options = parse(command.arguments)  # which refuses others

    assert options.minutes == MINUTES
    assert options.results is not None
    assert not (ROOT / options.results).resolve().is_relative_to(ROOT)


def test_all_that_can_be_measured_is_measured_and_all_that_can_be_changed_is_changed() -> None:
    asked = [parse(command.arguments) for command in BENCH]

    assert {measure for options in asked for measure in options.measure.split(",")} == set(MEASURES)
    runs = {run for options in asked for run in options.runs.split(",")}
    assert {change for run in runs for change in run.split("+")[1:]} == set(CHANGES) - OF_THE_ENGINE
    assert {run.split("+")[0] for run in runs} == {"dense", "dense-fp8", "stock"}


def test_the_most_valuable_comes_first() -> None:
    first, *others = commands()
    measures = [parse(command.arguments).measure for command in others]

    assert first.module == "pytest"
    assert measures == ["edits,length", "edits", "edits", "edits", "load", "memory", "length", "profile", "seed"]


def test_the_smoke_test_is_of_all_tests_with_a_gpu_and_pytest_finds_them() -> None:
    first, *_ = commands()
    program = [sys.executable, "-m", first.module, *first.arguments, "--collect-only"]
    found = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False)

    assert found.returncode == 0, found.stdout + found.stderr
    assert {line.partition("::")[0] for line in found.stdout.splitlines() if "::" in line} == set(gpu_tests())


def test_the_archive_has_the_checkout_the_wheels_and_the_commands(tmp_path: Path, fakes: Path) -> None:
    out = tmp_path / "folder" / "kit.tar"
    program = [sys.executable, "-m", "bench.kit", "--out", str(out), "--wheels", str(fakes)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=True)

    with tarfile.open(out) as tar:
        names = tar.getnames()
        text = member(tar, "commands.sh")
        assert member(tar, "checkout/handler.py") == committed("handler.py")
        assert member(tar, f"wheels/{next(fakes.glob('diffusers*')).name}") == "diffusers"
    assert {f"{kit.FOLDER}/checkout/{name}" for name in (*gpu_tests(), "pyproject.toml", "tests/photos/rocket.jpg")} < {
        *names
    }
    assert {f"{kit.FOLDER}/wheels/{path.name}" for path in fakes.iterdir()} < {*names}
    assert text.splitlines()[1:] == list(lines())
    assert done.stdout.endswith(text)
    assert done.stdout.startswith(f"{out}: ")


def test_the_commands_set_up_the_folder_that_the_archive_has() -> None:
    assert SETTING_UP[0] == f"cd {kit.FOLDER}/checkout"
    assert "../wheels/*.whl" in SETTING_UP[1]
    assert list(lines())[-1] == str(commands()[-1])


def renamed(folder: Path, name: str, new: str) -> None:
    (path,) = folder.glob(f"{name}-*")
    path.rename(folder / re.sub(r"py3-none-any|cp312-cp312", new, path.name))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: next(folder.glob("boto3-*")).unlink(), "wheels are missing: boto3"),
        (lambda folder: (folder / "torch-2.11.0-py3-none-any.whl").touch(), "torch-2.11.0-py3-none-any.whl is not one"),
        (lambda folder: (folder / "boto3-1.0-py3-none-any.whl").touch(), "boto3-1"),
        (lambda folder: renamed(folder, "pydantic_core", "cp311-cp311"), "expected Python 3.12 on x86-64 Linux"),
        (lambda folder: renamed(folder, "boto3", "py3-none-win_amd64"), "expected Python 3.12 on x86-64 Linux"),
    ],
)
def test_wheels_that_are_not_the_machines_are_refused(
    tmp_path: Path, fakes: Path, spoil: Callable[[Path], object], expected: str
) -> None:
    spoil(fakes)

    with pytest.raises(ValueError, match=re.escape(expected)):
        kit.pack(tmp_path / "kit.tar", list(fakes.glob("*.whl")), "")


def test_an_archive_that_is_too_large_is_refused(tmp_path: Path, fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "LIMIT", 1000)

    with pytest.raises(ValueError, match="expected at most 0"):
        kit.pack(tmp_path / "kit.tar", list(fakes.glob("*.whl")), "")


def member(tar: tarfile.TarFile, name: str) -> str:
    file = tar.extractfile(f"{kit.FOLDER}/{name}")
    assert file is not None
    return file.read().decode()


def committed(name: str) -> str:
    return subprocess.run(["git", "show", f"HEAD:{name}"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
