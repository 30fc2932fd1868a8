"""How long a bake takes beside `curl` of the same bytes and `sha256sum`, both from one hub on loopback.

Run from the checkout: `python -m bench.bake [--gigabytes 2] [--rounds 5] [--folder DIR]`.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qwen_edit.store.catalog import BASE_REPOSITORY, CHECKPOINT_REPOSITORY
from tests.support.baked import BASE_COMMIT, CHECKPOINTS_COMMIT, LIGHTNING, ORIGINAL, SHARDS, VAE, base_files, wanted
from tests.support.loopback_hub import LoopbackHub, Repository

SHARES = {**dict.fromkeys(SHARDS, 0.15), VAE: 0.05, LIGHTNING: 0.175, ORIGINAL: 0.175}
"""How a repository's bytes spread over its files: four shards, a small file, two checkpoints."""

BOUND = 1.3

Run = Callable[[LoopbackHub, Path], None]


def main() -> None:
    """Time both in turn and print the medians and their ratio."""
    options = _options()
    repositories = _repositories(int(options.gigabytes * 1e9))
    with LoopbackHub(repositories) as hub, tempfile.TemporaryDirectory(dir=options.folder) as name:
        for repository in repositories.values():
            repository.info()
        times = _times({"bake": _bake, "curl + sha256sum": _curl}, hub, Path(name) / "models", options.rounds)
    _print(times, sum(len(data) for repository in repositories.values() for data in repository.files.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    return parser.parse_args()


def _repositories(total: int) -> dict[str, Repository]:
    weights = {path: os.urandom(int(total * share)) for path, share in SHARES.items()}
    checkpoints = {path: weights.pop(path) for path in (LIGHTNING, ORIGINAL)}
    return {
        BASE_REPOSITORY: Repository({**wanted(base_files()), **weights}, BASE_COMMIT),
        CHECKPOINT_REPOSITORY: Repository(checkpoints, CHECKPOINTS_COMMIT),
    }


def _times(rivals: dict[str, Run], hub: LoopbackHub, target: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each rival in each round, one after the other, after a round that is not counted."""
    times: dict[str, list[float]] = {rival: [] for rival in rivals}
    for _ in range(rounds + 1):
        for rival, run in rivals.items():
            start = time.perf_counter()
            run(hub, target)
            times[rival].append(time.perf_counter() - start)
            shutil.rmtree(target)
    return {rival: seconds[1:] for rival, seconds in times.items()}


def _bake(hub: LoopbackHub, target: Path) -> None:
    command = [sys.executable, "-m", "builder", "bake", "--models", str(target)]
    environ = {**os.environ, "HF_ENDPOINT": hub.url}
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _curl(hub: LoopbackHub, target: Path) -> None:
    files = {
        target / path: f"{hub.url}/{name}/resolve/{repository.commit}/{path}"
        for name, repository in hub.repositories.items()
        for path in repository.files
    }
    pairs = [word for path, url in files.items() for word in ("--output", str(path), url)]
    subprocess.run(["curl", "--silent", "--fail", "--location", "--create-dirs", *pairs], check=True)
    subprocess.run(["sha256sum", "--binary", *map(str, files)], check=True, stdout=subprocess.DEVNULL)


def _print(times: dict[str, list[float]], size: int) -> None:
    print(f"{size / 1e9:.2f} GB from loopback, {os.cpu_count()} cores of {platform.machine()}")
    for rival, seconds in times.items():
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{rival:<18} {statistics.median(seconds):6.2f} s median of {len(seconds)} ({spread})")
    bake, curl = (statistics.median(seconds) for seconds in times.values())
    print(f"ratio              {bake / curl:6.2f}, at most {BOUND} is asked")


if __name__ == "__main__":
    main()
