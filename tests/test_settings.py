from pathlib import Path

import pytest

from qwen_edit.errors import SettingsError
from qwen_edit.settings import Settings


def test_an_empty_environment_has_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()
    assert Settings() == Settings(
        models=Path("/app/models"),
        device="auto",
        backend="auto",
        offload="auto",
        allow_download=False,
        allow_urls=False,
        concurrency=2,
        save_dir=None,
        port=8000,
    )


GOOD = [
    ("MODEL_CACHE_DIR", "models", "models", Path("models")),
    ("MODEL_CACHE_DIR", "/", "models", Path("/")),
    ("QWEN_EDIT_DEVICE", "auto", "device", "auto"),
    ("QWEN_EDIT_DEVICE", "cuda", "device", "cuda"),
    ("QWEN_EDIT_DEVICE", " CPU ", "device", "cpu"),
    ("QWEN_EDIT_BACKEND", "nunchaku", "backend", "nunchaku"),
    ("QWEN_EDIT_BACKEND", "Dense", "backend", "dense"),
    ("QWEN_EDIT_OFFLOAD", "none", "offload", "none"),
    ("QWEN_EDIT_OFFLOAD", "model", "offload", "model"),
    ("QWEN_EDIT_ALLOW_DOWNLOAD", "1", "allow_download", True),
    ("QWEN_EDIT_ALLOW_DOWNLOAD", "0", "allow_download", False),
    ("QWEN_EDIT_ALLOW_URLS", "1", "allow_urls", True),
    ("QWEN_EDIT_CONCURRENCY", "1", "concurrency", 1),
    ("QWEN_EDIT_CONCURRENCY", "64", "concurrency", 64),
    ("QWEN_EDIT_SAVE_DIR", "out/pictures", "save_dir", Path("out/pictures")),
    ("PORT", "1", "port", 1),
    ("PORT", "65535", "port", 65535),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), GOOD)
def test_a_variable_sets_its_field_alone(name: str, text: str, field: str, value: object) -> None:
    settings = Settings.from_environ({name: text})
    assert settings == Settings(**{field: value})  # type: ignore[arg-type]


def test_every_field_has_a_variable_here() -> None:
    assert {field for _, _, field, _ in GOOD} == set(Settings.__dataclass_fields__)


@pytest.mark.parametrize("name", {name for name, *_ in GOOD})
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_value_counts_as_unset(name: str, text: str) -> None:
    assert Settings.from_environ({name: text}) == Settings()


BAD = {
    "QWEN_EDIT_DEVICE": ["gpu", "cuda:1", "0"],
    "QWEN_EDIT_BACKEND": ["int4", "auto,dense"],
    "QWEN_EDIT_OFFLOAD": ["yes", "1", "sequential"],
    "QWEN_EDIT_ALLOW_DOWNLOAD": ["true", "yes", "2", "01"],
    "QWEN_EDIT_ALLOW_URLS": ["on", "-1"],
    "QWEN_EDIT_CONCURRENCY": ["0", "65", "-1", "2.0", "two", "١", "²", "1_0", "9" * 5000],
    "PORT": ["0", "65536", "http", "80 80", "+80", "9" * 5000],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_value_that_cannot_be_read_is_named_with_what_was_expected(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({name: text})
    assert str(caught.value).startswith(f"{name} is {text!r}, expected ")


@pytest.mark.parametrize("name", ["MODEL_CACHE_DIR", "QWEN_EDIT_SAVE_DIR"])
def test_a_file_is_not_a_folder(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SettingsError, match=f"{name} is .*, which is not a folder"):
        Settings.from_environ({name: str(file)})


@pytest.mark.parametrize("name", ["MODEL_CACHE_DIR", "QWEN_EDIT_SAVE_DIR"])
def test_a_name_that_the_system_refuses_is_not_a_folder(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is .*, which cannot be a folder: File name too long"):
        Settings.from_environ({name: "x" * 5000})


def test_an_unknown_setting_is_refused_with_the_closest_one() -> None:
    with pytest.raises(SettingsError, match=r"^QWEN_EDIT_DEVISE is not a setting; .* is QWEN_EDIT_DEVICE$"):
        Settings.from_environ({"QWEN_EDIT_DEVISE": "cpu"})
    with pytest.raises(SettingsError, match=r"QWEN_EDIT_ALLOW_URL is not a setting; .* is QWEN_EDIT_ALLOW_URLS"):
        Settings.from_environ({"QWEN_EDIT_ALLOW_URL": ""})


def test_variables_of_others_are_left_alone() -> None:
    others = {"PATH": "/bin", "QWEN": "1", "MODEL_CACHE": "x", "port": "x", "RUNPOD_POD_ID": "x"}
    assert Settings.from_environ(others) == Settings()
