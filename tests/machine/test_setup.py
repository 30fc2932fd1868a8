from typing import Any, Literal

import pytest

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import BackendName, Card
from qwen_edit.machine.engine import Engine
from qwen_edit.machine.gpu_memory import DECODE_BYTES, HEADROOM_BYTES, TILED_BYTES, MemoryWay, ModelSizes
from qwen_edit.machine.setup import Choice, Sizes, choose_setup
from qwen_edit.settings import Settings
from tests.support.published import published_sizes

GB = 10**9
ENGINE = Engine("1.2.1+cu12.8torch2.10", None)
ABSENT = Engine(None, "nunchaku is not installed")
UNRELATED = Engine("0.16", "the nunchaku 0.16 that is installed is another package")


def card(name: str, capability: tuple[int, int], free: float, vendor: Literal["NVIDIA", "AMD"] = "NVIDIA") -> Card:
    return Card(name, capability, int(free * GB), int(free * GB), vendor)


RTX_3090 = card("NVIDIA GeForce RTX 3090", (8, 6), 25)
A100_80 = card("NVIDIA A100-SXM4-80GB", (8, 0), 85)
A100_40 = card("NVIDIA A100-SXM4-40GB", (8, 0), 42)
L40S = card("NVIDIA L40S", (8, 9), 48)
H200 = card("NVIDIA H200", (9, 0), 150)
RTX_5090 = card("NVIDIA GeForce RTX 5090", (12, 0), 34)
MI300X = card("AMD Instinct MI300X", (9, 4), 206, vendor="AMD")


def sizes_for(device: Card | None, *, dense_fits: bool) -> Sizes:
    """Of a model that fits a card in every way, but for the dense one, which else fits only by turns."""
    large = 1 * GB if device is None or dense_fits else device.free - 5 * GB

    def sizes(backend: BackendName) -> ModelSizes:
        transformer = large if backend == "dense" else 1 * GB
        return ModelSizes(backend, 6 * GB, vae=0, transformer=transformer, resident=GB, arriving=0)

    return sizes


def choose(device: Card | None, engine: Engine, asked: Any, sizes: Sizes) -> Choice:
    return choose_setup(Settings(backend=asked), device, engine, sizes)[0]


# card, whether the dense model fits it, what runs with the engine and what without; None is an error
BACKENDS = [
    (RTX_3090, False, "nunchaku", None),
    (card("NVIDIA A10", (8, 6), 24), False, "nunchaku", None),
    (card("NVIDIA A40", (8, 6), 48), False, "nunchaku", None),
    (card("NVIDIA RTX A6000", (8, 6), 51), False, "nunchaku", None),
    (card("NVIDIA GeForce RTX 4090", (8, 9), 25), False, "nunchaku", None),
    (card("NVIDIA L4", (8, 9), 24), False, "nunchaku", None),
    (card("NVIDIA L40", (8, 9), 48), False, "nunchaku", None),
    (L40S, False, "nunchaku", None),
    (L40S, True, "nunchaku", "dense"),
    (card("NVIDIA RTX 6000 Ada Generation", (8, 9), 51), False, "nunchaku", None),
    (A100_40, False, "nunchaku", None),
    (A100_80, True, "dense", "dense"),
    (card("NVIDIA H100 80GB HBM3", (9, 0), 85), True, "dense", "dense"),
    (H200, True, "dense", "dense"),
    (card("NVIDIA B200", (10, 0), 190), True, "dense", "dense"),
    (RTX_5090, False, "dense", "dense"),  # by turns
    (card("NVIDIA RTX PRO 6000 Blackwell", (12, 0), 102), True, "dense", "dense"),
    (card("Orin", (8, 7), 64), True, "dense", "dense"),
    (MI300X, True, "dense", "dense"),
    (None, True, "dense", "dense"),
]
BEFORE_AMPERE = [
    card("Tesla T4", (7, 5), 16),
    card("NVIDIA GeForce RTX 2080 Ti", (7, 5), 11),
    card("Tesla V100-SXM2-32GB", (7, 0), 34),
]


@pytest.mark.parametrize(("device", "dense_fits", "with_engine", "without"), BACKENDS, ids=str)
def test_auto_chooses_by_card_engine_and_memory(
    device: Card | None, dense_fits: bool, with_engine: str, without: str | None
) -> None:
    sizes = sizes_for(device, dense_fits=dense_fits)
    choice = choose(device, ENGINE, "auto", sizes)
    assert (choice.backend, choice.warning) == (with_engine, None)
    assert choice.reason.startswith(f"{with_engine}: ")

    for engine in (ABSENT, UNRELATED):
        if without is None:
            with pytest.raises(ModelUnavailable, match=engine.fault):
                choose(device, engine, "auto", sizes)
        else:
            assert choose(device, engine, "auto", sizes).backend == without


