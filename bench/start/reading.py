"""How fast a safetensors file comes into memory: plain tools, the known loaders, and ours by readers and block size.

Run from the checkout: `python -m bench.start.reading [--gigabytes 2] [--rounds 5] [--device cuda] [--grid]`. Each
figure is the median over fresh processes, taken in turn; the imports are not counted. Cold means that the file's pages
were dropped from the page cache (a virtual disk may still have them in the host's). The loaders fastsafetensors,
runai-model-streamer and instanttensor are measured where they are installed.
"""

import argparse
import json
import mmap
import os
import platform
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

if TYPE_CHECKING:
    from qwen_edit.weights.sinks import Sink

FOLDER = Path(__file__).parents[2] / "models" / "reading"
READERS = (1, 2, 4, 8)
MEGABYTES = (1, 4, 16, 32, 64)
SHAPE = (3072, 3072)

Read = Callable[[Path, str], float]
"""Reads a file to a device; the seconds it took."""


class How(TypedDict, total=False):
    """The arguments of `Weights` that are measured."""

    readers: int
    bytes_a_read: int
    sink: "Sink"


def main() -> None:
    """Measure, or in a child process read once."""
    options = _options()
    if options.once:
        print(RIVALS[options.once](options.file, options.device))
        return
    path = options.file or _written(FOLDER, int(options.gigabytes * 1e9))
    rivals = _installed(options.device, grid=options.grid)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"{path.stat().st_size / 1e9:.2f} GB to {options.device}, load {os.getloadavg()[0]:.1f}\n")
    for state in ("cold", "warm"):
        times = _times(rivals, path, options.device, options.rounds, cold=state == "cold")
        _print(state, times, path.stat().st_size)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--grid", action="store_true", help="ours with every number of readers and size of block")
    parser.add_argument("--file", type=Path, help="a safetensors file to read instead of a synthetic one")
    parser.add_argument("--once", choices=RIVALS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _written(folder: Path, size: int) -> Path:
    """A file of bfloat16 matrices of the model's width, of random bytes."""
    matrix = 2 * SHAPE[0] * SHAPE[1]
    header = {
        f"blocks.{i}.weight": {"dtype": "BF16", "shape": SHAPE, "data_offsets": [i * matrix, (i + 1) * matrix]}
        for i in range(size // matrix)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "weights.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_size != 8 + len(text) + len(header) * matrix:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _ in header:
                file.write(os.urandom(matrix))
            os.fsync(file.fileno())
    return path


def _installed(device: str, *, grid: bool) -> list[str]:
    rivals = [name for name in RIVALS if grid or name not in GRID]
    for name, module in NEEDS.items():
        if find_spec(module) is None:
            print(f"{name}: not installed")
            rivals.remove(name)
    for name, only in ONLY.items():
        if only != device and name in rivals:
            print(f"{name}: only for {only}")
            rivals.remove(name)
    return rivals


def _times(rivals: list[str], path: Path, device: str, rounds: int, *, cold: bool) -> dict[str, list[float]]:
    """Seconds of each rival in each round, one after the other, after a round that is not counted."""
    times: dict[str, list[float]] = {rival: [] for rival in rivals}
    for _ in range(rounds + 1):
        for rival in rivals:
            if cold:
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            command = [
                sys.executable,
                "-m",
                "bench.start.reading",
                "--once",
                rival,
                "--file",
                str(path),
                "--device",
                device,
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            times[rival].append(float(done.stdout.split()[-1]))
    return {rival: seconds[1:] for rival, seconds in times.items()}


def _print(state: str, times: dict[str, list[float]], size: int) -> None:
    medians = {rival: statistics.median(seconds) for rival, seconds in times.items()}
    kept = min(seconds for rival, seconds in medians.items() if rival in KEEPING)
    plain = min(seconds for rival, seconds in medians.items() if rival in PLAIN)
    print(f"| {state} | s, median (range) | GB/s | × best plain tool | × best plain tool that keeps the bytes |")
    print("|---|---|---|---|---|")
    for rival, median in medians.items():
        spread = f"{min(times[rival]):.2f}–{max(times[rival]):.2f}"
        print(
            f"| {rival} | {median:.2f} ({spread}) | {size / median / 1e9:.2f} | {median / plain:.2f} | "
            f"{median / kept:.2f} |"
        )
    print(flush=True)


def _timed(read: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = read()
    seconds = time.perf_counter() - start
    del kept
    return seconds


def _command(*command: str) -> Read:
    def read(path: Path, _device: str) -> float:
        words = [word.replace("FILE", str(path)) for word in command]
        run = partial(subprocess.run, words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return _timed(run)

    return read


def _memory(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _pread(path: Path, _device: str, readers: int) -> float:
    """Parallel `preadv` into one new buffer, and nothing else."""
    size, block = path.stat().st_size, 16 << 20

    def read() -> object:
        memory = _memory(size)
        view = memoryview(memory)
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(readers) as pool:
            for offset in range(0, size, block):
                pool.submit(os.preadv, file.fileno(), [view[offset : offset + block]], offset)
        return view

    return _timed(read)


def _safetensors(path: Path, device: str, backend: str) -> float:
    import torch
    from safetensors.torch import load_file

    def read() -> object:
        tensors = load_file(path, device=device, backend=backend)
        if device == "cpu" and backend == "mmap":  # nothing is read before it is touched
            for tensor in tensors.values():
                tensor.view(-1).view(torch.uint8)[::4096].sum()
        return _arrived(tensors, device)

    return _timed(_ready(device, read))


def _fastsafetensors(path: Path, device: str) -> float:
    from fastsafetensors import fastsafe_open

    def read() -> object:
        with fastsafe_open(str(path), framework="pt", device=device, nogds=True) as file:
            return _arrived({name: file.get_tensor(name) for name in file.keys()}, device)  # noqa: SIM118 - no dict

    return _timed(_ready(device, read))


def _runai(path: Path, device: str) -> float:
    from runai_model_streamer import SafetensorsStreamer

    def read() -> object:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(str(path), device=device)
            return _arrived(dict(streamer.get_tensors()), device)

    return _timed(_ready(device, read))


def _instanttensor(path: Path, device: str) -> float:
    from instanttensor import safe_open

    def read() -> object:
        with safe_open(str(path), framework="pt", device=f"{device}:0") as file:
            return _arrived(dict(file.tensors()), device)

    return _timed(_ready(device, read))


def _ours(path: Path, device: str, **how: Unpack[How]) -> float:
    import torch

    from qwen_edit.weights.reader import Weights

    def read() -> object:
        with Weights([path], torch.device(device), **how) as weights:
            return _arrived(weights.tensors(path), device)

    return _timed(_ready(device, read))


def _copied(path: Path, device: str) -> float:
    """Ours as where files cannot be mapped: the kernel copies them."""
    from qwen_edit.weights.sinks import HostMemory

    return _ours(path, device, sink=HostMemory())


def _huge_pages(path: Path, device: str) -> float:
    """The same into memory for which the kernel is asked for huge pages."""
    import torch

    from qwen_edit.weights.sinks import HostMemory

    class HugePages(HostMemory):
        def allocate(self, size: int) -> torch.Tensor:
            memory = _memory(size)
            memory.madvise(mmap.MADV_HUGEPAGE)
            return torch.frombuffer(memory, dtype=torch.uint8)

    return _ours(path, device, sink=HugePages())


def _beside_python(path: Path, device: str, **how: Unpack[How]) -> float:
    """Ours, while another thread computes in Python and gives the GIL away only when it must, as an import does."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(100))

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        return _ours(path, device, **how)
    finally:
        stop.set()
        busy.join()


def _ready(device: str, read: Callable[[], object]) -> Callable[[], object]:
    """The same, with the device's own start behind it."""
    if device == "cuda":
        import torch

        torch.zeros(1, device=device)
        torch.cuda.synchronize()
    return read


def _arrived(tensors: object, device: str) -> object:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return tensors


def _grid() -> Iterator[tuple[str, Read]]:
    for readers, megabytes in product(READERS, MEGABYTES):
        how: How = {"readers": readers, "bytes_a_read": megabytes << 20}
        yield f"ours, {readers} × {megabytes} MB", partial(_ours, **how)
        yield f"ours, {readers} × {megabytes} MB, beside Python", partial(_beside_python, **how)


GRID: dict[str, Read] = dict(_grid())
KEEPING: dict[str, Read] = {f"pread, {readers} threads": partial(_pread, readers=readers) for readers in READERS}
PLAIN: dict[str, Read] = {
    "cat > /dev/null": _command("cat", "FILE"),
    "dd bs=16M of=/dev/null": _command("dd", "if=FILE", "of=/dev/null", "bs=16M"),
    "dd bs=16M iflag=direct of=/dev/null": _command("dd", "if=FILE", "of=/dev/null", "bs=16M", "iflag=direct"),
    **KEEPING,
}
RIVALS: dict[str, Read] = {
    **PLAIN,
    "safetensors, mmap, each page touched": partial(_safetensors, backend="mmap"),
    "safetensors, pread": partial(_safetensors, backend="pread"),
    "fastsafetensors": _fastsafetensors,
    "runai-model-streamer": _runai,
    "instanttensor": _instanttensor,
    "ours": _ours,
    "ours, beside Python": _beside_python,
    "ours, copied": _copied,
    "ours, copied to huge pages": _huge_pages,
    **GRID,
}
NEEDS = {"runai-model-streamer": "runai_model_streamer", "fastsafetensors": "fastsafetensors"}
NEEDS |= {"instanttensor": "instanttensor"}
ONLY = {"instanttensor": "cuda", "ours, copied": "cpu", "ours, copied to huge pages": "cpu"}

if __name__ == "__main__":
    main()
