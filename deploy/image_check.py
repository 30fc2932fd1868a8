"""Builds the tiny image from the Dockerfile with buildah and runs it with the network cut: `make image-check`.

Needs root, and Debian's packages buildah and debootstrap; no container engine. The environment may name:

BASE_IMAGE       what to build on (default: the Dockerfile's; where that is out of reach, one made with debootstrap)
STORAGE_DRIVER   buildah's storage (default: overlay where it works; else vfs, which copies the image for every layer)

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
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
ROOM = REPOSITORY / "build" / "image-check"
IMAGE = "localhost/qwen-edit:tiny"
CHANGED = "localhost/qwen-edit:changed"
BASE = "localhost/python:3.11-debian"
SUITE = "bookworm"
PULL_SECONDS = "60"

SLOW = "imports not lean"

CONTEXT = (
    "Dockerfile",
    ".dockerignore",
    "builder",
    "qwen_edit",
    "requirements",
    "handler.py",
    "verify_models.py",
    "test_input.json",
    "LICENSE",
)

WEIGHTS = "-m builder."
"""What is in the command of each step that puts weights into the image."""

CODE = ("qwen_edit/serving/queue/worker.py", "builder/verify/command.py")
"""Files that change with the code and not with the weights."""


Layer = tuple[str, int, str]
"""Digest, bytes, command."""

CONFINED = """
import os, socket
assert os.getuid(), "the worker runs as root"
assert not os.access(os.environ["MODEL_CACHE_DIR"], os.W_OK), "the worker can write to the weights"
assert [name for _, name in socket.if_nameindex()] == ["lo"], "the network is not cut"
"""


def main() -> None:
    """Build, run, list the layers, change the code, build again and compare."""
    started = time.monotonic()
    base = os.environ.get("BASE_IMAGE") or _official() or _debootstrapped()
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        _call("cp", "--archive", *(str(REPOSITORY / name) for name in CONTEXT), folder)
        _build(context, base, IMAGE)
        _check_release(context, base)
        _say(f"built after {time.monotonic() - started:.0f} s on {base}, stored with {_driver()}")
        _run_offline()
        layers = _layers(IMAGE)
        _show(layers)
        _check_code_change(context, base, layers)
    _say(f"green after {time.monotonic() - started:.0f} s")


def _say(line: str) -> None:
    print(f"image-check: {line}", flush=True)


def _buildah(*arguments: str) -> list[str]:
    return ["buildah", "--root", f"{ROOM}/root", "--runroot", f"{ROOM}/run", "--storage-driver", _driver(), *arguments]


@cache
def _driver() -> str:
    probe = ("buildah", "--root", f"{ROOM}/root", "--runroot", f"{ROOM}/run", "--storage-driver", "overlay", "info")
    return os.environ.get("STORAGE_DRIVER") or ("overlay" if _succeeds(*probe) else "vfs")


def _call(*command: str) -> None:
    result = subprocess.run(command)  # noqa: S603
    if result.returncode:
        sys.exit(f"image-check: {' '.join(command)} ended with {result.returncode}")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0  # noqa: S603


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S603


def _official() -> str | None:
    (name,) = re.findall(r"^ARG BASE_IMAGE=(\S+)", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    return name if _succeeds("timeout", PULL_SECONDS, *_buildah("pull", "--quiet", f"docker://{name}")) else None


def _debootstrapped() -> str:
    if _succeeds(*_buildah("inspect", "--type", "image", BASE)):
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


def _build(context: Path, base: str, tag: str) -> None:
    values = ("PROFILE=tiny", "DEVICE=cpu", f"BASE_IMAGE={base}")
    arguments = [word for value in values for word in ("--build-arg", value)]
    with tempfile.TemporaryDirectory() as folder:
        volumes = [f"--volume={volume}" for volume in _pip_volumes(Path(folder))]
        flags = ["--isolation", "chroot", "--layers", "--pull-never"]
        _call(*_buildah("bud", *flags, *volumes, *arguments, "--tag", tag, str(context)))


def _check_release(context: Path, base: str) -> None:
    """A release without commits ends at once, in the stage that looks at the arguments."""
    arguments = ["--build-arg", "RELEASE=1", "--build-arg", f"BASE_IMAGE={base}"]
    flags = ["--isolation", "chroot", "--pull-never", "--quiet"]
    if _succeeds(*_buildah("bud", *flags, *arguments, "--target", "arguments", str(context))):
        sys.exit("image-check: a release was built without a commit")


def _pip_volumes(folder: Path) -> Iterator[str]:
    """This machine's settings of pip, and the files and folders that they name, as the build is to see them."""
    settings = _output(sys.executable, "-m", "pip", "config", "list")
    pairs = dict(re.findall(r"^[^.]+\.([^=]+)='(.*)'$", settings, re.MULTILINE))
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in pairs.items()))
    yield f"{config}:/etc/pip.conf:ro"
    paths = {word.removeprefix("file://") for value in pairs.values() for word in value.split()}
    for path in sorted(path.removesuffix("/simple") for path in paths if path.startswith("/")):
        if Path(path).exists():
            yield f"{path}:{path}:ro"