@pytest.mark.parametrize("device", BEFORE_AMPERE, ids=str)
@pytest.mark.parametrize("asked", ["auto", "nunchaku", "dense", "dense-fp8"])
def test_a_card_without_bfloat16_is_refused_whatever_is_asked(device: Card, asked: str) -> None:
    with pytest.raises(ModelUnavailable, match=rf"{device.name} has compute capability 7\.\d, expected 8\.0 or later"):
        choose(device, ENGINE, asked, sizes_for(device, dense_fits=True))


# card, the engine, whether the dense model fits, why it runs what it runs
REASONS = [
    (L40S, ENGINE, True, "nunchaku: the GPU NVIDIA L40S (compute capability 8.9): it has int4 tensor cores"),
    (
        A100_40,
        ENGINE,
        False,
        "nunchaku: the GPU NVIDIA A100-SXM4-40GB (compute capability 8.0): the dense model does not fit",
    ),
    (
        A100_80,
        ABSENT,
        True,
        "dense: it fits, and on the GPU NVIDIA A100-SXM4-80GB (compute capability 8.0) Nunchaku's int4 kernels are "
        "the slower ones",
    ),
    (
        RTX_5090,
        ENGINE,
        True,
        "dense: on the GPU NVIDIA GeForce RTX 5090 (compute capability 12.0) Nunchaku runs fp4 files, not these int4 "
        "ones",
    ),
]


@pytest.mark.parametrize(("device", "engine", "dense_fits", "reason"), REASONS, ids=str)
def test_the_reason_is_said(device: Card, engine: Engine, dense_fits: bool, reason: str) -> None:
    assert choose(device, engine, "auto", sizes_for(device, dense_fits=dense_fits)).reason == reason


def test_dense_instead_of_nunchaku_is_said_in_a_warning() -> None:
    choice = choose(L40S, UNRELATED, "auto", sizes_for(L40S, dense_fits=True))

    assert choice.warning == (
        "the GPU NVIDIA L40S (compute capability 8.9) would run Nunchaku's int4 kernels, "
        "but the nunchaku 0.16 that is installed is another package, so the dense backend runs"
    )
    assert choice.warning in choice.reason
    assert "not the unrelated package" in choice.reason


def test_no_backend_that_fits_is_an_error_that_says_how_to_install_the_engine() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose(RTX_3090, ABSENT, "auto", published_sizes)

    assert refused.value.sentence == (
        "the GPU NVIDIA GeForce RTX 3090 (compute capability 8.6) runs this model with Nunchaku's int4 kernels, and "
        "without them it does not fit, but nunchaku is not installed; install the release wheel of "
        "github.com/nunchaku-ai/nunchaku for this Python and torch, not the unrelated package of that name on the "
        "package index"
    )


def test_no_backend_that_fits_as_a_whole_names_the_offload_with_which_the_dense_one_does() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose(A100_40, ABSENT, "auto", published_sizes)

    assert refused.value.sentence == (
        "the GPU NVIDIA A100-SXM4-40GB (compute capability 8.0) runs this model with Nunchaku's int4 kernels, and "
        "without them it fits only with QWEN_EDIT_OFFLOAD=model, but nunchaku is not installed; set that, or install "
        "the release wheel of github.com/nunchaku-ai/nunchaku for this Python and torch, not the unrelated package of "
        "that name on the package index"
    )


@pytest.mark.parametrize(
    ("device", "engine", "asked", "sentence"),
    [
        (H200, ENGINE, "nunchaku", "the GPU NVIDIA H200 (compute capability 9.0) has no int4 tensor cores"),
        (RTX_5090, ENGINE, "nunchaku", "Nunchaku runs fp4 files, not these int4 ones"),
        (MI300X, ENGINE, "nunchaku", "the AMD GPU AMD Instinct MI300X does not run"),
        (None, ENGINE, "nunchaku", "there is no GPU"),
        (L40S, ABSENT, "nunchaku", "nunchaku is not installed; install the release wheel"),
        (L40S, UNRELATED, "nunchaku", "is another package; install the release wheel"),
        (A100_80, ENGINE, "dense-fp8", "has no fp8 tensor cores, which begin with 8.9; leave it out or set dense"),
        (MI300X, ENGINE, "dense-fp8", "has not been tried"),
    ],
)
def test_what_is_asked_for_and_cannot_run_is_one_sentence(
    device: Card | None, engine: Engine, asked: str, sentence: str
) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose(device, engine, asked, sizes_for(device, dense_fits=True))

    assert refused.value.sentence.startswith(f"QWEN_EDIT_BACKEND is {asked}, but ")
    assert sentence in refused.value.sentence


