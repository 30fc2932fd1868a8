"""What the imports cost, package by package: those of the public examples, and those of the worker.

Run from the checkout: `python -m bench.start.imports [--rounds 5]`. Each is `python -X importtime` in fresh processes,
whose own times are summed by package; the tracing itself slows imports down by about a tenth.
"""

import argparse
import re
import statistics
import subprocess
import sys
from collections import Counter

LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| +(\S+)")
DEPTH = {"torch": 2, "transformers": 2, "diffusers": 2}
"""How many parts of a module's name make its package, where that is more than one."""

SHOWN = 18
LEAST_MS = 15

EXAMPLES = (
    "import torch; from diffusers import QwenImageEditPipeline, QwenImageTransformer2DModel, AutoencoderKLQwenImage; "
    "from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLProcessor"
)
WORKER = (
    "from qwen_edit.loading.imports.collector import collector_paused\n"
    "with collector_paused():\n"
    "    from qwen_edit.loading.imports.lean import lean_imports\n"
    "    with lean_imports('qwen_edit.loading.assembly', enabled=True, compiled=False):\n"
    "        pass"
)


def main() -> None:
    """Measure both in turn and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    samples: dict[str, list[Counter[str]]] = {EXAMPLES: [], WORKER: []}
    for _ in range(rounds + 1):
        for program, each in samples.items():
            each.append(_by_package(program))
    before, after = (_medians(each[1:]) for each in samples.values())
    print("| package | the examples' imports, ms | the worker's, ms |\n|---|---|---|")
    packages = sorted(before | after, key=lambda package: -before[package])
    for package in packages[:SHOWN]:
        theirs, own = before[package] / 1000, after[package] / 1000
        if max(theirs, own) >= LEAST_MS:
            print(f"| {package} | {theirs:.0f} | {own:.0f} |")
    total, ours = before.total() / 1000, after.total() / 1000
    print(f"| all {len(before)} and {len(after)} packages | {total:.0f} | {ours:.0f} ({ours / total:.2f} ×) |")


def _by_package(program: str) -> Counter[str]:
    """Microseconds that the modules of each package took, without what they imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
    )
    microseconds: Counter[str] = Counter()
    for own, module in LINE.findall(done.stderr):
        parts = module.split(".")
        microseconds[".".join(parts[: DEPTH.get(parts[0], 1)])] += int(own)
    return microseconds


def _medians(samples: list[Counter[str]]) -> Counter[str]:
    packages = {package for sample in samples for package in sample}
    return Counter({package: statistics.median(sample[package] for sample in samples) for package in packages})


if __name__ == "__main__":
    main()
