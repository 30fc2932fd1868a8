import re
from pathlib import Path

from qwen_edit.host_memory import release_free_memory

BLOCK_BYTES = 100_000
BLOCKS = 2_000


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def test_memory_between_blocks_that_stay_goes_back_to_the_system() -> None:
    blocks = [bytearray(BLOCK_BYTES) for _ in range(BLOCKS)]
    kept = blocks[::100]
    del blocks
    before = resident_bytes()
    release_free_memory()
    assert before - resident_bytes() > 0.5 * BLOCK_BYTES * BLOCKS
    assert len(kept) == BLOCKS / 100