@pytest.mark.parametrize(
    ("device", "asked"),
    [
        (A100_80, "nunchaku"),
        (L40S, "dense"),
        (RTX_3090, "dense"),
        (H200, "dense-fp8"),
        (RTX_5090, "dense-fp8"),
        (L40S, "dense-fp8"),
        (None, "dense-fp8"),
        (None, "dense"),
    ],
)
def test_what_is_asked_for_and_can_run_runs(device: Card | None, asked: str) -> None:
    choice = choose(device, ENGINE, asked, sizes_for(device, dense_fits=False))

    assert (choice.backend, choice.reason) == (asked, f"{asked}: QWEN_EDIT_BACKEND asks for it")


def test_auto_never_chooses_what_has_not_been_measured() -> None:
    for device, dense_fits, *_ in BACKENDS:
        assert choose(device, ENGINE, "auto", sizes_for(device, dense_fits=dense_fits)).backend != "dense-fp8"


# card, settings, whether the engine is there, backend and offload
OFFLOADS = [
    (card("RTX 3090", (8, 6), 25), {}, True, "nunchaku", "model"),
    (card("RTX 3090", (8, 6), 23.1), {}, True, "nunchaku", "model"),
    (card("RTX 3090", (8, 6), 25), {"offload": "blocks"}, True, "nunchaku", "blocks"),
    (card("L40S", (8, 9), 47.1), {}, True, "nunchaku", "none"),
    (card("L40S", (8, 9), 47.1), {"offload": "model"}, False, "dense", "model"),
    (card("L40S", (8, 9), 47.1), {"backend": "dense"}, True, "dense", "model"),
    (card("L40S", (8, 9), 47.1), {"backend": "dense-fp8"}, False, "dense-fp8", "none"),
    (card("A100 40 GB", (8, 0), 41.8), {}, True, "nunchaku", "none"),
    (card("A100 40 GB", (8, 0), 41.8), {"backend": "dense"}, True, "dense", "model"),
    (card("A100 80 GB", (8, 0), 84.4), {}, True, "dense", "none"),
    (card("A100 80 GB", (8, 0), 84.4), {"backend": "nunchaku"}, True, "nunchaku", "none"),
    (card("H200", (9, 0), 149), {}, False, "dense", "none"),
    (card("H200", (9, 0), 149), {"backend": "dense-fp8"}, False, "dense-fp8", "none"),
    (card("H200", (9, 0), 149), {"backend": "dense-fp8", "offload": "model"}, False, "dense-fp8", "model"),
    (card("RTX 5090", (12, 0), 33.2), {"backend": "dense-fp8"}, False, "dense-fp8", "model"),
]


@pytest.mark.parametrize(("device", "asked", "engine", "backend", "offload"), OFFLOADS, ids=str)
def test_each_card_gets_a_backend_and_an_offload(
    device: Card, asked: dict[str, Any], engine: bool, backend: str, offload: str
) -> None:
    choice, way = choose_setup(Settings(**asked), device, ENGINE if engine else ABSENT, published_sizes)

    assert way is not None
    assert (choice.backend, way.backend, way.offload, way.tiling) == (backend, backend, offload, False)
    assert way.peak <= device.free


def test_a_card_that_is_too_small_for_dense_and_would_do_for_fp8_is_told_so() -> None:
    with pytest.raises(
        ModelUnavailable, match=r"and the GPU RTX 5090 has 33\.2 GB free; QWEN_EDIT_BACKEND=dense-fp8 fits"
    ):
        choose_setup(Settings(), card("RTX 5090", (12, 0), 33.2), ABSENT, published_sizes)
    with pytest.raises(ModelUnavailable, match=r"has 16\.0 GB free$"):
        choose_setup(Settings(), card("RTX 5080", (12, 0), 16), ABSENT, published_sizes)
    with pytest.raises(ModelUnavailable, match=r"has 33\.2 GB free$"):
        choose_setup(Settings(backend="dense"), card("RTX 5090", (12, 0), 33.2), ABSENT, published_sizes)


def test_a_card_that_is_too_small_for_both_is_told_of_nunchaku_which_needs_less() -> None:
    with pytest.raises(ModelUnavailable, match=r"the nunchaku backend needs .* has 9\.7 GB free$"):
        choose_setup(Settings(), card("A100 10 GB", (8, 0), 9.7), ENGINE, published_sizes)


