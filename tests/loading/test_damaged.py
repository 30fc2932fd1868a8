"""Whatever is in the base model's folder, a load ends in a sentence that names the part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen_edit import Editor
from qwen_edit.errors import Cancelled, EditError, ModelUnavailable, OutOfMemory
from qwen_edit.loading import assembly
from qwen_edit.loading.assembly import load_base, load_scheduler
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import BASE_FOLDER, LIGHTNING, ORIGINAL
from qwen_edit.store.folder import BASE_FILES, base_weights, is_used
from qwen_edit.weights.reader import Weights
from tests.support.damages import BASE, DAMAGES, Damage, linked, replaced, with_field

CPU = torch.device("cpu")
SHARDS = ("text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors")
INDEX = "text_encoder/model.safetensors.index.json"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    """A whole model directory, whose files are links: a part may be replaced."""
    return linked(models, tmp_path / "models")


def refusal(models: Path) -> str:
    """The sentence of a load that the directory does not allow."""
    with pytest.raises(ModelUnavailable) as refused:
        Editor.load(Settings(models=models, device="cpu"))
    sentence = refused.value.sentence
    assert str(models) not in sentence
    assert sentence.isprintable()
    assert len(sentence) < 300
    return sentence


def assemble(models: Path) -> None:
    """Build the base model without a checkpoint, which is most of a load."""
    with Weights(base_weights(models), CPU, wanted=is_used) as weights:
        load_base(models / BASE_FOLDER, lambda _file: weights, CPU, torch.float32)


@pytest.mark.parametrize("name", [*BASE_FILES, INDEX])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(copy: Path, name: str, damage: Damage) -> None:
    damage(copy / BASE / name)

    if name == INDEX and not (copy / BASE / name).exists():
        assert "text_encoder has several .safetensors files" in refusal(copy)
    else:
        assert name in refusal(copy)


@pytest.mark.parametrize(
    "lines",
    ["t", "t h i s", " t", "t ", "t \u00e9\u00e9", "\u4e2d \u6587", "t h\n\no u", "th\tis", "#version 1\nt h"],
)
def test_a_merge_that_makes_no_token_is_named(copy: Path, lines: str) -> None:
    replaced(lines.encode())(copy / BASE / "tokenizer/merges.txt")

    assert "tokenizer/merges.txt: line " in refusal(copy)


ABSURD = [-1, 0, 10**9, 10**12, 10**30, 1e308, "x", True, [], {}]
NUMBERS = {
    "text_encoder/config.json": (
        "image_token_id",
        *(f"text_config.{name}" for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")),
        *(f"text_config.{name}" for name in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps")),
        "text_config.rope_parameters.mrope_section",
        *(f"vision_config.{name}" for name in ("depth", "hidden_size", "intermediate_size", "num_heads")),
        *(f"vision_config.{name}" for name in ("out_hidden_size", "patch_size", "spatial_merge_size", "window_size")),
    ),
    "vae/config.json": ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "latents_mean", "latents_std"),
    "scheduler/scheduler_config.json": ("num_train_timesteps", "shift", "base_image_seq_len", "max_shift"),
    "processor/preprocessor_config.json": ("patch_size", "merge_size", "min_pixels", "image_std"),
    "tokenizer/vocab.json": ("a",),
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in NUMBERS.items() for field in fields])
def test_an_absurd_number_is_named_before_anything_is_built_of_it(copy: Path, name: str, field: str) -> None:
    path = copy / BASE / name
    whole = path.resolve()
    for value in ABSURD:
        path.unlink()
        path.symlink_to(whole)
        with_field(field, value)(path)

        with pytest.raises(ModelUnavailable, match=rf"^model_unavailable: {name.partition('/')[0]}"):
            assemble(copy)


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(path))
    path.unlink()
    save_file(tensors, path)


def with_first(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Another tensor in the place of the first that is used."""

    def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        first = next(filter(is_used, tensors))
        return {**tensors, first: change(tensors[first])}

    return changed


def without_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    first = next(filter(is_used, tensors))
    return {name: tensor for name, tensor in tensors.items() if name != first}


@pytest.mark.parametrize("file", [SHARDS[0], SHARDS[1], VAE])
@pytest.mark.parametrize(
    "change",
    [
        with_first(lambda _tensor: torch.zeros(3)),
        with_first(lambda tensor: tensor.to(torch.int8)),
        with_first(lambda tensor: tensor.bool()),
        without_first,
        lambda tensors: {**tensors, "surplus": torch.zeros(3)},
        lambda _tensors: {},
    ],
    ids=["shape", "int8", "bool", "one missing", "one more", "none"],
)
def test_tensors_that_are_not_those_of_the_configuration_are_named(
    copy: Path, file: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    rewritten(copy / BASE / file, change)

    assert refusal(copy).startswith(file.partition("/")[0])


def test_weights_in_each_others_place_are_named(copy: Path) -> None:
    places = [copy / BASE / SHARDS[0], copy / BASE / VAE]
    targets = [path.resolve() for path in places]
    for path, target in zip(places, reversed(targets), strict=True):
        path.unlink()
        path.symlink_to(target)

    assert refusal(copy).startswith("text_encoder")


def test_parts_of_two_models_are_named(copy: Path) -> None:
    with_field("patch_size", 16)(copy / BASE / "processor/preprocessor_config.json")
    assert "preprocessor_config.json: patch_size is 16, expected 14, the text encoder's" in refusal(copy)


def test_a_prompt_cannot_be_given_a_token_that_ends_its_turn(copy: Path) -> None:
    with_field("added_tokens_decoder.258.special", False)(copy / BASE / "tokenizer/tokenizer_config.json")

    assert "tokenizer/tokenizer_config.json: has no special token <|im_end|>" in refusal(copy)


class Panic(BaseException):
    """As tokenizers raises it: of no narrower class."""


Panic.__name__ = "PanicException"


@contextmanager
def raising(monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(assembly, part, fail)
        yield


@pytest.mark.parametrize("part", ["load_tokenizer", "load_processor", "load_text_encoder", "load_vae"])
@pytest.mark.parametrize(
    "error",
    [Exception("any"), RuntimeError("any"), ZeroDivisionError(), ImportError("any"), AssertionError(), Panic("any")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_library_raises_is_told_of_its_part(
    models: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException
) -> None:
    name = part.removeprefix("load_")
    with (
        raising(monkeypatch, part, error),
        pytest.raises(ModelUnavailable, match=f"the base model's {name} cannot be loaded; check it with python3"),
    ):
        assemble(models)


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (MemoryError(), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (Cancelled("stop"), Cancelled),
        (OutOfMemory("full"), OutOfMemory),
        (EditError("ours"), EditError),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), torch.AcceleratorError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_what_is_not_the_folders_fault_keeps_its_meaning(
    models: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, becomes: type[BaseException]
) -> None:
    with raising(monkeypatch, "load_vae", error), pytest.raises(becomes) as raised:
        assemble(models)

    assert type(raised.value) is becomes


def test_the_schedule_of_a_damaged_base_model_is_not_asked_where_the_checkpoint_has_one(copy: Path) -> None:
    DAMAGES["half"](copy / BASE / "scheduler/scheduler_config.json")

    load_scheduler(copy / BASE_FOLDER, LIGHTNING)
    with pytest.raises(ModelUnavailable, match=r"scheduler/scheduler_config\.json"):
        load_scheduler(copy / BASE_FOLDER, ORIGINAL)
