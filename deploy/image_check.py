"""Builds the tiny image from the Dockerfile with buildah and runs it with the network cut: `make image-check`.

Needs root, and Debian's packages buildah and debootstrap; no container engine. The environment may name:

BASE_IMAGE       an image with Python 3.11 to build on (default: the Dockerfile's, or a debootstrap one where that is out of reach)
STORAGE_DRIVER   buildah's storage (default vfs, which works everywhere; overlay is quicker and smaller)

The layers stay in build/image-check, so that the next check builds only what has changed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
ROOM = REPOSITORY / "build" / "image-check"
DRIVER = os.environ.get("STORAGE_DRIVER") or "vfs"
IMAGE = "localhost/qwen-edit:tiny"
BASE = "localhost/python:3.11-debian"
SUITE = "bookworm"
PULL_SECONDS = 60

WEIGHTS = "-m builder "
"""What is in the command of each step that puts weights into the image."""


def main() -> None:
    """Build, run, list the layers, change the code, build again and compare."""
    started = time.monotonic()
    base = os.environ.get("BASE_IMAGE") or _official() or _debootstrapped()
    _build(REPOSITORY, base)
    _say(f"built in {time.monotonic() - started:.0f} s on {base}")
    _run_offline()
    layers = _layers()
    _show(layers)
    _check_code_change(base, layers)
    _say(f"green after {time.monotonic() - started:.0f} s")


def _say(line: str) -> None:
    print(f"image-check: {line}", flush=True)


def _buildah(*arguments: str) -> list[str]:
    return ["buildah", "--root", f"{ROOM}/root", "--runroot", f"{ROOM}/run", "--storage-driver", DRIVER, *arguments]


def _call(*command: str) -> None:
    result = subprocess.run(command)
    if result.returncode:
        sys.exit(f"image-check: {' '.join(command)} ended with {result.returncode}")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# The base image


def _official() -> str | None:
    match = re.search(r"^ARG BASE_IMAGE=(\S+)", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert match, "the Dockerfile names a base image"
    pull = ["timeout", str(PULL_SECONDS), *_buildah("pull", "--quiet", f"docker://{match[1]}")]
    return match[1] if subprocess.run(pull, capture_output=True).returncode == 0 else None


def _debootstrapped() -> str:
    if subprocess.run(_buildah("inspect", "--type", "image", BASE), capture_output=True).returncode == 0:
        return BASE
    _say("the official image is out of reach: making one with debootstrap")
    container = _output(*_buildah("from", "scratch"))
    root = _output(*_buildah("mount", container))
    include = "--include=python3,python3-venv,ca-certificates"
    _call("debootstrap", "--variant=minbase", include, SUITE, root, _debian_mirror())
    shutil.rmtree(f"{root}/var/cache/apt/archives")
    shutil.rmtree(f"{root}/var/lib/apt/lists")
    _call(*_buildah("commit", "--quiet", "--rm", container, BASE))
    return BASE


def _debian_mirror() -> str:
    listing = _output("apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages")
    for line in listing.splitlines():
        release, _, site = line.partition(" ")
        if release == SUITE:
            return site
    sys.exit(f"image-check: apt knows no source of Debian {SUITE}; name an image with BASE_IMAGE")


# Building


def _build(context: Path, base: str) -> None:
    arguments = ["--build-arg", "PROFILE=tiny", "--build-arg", f"BASE_IMAGE={base}"]
    with tempfile.TemporaryDirectory() as folder:
        volumes = [f"--volume={volume}" for volume in _pip_volumes(Path(folder))]
        flags = ["--isolation", "chroot", "--layers", "--pull-never"]
        _call(*_buildah("bud", *flags, *volumes, *arguments, "--tag", IMAGE, str(context)))


def _pip_volumes(folder: Path) -> Iterator[str]:
    """This machine's settings of pip, and the files and folders that they name, as the build is to see them."""
    settings = _output(sys.executable, "-m", "pip", "config", "list")
    pairs = re.findall(r"^[^.]+\.([^=]+)='(.*)'$", settings.replace(":env:", "env"), re.MULTILINE)
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in pairs))
    yield f"{config}:/etc/pip.conf:ro"
    paths = {word.removeprefix("file://") for _, value in pairs for word in value.split()}
    for path in sorted(path.removesuffix("/simple") for path in paths if path.startswith("/")):
        if Path(path).exists():
            yield f"{path}:{path}:ro"


# Running


def _run_offline() -> None:
    container = _output(*_buildah("from", "--pull-never", IMAGE))
    try:
        models = f"{_output(*_buildah('mount', container))}/app/models"
        for command in (
            ["python", "-c", "import os; assert os.getuid(), 'the worker runs as root'"],
            ["python3", "verify_models.py", "--hash"],
            ["env", "QWEN_EDIT_SAVE_DIR=/home/worker/outputs", "python", "-u", "handler.py"],
            ["sh", "-c", "ls -l /home/worker/outputs && test -n \"$(ls /home/worker/outputs)\""],
        ):
            run = ["run", "--isolation", "chroot", f"--volume={models}:/app/models:ro", container, "--", *command]
            _call("unshare", "--net", *_buildah(*run))
    finally:
        _call(*_buildah("rm", container))


# Layers


def _layers() -> list[tuple[str, int, str]]:
    """The image's layers from the bottom up: digest, bytes, command."""
    image = json.loads(_output(*_buildah("inspect", "--type", "image", IMAGE)))["OCIv1"]
    steps = [step.get("created_by", "") for step in image["history"] if not step.get("empty_layer")]
    stored: list[dict[str, Any]] = json.loads((ROOM / "root" / f"{DRIVER}-layers" / "layers.json").read_text())
    sizes = {layer["diff-digest"]: int(layer["diff-size"]) for layer in stored if "diff-digest" in layer}
    digests = image["rootfs"]["diff_ids"]
    return [(digest, sizes[digest], step) for digest, step in zip(digests, steps, strict=True)]


def _show(layers: list[tuple[str, int, str]]) -> None:
    _say(f"{len(layers)} layers, {sum(size for _, size, _ in layers) / 1e6:.1f} MB")
    for _, size, step in layers:
        print(f"{size / 1e6:9.3f} MB  {' '.join(step.split())[:150]}")


def _check_code_change(base: str, before: list[tuple[str, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder) / "context"
        shutil.copytree(REPOSITORY, context, ignore=lambda _, names: [n for n in names if n in _LEFT_OUT])
        with (context / "qwen_edit" / "worker.py").open("a") as file:
            file.write("# changed\n")
        _build(context, base)
    old = {digest for digest, _, _ in before}
    changed = [layer for layer in _layers() if layer[0] not in old]
    _say("a comment in qwen_edit/worker.py makes these layers anew")
    _show(changed)
    if any(WEIGHTS in step for _, _, step in changed):
        sys.exit("image-check: a change of the serving code made a layer with weights anew")


_LEFT_OUT = {".git", ".venv", ".hypothesis", "build", "models", "outputs", "tests"}


if __name__ == "__main__":
    main()