def test_fp8_is_not_suggested_to_a_card_without_it() -> None:
    with pytest.raises(ModelUnavailable, match=r"the dense backend needs .* has 33\.2 GB free$"):
        choose_setup(Settings(), card("MI210", (9, 4), 33.2, vendor="AMD"), ABSENT, published_sizes)


def on(free: int, offload: Any, sizes: Sizes, capability: tuple[int, int] = (9, 0)) -> MemoryWay:
    device = Card("NAME", capability, free, free)
    _, way = choose_setup(Settings(offload=offload), device, ENGINE, sizes)
    assert way is not None
    return way


def test_the_vae_works_in_tiles_only_where_it_would_not_fit_otherwise() -> None:
    def sizes(backend: BackendName) -> ModelSizes:
        return ModelSizes(backend, text_encoder=1 * GB, vae=0, transformer=5 * GB, resident=GB, arriving=0)

    whole = 6 * GB + DECODE_BYTES + HEADROOM_BYTES

    assert not on(whole, "none", sizes).tiling
    tiled = on(whole - 1, "none", sizes)
    assert tiled.tiling
    assert tiled.edit < whole - DECODE_BYTES + TILED_BYTES + GB + 1


def test_blocks_come_last_and_for_a_text_encoder_that_is_small() -> None:
    def sizes(backend: BackendName) -> ModelSizes:
        return ModelSizes(backend, 6 * GB, vae=0, transformer=13 * GB, resident=1 * GB, arriving=0)

    assert on(24 * GB, "auto", sizes, (8, 6)).offload == "none"
    assert on(18 * GB, "auto", sizes, (8, 6)).offload == "model"
    assert on(10 * GB, "auto", sizes, (8, 6)).offload == "blocks"


@pytest.mark.parametrize("backend", ["dense", "dense-fp8"])
def test_blocks_are_refused_to_a_backend_that_has_them_all_or_none(backend: BackendName) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose_setup(Settings(backend=backend, offload="blocks"), H200, ENGINE, published_sizes)

    assert refused.value.sentence == (
        f"QWEN_EDIT_OFFLOAD is blocks, which the {backend} backend does not do; expected one of auto, none, model"
    )


def test_an_offload_that_is_asked_for_holds_where_a_faster_one_would_fit_and_is_refused_where_it_does_not() -> None:
    assert on(200 * GB, "blocks", published_sizes, (8, 6)).offload == "blocks"
    with pytest.raises(
        ModelUnavailable, match=r"needs 31\.0 GB .* 32\.3 GB .* offload none, and the GPU NAME has 24\.0 GB free"
    ):
        on(24 * GB, "none", published_sizes, (8, 6))


def test_dense_in_place_of_nunchaku_has_to_fit_as_a_whole_unless_an_offload_is_asked_for() -> None:
    def dense(free: float, offload: Any) -> str:
        settings, device = Settings(offload=offload), card("NAME", (8, 9), free)
        return choose_setup(settings, device, ABSENT, published_sizes)[0].backend

    for offload in ("auto", "none"):
        with pytest.raises(ModelUnavailable, match="it fits only with QWEN_EDIT_OFFLOAD=model"):
            dense(47, offload)
    assert dense(47, "model") == "dense"
    assert dense(84, "auto") == "dense"


# card, settings, whether the engine is there, GB of the host's memory that are too few and that suffice, the way out
SMALL_HOSTS = [
    (card("RTX 3090", (8, 6), 25), {}, True, 30, 31, "take a host with more memory, or a GPU with "),
    (card("L40S", (8, 9), 47.1), {"offload": "model"}, True, 20, 40, "set QWEN_EDIT_OFFLOAD=none, which fits"),
    (
        card("L40S", (8, 9), 47.1),
        {"backend": "dense"},
        True,
        48,
        49,
        "take a host with more memory, or a GPU with ",
    ),
    (card("RTX 3090", (8, 6), 25), {"offload": "blocks"}, True, 33, 36, "set QWEN_EDIT_OFFLOAD=model, which fits"),
    # Nunchaku's weights would fit 40 GB, but no slower backend is taken unasked where a setting helps.
    (card("A100 80 GB", (8, 0), 84.4), {"offload": "model"}, True, 40, 49, "set QWEN_EDIT_OFFLOAD=none, which fits"),
]


