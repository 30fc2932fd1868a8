from pathlib import Path

import pytest
from PIL import Image

from qwen_edit.__main__ import main
from tests.support.places import PHOTOS

PHOTO = str(PHOTOS / "chelsea.png")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(models))
    monkeypatch.setenv("QWEN_EDIT_DEVICE", "cpu")


def test_a_file_is_edited_with_a_bar_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "snow.jpg"

    status = main([PHOTO, "make it snow", "-o", str(output), "--seed", "3", "--width", "256", "--height", "256"])

    printed = capsys.readouterr()
    assert status == 0
    with Image.open(output) as picture:
        assert (picture.format, picture.size) == ("JPEG", (256, 256))
    summary = printed.out.strip()
    assert summary.startswith(
        f"{output}: svdq-int4_r128-qwen-image-edit-lightningv1.0-8steps.safetensors, 8 steps, seed 3, "
    )
    assert summary.endswith(" s")
    assert "8/8" in printed.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.jpg", "x", "-o", "out.png"], "invalid_image: there is no file 'gone.jpg'"),
        ([".", "x", "-o", "out.png"], "invalid_image: '.' cannot be read: Is a directory"),
        (
            [PHOTO, "x", "-o", "out.gif"],
            "invalid_request: output 'out.gif' ends in '.gif', expected .png, .jpg, .jpeg, .webp",
        ),
        ([PHOTO, "x", "-o", "gone/out.png"], "invalid_request: output folder 'gone' does not exist"),
        ([PHOTO, " ", "-o", "out.png"], "invalid_request: prompt is "),
        ([PHOTO, "x", "-o", "out.png", "--steps", "9"], "invalid_request: steps is 9"),
        ([__file__, "x", "-o", "out.png"], "invalid_image: "),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(arguments)

    printed = capsys.readouterr()
    assert status == 1
    assert printed.err.startswith(f"qwen-edit: {sentence}")
    assert len(printed.err.splitlines()) == 1
    assert not Path("out.png").exists()


def test_a_missing_model_directory_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "nowhere"))

    assert main([PHOTO, "x", "-o", str(tmp_path / "out.png")]) == 1
    assert capsys.readouterr().err.startswith("qwen-edit: model_unavailable: ")


def test_a_setting_that_cannot_be_read_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QWEN_EDIT_DEVICE", "tpu")

    assert main([PHOTO, "x", "-o", "out.png"]) == 1
    assert capsys.readouterr().err == "qwen-edit: QWEN_EDIT_DEVICE is 'tpu', expected one of auto, cuda, cpu\n"
