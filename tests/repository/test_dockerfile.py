import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from builder.bake.parts import COMPONENTS, TEXT_ENCODER
from tests.support.places import ROOT

STEPS = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
FIRST_BAKE = next(number for number, step in enumerate(STEPS) if "python -m builder.bake" in step)

IMPORTS = """
import sys
sys.path.insert(0, ".")
import builder.bake.__main__, builder.bake.order, builder.bake.hub
builder.bake.__main__.main(["--components", "lightning", "--checkpoints", "original"])
for name, module in sys.modules.items():
    if name.split(".")[0] in ("builder", "qwen_edit") and module.__file__:
        print("imported", module.__file__)
"""


def below_the_weights() -> set[str]:
    """The repository's Python files that are copied before the first weights are fetched."""
    return python_files(copied_before(FIRST_BAKE))


def copied_before(step: int) -> list[str]:
    """What the repository's files and folders are called that are copied before a step; a folder ends in a slash."""
    copies = [line.split()[1:-1] for line in STEPS[:step] if line.startswith("COPY ")]
    return [source for sources in copies for source in sources]


def python_files(sources: list[str]) -> set[str]:
    folders = [ROOT / source for source in sources if source.endswith("/")]
    inside = {str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*.py")}
    return inside | {source for source in sources if source.endswith(".py")}


def test_what_is_copied_below_the_weights_is_what_a_bake_imports_and_no_more(tmp_path: Path) -> None:
    for source in below_the_weights():
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    command = [sys.executable, "-I", "-c", IMPORTS]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    files = [Path(line.partition(" ")[2]) for line in output.splitlines() if line.startswith("imported ")]
    assert {str(file.relative_to(tmp_path)) for file in files} == below_the_weights()


def test_what_is_copied_below_the_tiny_weights_is_enough_to_write_them(tmp_path: Path) -> None:
    tiny = next(number for number, step in enumerate(STEPS) if "python -m builder.made tiny" in step)
    copies = [
        step.split()[1:]
        for step in STEPS[:tiny]
        if step.startswith("COPY ") and not re.search("requirements|--from", step)
    ]
    for *sources, target in copies:
        for source in sources:
            if source.endswith("/"):
                shutil.copytree(ROOT / source, tmp_path / target, dirs_exist_ok=True)
            else:
                (tmp_path / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    program = "import sys; sys.path.insert(0, '.'); import builder.made.tiny; print(builder.made.tiny.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(str(tmp_path)), done.stderr


def test_a_bake_imports_no_package_that_its_lock_does_not_pin() -> None:
    modules = {name.split(".")[0] for source in below_the_weights() for name in imports_of(ROOT / source)}
    packages = modules - sys.stdlib_module_names - {"builder", "qwen_edit"}
    pinned = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "bake.lock").read_text(), re.MULTILINE)
    assert {package.replace("_", "-") for package in packages} <= set(pinned)


def imports_of(file: Path) -> list[str]:
    """The modules that a file's import statements name."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def test_every_weight_file_has_a_layer_of_its_own() -> None:
    layers = re.findall(r"--components (\S+)", "\n".join(STEPS))
    assert sorted(layers) == sorted(set(COMPONENTS) - {TEXT_ENCODER.name})


def test_the_engine_is_the_one_that_the_project_names() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"ARG NUNCHAKU_WHEEL={Requirement(extras['nunchaku'][0]).url}" in STEPS


def look_at_arguments(tmp_path: Path, **arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the step that looks at the build's arguments, with its folder in another place."""
    (step,) = (step.removeprefix("RUN ") for step in STEPS if "a release needs" in step)
    script = step.replace("/opt/", f"{tmp_path}/")
    declared = dict(line.split()[1].split("=") for line in STEPS[: STEPS.index(f"RUN {step}")] if "ARG" in line[:3])
    environ = {**os.environ, **declared, **arguments}
    return subprocess.run(["sh", "-c", script], env=environ, capture_output=True, text=True, check=False)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = {"BASE_REVISION": COMMIT, "CHECKPOINTS_REVISION": COMMIT, "NUNCHAKU_SHA256": "ab" * 32}


def test_a_build_that_is_no_release_needs_no_arguments(tmp_path: Path) -> None:
    assert look_at_arguments(tmp_path).returncode == 0
    assert (tmp_path / "arguments").is_dir()


def test_a_release_is_built_from_commits_and_a_wheel_of_known_content(tmp_path: Path) -> None:
    assert look_at_arguments(tmp_path, RELEASE="1", **PINNED).returncode == 0


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize(
    "value", ["", "main", "v1.2.1", COMMIT[:12], COMMIT.upper(), f"{COMMIT}\nmain", "ab" * 64, " "]
)
def test_a_release_is_not_built_from_what_can_change_behind_its_name(tmp_path: Path, name: str, value: str) -> None:
    done = look_at_arguments(tmp_path, RELEASE="1", **{**PINNED, name: value})
    assert done.returncode != 0
    assert done.stdout.startswith(f"a release needs {name}, ")


@pytest.mark.parametrize("value", ["", "true", "yes", "2"])
def test_a_release_is_meant_or_not(tmp_path: Path, value: str) -> None:
    done = look_at_arguments(tmp_path, RELEASE=value)
    assert (done.returncode, done.stdout) == (1, f"RELEASE is '{value}', expected 0 or 1\n")


def test_every_stage_of_the_build_has_the_same_defaults() -> None:
    arguments = [step.removeprefix("ARG ") for step in STEPS if step.startswith("ARG ")]
    assert len({argument.split("=")[0] for argument in arguments}) == len(set(arguments))


def test_the_tiny_image_takes_the_pytorch_that_the_project_allows() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (torch,) = (line for line in dependencies if line.startswith("torch"))
    assert f'"{torch}"' in "\n".join(STEPS)


def test_what_is_copied_reaches_the_builder() -> None:
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [source for source in copied_before(len(STEPS)) if not source.startswith(("--from", "/opt/"))]
    assert [
        one for one in copied if not any(fnmatch(one, place) or one.startswith(f"{place}/") for place in sent)
    ] == []


def test_builders_without_buildkit_can_read_it() -> None:
    assert not [step for step in STEPS if re.match(r"(RUN|COPY).*(--mount|--link|--chmod|<<)", step)]