@pytest.mark.parametrize(("device", "asked", "engine", "few", "enough", "way_out"), SMALL_HOSTS, ids=str)
def test_weights_that_wait_in_too_small_a_host_are_refused_with_the_figures(
    device: Card, asked: dict[str, Any], engine: bool, few: float, enough: float, way_out: str
) -> None:
    found = ENGINE if engine else ABSENT
    with pytest.raises(ModelUnavailable) as refused:
        choose_setup(Settings(**asked), device, found, published_sizes, int(few * GB))

    assert f"of which {few:.1f} GB are available; {way_out}" in refused.value.sentence
    assert choose_setup(Settings(**asked), device, found, published_sizes, int(enough * GB))[1] is not None


def test_a_host_of_any_size_will_do_where_nothing_waits_in_it() -> None:
    _, way = choose_setup(Settings(), card("H200", (9, 0), 149), ABSENT, published_sizes, 10**6)

    assert way is not None
    assert way.host == 0


def in_float32(backend: BackendName) -> ModelSizes:
    return published_sizes(backend, itemsize=4)


def test_a_cpu_with_too_little_memory_for_the_model_in_float32_is_refused_with_the_figures() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose_setup(Settings(), None, ABSENT, in_float32, 64 * GB)

    assert refused.value.sentence == (
        "the weights on the CPU take 92.0 GB of the host's memory, and the process 1.2 GB beside them, "
        "of which 64.0 GB are available; take a host with more memory, or a GPU"
    )
    assert choose_setup(Settings(), None, ABSENT, in_float32, 96 * GB)[0].backend == "dense"


@pytest.mark.parametrize("offload", ["model", "blocks"])
def test_the_cpu_has_no_memory_of_a_gpu_to_save(offload: Any) -> None:
    with pytest.raises(ModelUnavailable, match=f"QWEN_EDIT_OFFLOAD is {offload}, which saves the memory of a GPU"):
        choose_setup(Settings(offload=offload), None, ABSENT, published_sizes)


@pytest.mark.parametrize(("asked", "name"), [({}, "L40S"), ({"backend": "nunchaku"}, "A100 80 GB")])
def test_to_compile_the_engines_blocks_is_refused(asked: dict[str, Any], name: str) -> None:
    (gpu,) = {row[0] for row in OFFLOADS if row[0].name == name}
    with pytest.raises(ModelUnavailable, match=r"QWEN_EDIT_COMPILE is 1, but the nunchaku backend runs"):
        choose_setup(Settings(compiled=True, **asked), gpu, ENGINE, published_sizes)

    assert choose_setup(Settings(compiled=True, backend="dense"), gpu, ENGINE, published_sizes)[0].backend == "dense"


@pytest.mark.parametrize(
    ("asked", "device", "engine", "runs"),
    [
        ({}, H200, ENGINE, "dense"),
        ({"backend": "dense"}, L40S, ENGINE, "dense"),
        ({"backend": "dense-fp8"}, H200, ENGINE, "dense-fp8"),
        ({}, None, ABSENT, "dense"),
    ],
)
def test_the_engines_fused_product_is_refused_to_other_backends(
    asked: dict[str, Any], device: Card | None, engine: Engine, runs: str
) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose_setup(Settings(fused_qkv=True, **asked), device, engine, published_sizes)

    assert refused.value.sentence == (
        f"QWEN_EDIT_FUSED_QKV is 1, but the {runs} backend runs, which does without the engine's kernels; "
        "leave it out or set QWEN_EDIT_BACKEND=nunchaku"
    )
    assert choose_setup(Settings(fused_qkv=True), L40S, ENGINE, published_sizes)[0].backend == "nunchaku"


def test_an_engine_without_the_fused_product_is_refused_before_weights_are_read() -> None:
    old = Engine("1.1.0", None, has_fused_product=False)

    with pytest.raises(ModelUnavailable) as refused:
        choose_setup(Settings(fused_qkv=True), L40S, old, published_sizes)

    assert refused.value.sentence == (
        "QWEN_EDIT_FUSED_QKV is 1, but nunchaku 1.1.0 has no nunchaku.ops.fused.fused_qkv_norm_rottary; "
        "leave it out or install release 1.2.1"
    )
    assert choose_setup(Settings(), L40S, old, published_sizes)[0].backend == "nunchaku"


def test_a_card_that_would_run_dense_by_turns_is_told_so_where_the_engine_is_missing() -> None:
    l40s = card("L40S", (8, 9), 47.1)
    with pytest.raises(ModelUnavailable, match=r"it fits only with QWEN_EDIT_OFFLOAD=model, but nunchaku is not"):
        choose_setup(Settings(), l40s, ABSENT, published_sizes, 60 * GB)
    with pytest.raises(ModelUnavailable, match=r"without them it does not fit, but nunchaku is not"):
        choose_setup(Settings(), l40s, ABSENT, published_sizes, 40 * GB)
