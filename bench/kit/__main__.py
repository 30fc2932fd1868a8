"""What a machine with a GPU and without a network needs to run the tests with a GPU and the benchmark, in one archive.

    python -m bench.kit [--out build/gpu-kit.tar] [--wheels DIR]

The archive has the checkout as it is committed, wheels for Python 3.12 on x86-64 Linux, and the commands in their
order, which are printed as well. The machine has PyTorch with CUDA, transformers, pytest and hypothesis of its own.
`--wheels` takes the wheels from a folder in place of the package index.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.kit import commands, wheels

FOLDER = "qwen-edit-kit"
LIMIT = 60_000_000
"""Bytes that the archive may have."""


def pack(out: Path, files: list[Path], text: str) -> int:
    """Write the archive, and return its bytes.

    Args:
        files: the wheels.
        text: the commands.

    Raises:
        ValueError: a wheel is missing or for another machine, or the archive is too large.
        subprocess.CalledProcessError: git does not know the checkout.
    """
    wheels.check(files)
    out.parent.mkdir(parents=True, exist_ok=True)
    archive = ["git", "archive", "--format=tar", f"--prefix={FOLDER}/checkout/", "HEAD"]
    with out.open("wb") as file:
        subprocess.run(archive, stdout=file, cwd=commands.ROOT, check=True)
    with tarfile.open(out, "a") as tar:
        for path in sorted(files):
            tar.add(path, f"{FOLDER}/wheels/{path.name}")
        content = text.encode("utf-8")
        entry = tarfile.TarInfo(f"{FOLDER}/commands.sh")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    size = out.stat().st_size
    if size > LIMIT:
        raise ValueError(f"{out} has {size / 1e6:.0f} MB, expected at most {LIMIT / 1e6:.0f}")
    return size


def main() -> None:
    """Pack, and print the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=commands.ROOT / "build" / "gpu-kit.tar")
    parser.add_argument("--wheels", type=Path)
    options = parser.parse_args()
    text = "\n".join([f"# tar -xf {options.out.name}", *commands.lines(), ""])
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.wheels or Path(scratch)
        try:
            if options.wheels is None:
                wheels.download(folder)
            size = pack(options.out, list(folder.glob("*.whl")), text)
        except (ValueError, subprocess.CalledProcessError) as error:
            sys.exit(str(error))
    print(f"{options.out}: {size / 1e6:.1f} MB\n\n{text}", end="")


if __name__ == "__main__":
    main()
