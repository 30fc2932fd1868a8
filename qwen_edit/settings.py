"""Every environment variable, read in one place."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from qwen_edit.errors import SettingsError

Device = Literal["auto", "cuda", "cpu"]
Backend = Literal["auto", "nunchaku", "dense"]
Offload = Literal["auto", "none", "model"]


@dataclass(frozen=True)
class Settings:
    """How this process serves. The README's table says what each variable means."""

    models: Path = Path("/app/models")
    device: Device = "auto"
    backend: Backend = "auto"
    offload: Offload = "auto"
    allow_download: bool = False
    allow_urls: bool = False
    concurrency: int = 2
    save_dir: Path | None = None
    port: int = 8000

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings from an environment. An empty value counts as unset.

        Raises:
            SettingsError: a value that cannot be read, or a `QWEN_EDIT_` name that does not exist.
        """
        _refuse_unknown(environ)
        values = {
            field: parse(name, text)
            for name, (field, parse) in _VARIABLES.items()
            if (text := environ.get(name, "").strip())
        }
        return cls(**values)  # type: ignore[arg-type]


def _choice(name: str, text: str, choices: tuple[str, ...]) -> str:
    if text.lower() not in choices:
        raise SettingsError(f"{name} is {text!r}, expected one of {', '.join(choices)}")
    return text.lower()


def _switch(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise SettingsError(f"{name} is {text!r}, expected 0 or 1")
    return text == "1"


def _integer(name: str, text: str, low: int, high: int) -> int:
    # No more digits than the limits have by far: Python refuses to read thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and low <= int(text) <= high):
        raise SettingsError(f"{name} is {text!r}, expected a whole number from {low} to {high}")
    return int(text)


def _folder(name: str, text: str) -> Path:
    path = Path(text)
    try:
        usable = path.is_dir() or not path.exists()
    except OSError as error:
        raise SettingsError(f"{name} is {text!r}, which cannot be a folder: {error.strerror}") from error
    if not usable:
        raise SettingsError(f"{name} is {text!r}, which is not a folder")
    return path


_VARIABLES: Mapping[str, tuple[str, Callable[[str, str], object]]] = {
    "MODEL_CACHE_DIR": ("models", _folder),
    "QWEN_EDIT_DEVICE": ("device", lambda name, text: _choice(name, text, get_args(Device))),
    "QWEN_EDIT_BACKEND": ("backend", lambda name, text: _choice(name, text, get_args(Backend))),
    "QWEN_EDIT_OFFLOAD": ("offload", lambda name, text: _choice(name, text, get_args(Offload))),
    "QWEN_EDIT_ALLOW_DOWNLOAD": ("allow_download", _switch),
    "QWEN_EDIT_ALLOW_URLS": ("allow_urls", _switch),
    "QWEN_EDIT_CONCURRENCY": ("concurrency", lambda name, text: _integer(name, text, 1, 64)),
    "QWEN_EDIT_SAVE_DIR": ("save_dir", _folder),
    "PORT": ("port", lambda name, text: _integer(name, text, 1, 65535)),
}


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if name.startswith("QWEN_EDIT_") and name not in _VARIABLES:
            close = difflib.get_close_matches(name, _VARIABLES, n=1)
            hint = f"; the closest that exists is {close[0]}" if close else ""
            raise SettingsError(f"{name} is not a setting{hint}")