def _run_offline() -> None:
    container = _output(*_buildah("from", "--pull-never", IMAGE))
    try:
        models = f"{_output(*_buildah('mount', container))}/app/models"
        for command in (
            ["python", "-c", CONFINED],
            ["python3", "verify_models.py", "--hash"],
            ["env", "RUNPOD_LOG_LEVEL=WARN", "QWEN_EDIT_SAVE_DIR=/home/worker/outputs", "python", "-u", "handler.py"],
            ["sh", "-c", "ls -l /home/worker/outputs/*.png"],
        ):
            run = ["run", "--isolation", "chroot", f"--volume={models}:/app/models:ro", container, "--", *command]
            printed = _output("unshare", "--net", *_buildah(*run))
            print(printed, flush=True)
            if SLOW in printed:  # the image has packages that a developer's machine has not
                sys.exit(f"image-check: a start in the image says {SLOW!r}")
    finally:
        _call(*_buildah("rm", container))


def _layers(tag: str) -> list[Layer]:
    """The image's layers from the bottom up."""
    image = json.loads(_output(*_buildah("inspect", "--type", "image", tag)))["OCIv1"]
    steps = [step.get("created_by", "") for step in image["history"] if not step.get("empty_layer")]
    stored: list[dict[str, Any]] = json.loads((ROOM / "root" / f"{_driver()}-layers" / "layers.json").read_text())
    sizes = {layer["diff-digest"]: int(layer["diff-size"]) for layer in stored if "diff-digest" in layer}
    digests = image["rootfs"]["diff_ids"]
    return [(digest, sizes[digest], step) for digest, step in zip(digests, steps, strict=True)]


def _show(layers: list[Layer]) -> None:
    _say(f"{len(layers)} layers, {sum(size for _, size, _ in layers) / 1e6:.1f} MB")
    for _, size, step in layers:
        command = re.sub(r"^(\|\d+ .*?)?/bin/sh -c (#\(nop\) )?", "", " ".join(step.split()))
        print(f"{size / 1e6:9.3f} MB  {command[:150]}", flush=True)


def _check_code_change(context: Path, base: str, before: list[Layer]) -> None:
    for changed in CODE:
        with (context / changed).open("a") as file:
            file.write("# changed\n")
    _build(context, base, CHANGED)
    old = {digest for digest, _, _ in before}
    anew = [layer for layer in _layers(CHANGED) if layer[0] not in old]
    _call(*_buildah("rmi", CHANGED))
    _say(f"a comment in {' and in '.join(CODE)} makes these layers anew")
    _show(anew)
    if any(WEIGHTS in step for _, _, step in anew):
        sys.exit("image-check: a change of the code made a layer with weights anew")


if __name__ == "__main__":
    main()
