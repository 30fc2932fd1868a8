import re
from pathlib import Path

import pytest

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.host_memory import (
    HEADROOM_BYTES,
    available_bytes,
    is_enough,
    release_free_memory,
    require_enough,
)

BYTES_A_READ = 100_000
BLOCKS = 2_000


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def test_memory_between_blocks_that_stay_goes_back_to_the_system() -> None:
    blocks = [bytearray(BYTES_A_READ) for _ in range(BLOCKS)]
    kept = blocks[::100]
    del blocks
    before = resident_bytes()
    release_free_memory()
    assert before - resident_bytes() > 0.5 * BYTES_A_READ * BLOCKS
    assert len(kept) == BLOCKS / 100


GB = 10**9
MACHINE = {"proc/meminfo": "MemTotal:       64000000 kB\nMemAvailable:   48000000 kB\nSwapFree: 1 kB\n"}
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


def version_1(folder: str, limit: int, taken: int, cached: int) -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{taken}\n",
        f"{folder}/memory.stat": f"cache 9\ntotal_inactive_file {cached - 5}\ntotal_active_file 5\n",
    }


def version_2(folder: str, limit: int | str, taken: int, cached: int) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{taken}\n",
        f"{folder}/memory.stat": f"anon 9\ninactive_file {cached - 5}\nactive_file 5\n",
    }


def own(*lines: str) -> dict[str, str]:
    return {"proc/self/cgroup": "".join(f"{line}\n" for line in lines)}


# what the system says, and what is available
SYSTEMS: dict[str, tuple[dict[str, str], int | None]] = {
    "nothing is said": ({}, None),
    "no groups": (MACHINE, 48_000_000 * 1024),
    "a container that sees its group as the root": (
        {**MACHINE, **own("0::/"), **version_2(V2, 30 * GB, 12 * GB, 10 * GB)},
        28 * GB,
    ),
    "a group with its limit": (
        {**MACHINE, **own("0::/a/b"), **version_2(f"{V2}/a/b", 9 * GB, 2 * GB, 5)},
        7 * GB + 5,
    ),
    "a group whose parent has the limit": (
        {**MACHINE, **own("0::/a/b"), **version_2(f"{V2}/a/b", "max", 1, 5), **version_2(f"{V2}/a", 9 * GB, GB, 5)},
        8 * GB + 5,
    ),
    "a group of which the container does not see the path": (
        {**MACHINE, **own("0::/docker/0123"), **version_2(V2, 9 * GB, GB, 5)},
        8 * GB + 5,
    ),
    "a limit that the machine cannot keep": (
        {**own("0::/"), **version_2(V2, 900 * GB, GB, 5), "proc/meminfo": "MemAvailable: 1000 kB\n"},
        1_024_000,
    ),
    "version 1": (
        {**MACHINE, **own("5:cpu:/", "4:memory:/pod", "0::/"), **version_1(f"{V1}/pod", 9 * GB, 2 * GB, GB)},
        8 * GB,
    ),
    "version 1 without a limit": (
        {
            "proc/meminfo": "MemAvailable: 1000 kB\n",
            **own("4:cpu,memory:/"),
            **version_1(V1, 2**63 - 4096, 2 * GB, GB),
        },
        1_024_000,
    ),
    "a group without statistics": (
        {**MACHINE, **own("0::/"), f"{V2}/memory.max": "9000000000", f"{V2}/memory.current": "1000000000"},
        8 * GB,
    ),
    "no group says anything": ({"proc/meminfo": "MemAvailable: 1000 kB\n", **own("0::/x")}, 1_024_000),
}


@pytest.mark.parametrize(("files", "available"), SYSTEMS.values(), ids=SYSTEMS)
def test_the_least_of_what_the_machine_and_the_groups_have_left_is_available(
    files: dict[str, str], available: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert available_bytes(tmp_path) == available


def test_this_machine_says_what_it_has() -> None:
    available = available_bytes()

    assert available is not None
    assert 10**6 < available < 10**14


@pytest.mark.parametrize(
    ("need", "available", "enough"),
    [
        (0, 0, True),
        (1, None, True),
        (5 * GB, 5 * GB + HEADROOM_BYTES, True),
        (5 * GB, 5 * GB + HEADROOM_BYTES - 1, False),
        (1, HEADROOM_BYTES, False),
    ],
)
def test_weights_and_the_process_beside_them_have_to_fit(need: int, available: int | None, enough: bool) -> None:
    assert is_enough(need, available) is enough
    if enough:
        require_enough(need, available, "the weights", "go")
    else:
        with pytest.raises(ModelUnavailable):
            require_enough(need, available, "the weights", "go")


def test_what_does_not_fit_is_one_sentence_with_need_presence_and_a_way_out() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        require_enough(28_100_000_000, 20_040_000_000, "the weights that wait", "take a larger host")

    assert refused.value.sentence == (
        "the weights that wait take 28.1 GB of the host's memory, and the process 1.2 GB beside them, "
        "of which 20.0 GB are available; take a larger host"
    )
