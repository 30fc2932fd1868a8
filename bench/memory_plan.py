"""Which backend and offload each class of card gets, and the peaks that are predicted for it.

    python -m bench.memory_plan

Computed from the architecture and `qwen_edit.machine.gpu_memory`; nothing is measured.
"""

from collections.abc import Mapping
from typing import Any, cast

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.gpu_memory import OFFLOADS, Parts, parts_of, plan_memory
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors
from qwen_edit.weights.reader import WINDOW

TEXT_ENCODER_BYTES = 2 * (8_292_166_656 - 152_064 * 3_584)
"""Without `lm_head`, which is not read."""
VAE_BYTES = 2 * 126_892_531

CARDS: Mapping[str, tuple[float, tuple[BackendName, ...]]] = {
    "20 GB: RTX 4000 Ada": (20.6, ("nunchaku", "dense-fp8")),
    "24 GB: RTX 3090, RTX 4090, A10, L4": (23.1, ("nunchaku", "dense-fp8")),
    "32 GB: RTX 5090": (33.2, ("dense", "dense-fp8")),
    "40 GB: A100": (41.8, ("nunchaku", "dense")),
    "48 GB: A40, A6000, L40, L40S, RTX 6000 Ada": (47.1, ("nunchaku", "dense", "dense-fp8")),
    "80 GB: A100, H100": (84.4, ("dense", "nunchaku", "dense-fp8")),
    "96 GB: RTX PRO 6000": (101.0, ("dense", "dense-fp8")),
    "141 GB: H200": (149.0, ("dense", "dense-fp8")),
}
"""Free memory in GB of the smallest card of the class once CUDA has started, and the backends to list."""


def real_checkpoint() -> CheckpointInfo:
    """What `read_header` finds in a real file, but for the order of the tensors and where they lie."""
    tensors = expected_tensors(CONFIG_DEFAULTS, rank=128)
    return CheckpointInfo("", CONFIG_DEFAULTS, 128, cast("Mapping[str, Any]", tensors), {})


def real_parts(backend: BackendName) -> Parts:
    return parts_of(backend, TEXT_ENCODER_BYTES, VAE_BYTES, real_checkpoint(), packed_modulation=True, window=WINDOW)


def row(card: str, free: float, backend: BackendName) -> str:
    parts = real_parts(backend)
    try:
        plan = plan_memory(parts, int(free * 1e9), "auto", card)
    except ModelUnavailable as error:
        return f"| {card} | {backend} | – | {error.sentence} | | |"
    offload = plan.offload + (", VAE in tiles" if plan.tiling else "")
    return f"| {card} | {backend} | {offload} | {plan.load / 1e9:.1f} | {plan.edit / 1e9:.1f} | {plan.host / 1e9:.1f} |"


def main() -> None:
    for backend in OFFLOADS:
        print(f"{backend}: transformer {real_parts(backend).transformer / 1e9:.2f} GB")
    print("\n| card | backend | offload | while loading, GB | an edit, GB | in the host's memory, GB |")
    print("|---|---|---|---|---|---|")
    for card, (free, backends) in CARDS.items():
        for backend in backends:
            print(row(card, free, backend))


if __name__ == "__main__":
    main()
