"""Every environment variable, read in one place."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from qwen_edit.errors import SettingsError
from qwen_edit.store.catalog import MODELS

Device = Literal["auto", "cuda", "cpu"]
Backend = Literal["auto", "nunchaku", "dense", "dense-fp8"]
Offload = Literal["auto", "none", "model", "blocks"]
Mode = Literal["auto", "queue", "http"]

BALANCER_BYTES = 30_000_000
"""What RunPod's load balancer takes as a reply (its documentation of load-balancing endpoints)."""


@dataclass(frozen=True)
class BucketSettings:
    """A bucket of an S3-compatible store. The endpoint is the store's, without the bucket."""

    endpoint_url: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    name: str


@dataclass(frozen=True)
class Settings:
    """How this process serves. `docs/operations.md` says what each variable means.

    `on_platform` is whether RunPod's queue hands out the jobs, which its SDK knows by the same variable; `on_endpoint`,
    whether this is a worker of one of its endpoints, of either kind. `gpu_sign` is what the environment says of a GPU
    that this process is meant to have; None where it says nothing. `mode` says which door opens. The fields from `host`
    on are the HTTP server's; its `port_health` None means `port`.
    """

    models: Path = MODELS
    device: Device = "auto"
    backend: Backend = "auto"
    offload: Offload = "auto"
    compiled: bool = False
    fused_qkv: bool = False
    triton: bool = True
    lean_imports: bool = True
    allow_download: bool = False
    allow_urls: bool = False
    concurrency: int = 2
    save_dir: Path | None = None
    max_payload_mb: int | None = None
    bucket: BucketSettings | None = None
    on_platform: bool = False
    on_endpoint: bool = False
    gpu_sign: str | None = None
    mode: Mode = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    port_health: int | None = None
    ping_path: str = "/ping"
    api_key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    allow_webhooks: bool = False
    places: int = 32
    drain_s: int = 30
    keep_alive_s: int = 75

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings from an environment. An empty value counts as unset.

        Raises:
            SettingsError: a value that cannot be read, a `QWEN_EDIT_` name that does not exist, or half a bucket.
        """
        _refuse_unknown(environ)
        values = {
            name: parse(variable, text)
            for variable, (name, parse) in _VARIABLES.items()
            if (text := environ.get(variable, "").strip())
        }
        values["bucket"] = _bucket(environ)
        values["gpu_sign"] = _gpu_sign(environ)
        values["on_platform"] = bool(environ.get("RUNPOD_WEBHOOK_GET_JOB"))
        values["on_endpoint"] = bool(environ.get("RUNPOD_ENDPOINT_ID"))
        return cls(**values)  # type: ignore[arg-type]

    @property
    def http_limit(self) -> int | None:
        """Bytes that a reply over HTTP may have; None is any number."""
        if self.max_payload_mb is not None:
            return self.max_payload_mb * 1_000_000
        return BALANCER_BYTES if self.on_endpoint else None


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


def _pattern(name: str, text: str, pattern: str, expected: str) -> str:
    if not re.fullmatch(pattern, text, re.ASCII):
        raise SettingsError(f"{name} is {text[:100]!r}, expected {expected}")
    return text


def _secret(name: str, text: str) -> str:
    # A header's value has neither spaces nor anything but ASCII. The value itself is not printed.
    if not re.fullmatch(r"[!-~]{8,512}", text):
        raise SettingsError(f"{name} is {len(text)} characters, expected 8 to 512 of printable ASCII without spaces")
    return text


def _origins(name: str, text: str) -> tuple[str, ...]:
    """What browsers send as `Origin`: a scheme and a host, perhaps a port, without a path."""
    origins = tuple(origin for part in text.split(",") if (origin := part.strip()))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?", origin, re.ASCII):
            raise SettingsError(f"{name} is {text[:100]!r}, expected * or origins such as https://a.test, by commas")
    return origins


def _folder(name: str, text: str) -> Path:
    path = Path(text)
    try:
        usable = path.is_dir() or not path.exists()
    except OSError as error:
        raise SettingsError(f"{name} is {text!r}, which cannot be a folder: {error.strerror}") from error
    if not usable:
        raise SettingsError(f"{name} is {text!r}, which is not a folder")
    return path


def _gpu_sign(environ: Mapping[str, str]) -> str | None:
    """The variable by which a container's runtime, or RunPod, says that there is a GPU.

    Not `RUNPOD_POD_ID`, which workers on a CPU have as well.
    """
    shown = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    if shown.lower() not in _NO_DEVICES:
        return f"NVIDIA_VISIBLE_DEVICES is {shown[:60]!r}"
    count = environ.get("RUNPOD_GPU_COUNT", "").strip()
    return f"RUNPOD_GPU_COUNT is {count[:60]!r}" if count.isdecimal() and count.strip("0") else None


def _bucket(environ: Mapping[str, str]) -> BucketSettings | None:
    values = {variable: environ.get(variable, "").strip() for variable in _BUCKET_VARIABLES}
    missing = [variable for variable, text in values.items() if not text]
    if missing == list(values):
        return None
    if missing:
        raise SettingsError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} unset, "
            f"expected all or none of {', '.join(values)}"
        )
    for variable, (_, pattern, expected) in _BUCKET_VARIABLES.items():
        # Without the value: a key that was pasted into the wrong variable must not be printed.
        if not re.fullmatch(pattern, values[variable], re.ASCII | re.IGNORECASE):
            raise SettingsError(f"{variable} is {len(values[variable])} characters that are not {expected}")
    return BucketSettings(**{name: values[variable] for variable, (name, *_) in _BUCKET_VARIABLES.items()})


_BUCKET_VARIABLES = {
    "BUCKET_ENDPOINT_URL": (
        "endpoint_url",
        r"https?://([\w.-]+|\[[\da-f:.]+])(:\d{1,5})?(/[\w./~-]*)?",
        "an http:// or https:// URL of a host",
    ),
    "BUCKET_ACCESS_KEY_ID": ("access_key_id", r"[!-~]+", "a key of printable ASCII without spaces"),
    "BUCKET_SECRET_ACCESS_KEY": ("secret_access_key", r"[!-~]+", "a key of printable ASCII without spaces"),
    "BUCKET_NAME": ("name", r"[\w.-]{1,255}", "a bucket's name of letters, digits, dots, hyphens and underscores"),
}
"""Variable → field, pattern, and what is expected. All but the last are also those of RunPod's SDK."""

_NO_DEVICES = ("", "void", "none")
"""Values of `NVIDIA_VISIBLE_DEVICES` with which NVIDIA's container runtime hands out no GPU."""

_VARIABLES: Mapping[str, tuple[str, Callable[[str, str], object]]] = {
    "MODEL_CACHE_DIR": ("models", _folder),
    "QWEN_EDIT_DEVICE": ("device", lambda name, text: _choice(name, text, get_args(Device))),
    "QWEN_EDIT_BACKEND": ("backend", lambda name, text: _choice(name, text, get_args(Backend))),
    "QWEN_EDIT_OFFLOAD": ("offload", lambda name, text: _choice(name, text, get_args(Offload))),
    "QWEN_EDIT_COMPILE": ("compiled", _switch),
    "QWEN_EDIT_FUSED_QKV": ("fused_qkv", _switch),
    "QWEN_EDIT_TRITON": ("triton", _switch),
    "QWEN_EDIT_LEAN_IMPORTS": ("lean_imports", _switch),
    "QWEN_EDIT_ALLOW_DOWNLOAD": ("allow_download", _switch),
    "QWEN_EDIT_ALLOW_URLS": ("allow_urls", _switch),
    "QWEN_EDIT_CONCURRENCY": ("concurrency", lambda name, text: _integer(name, text, 1, 64)),
    "QWEN_EDIT_SAVE_DIR": ("save_dir", _folder),
    "QWEN_EDIT_MAX_PAYLOAD_MB": ("max_payload_mb", lambda name, text: _integer(name, text, 1, 1000)),
    "QWEN_EDIT_MODE": ("mode", lambda name, text: _choice(name, text, get_args(Mode))),
    "QWEN_EDIT_HOST": ("host", lambda name, text: _pattern(name, text, r"[\w.:-]{1,253}", "a host's name or address")),
    "PORT": ("port", lambda name, text: _integer(name, text, 1, 65535)),
    "PORT_HEALTH": ("port_health", lambda name, text: _integer(name, text, 1, 65535)),
    "HEALTH_CHECK_PATH": (
        "ping_path",
        lambda name, text: _pattern(name, text, r"/[\w./~-]{0,200}", "a path of letters, digits and ./~_-"),
    ),
    "QWEN_EDIT_API_KEY": ("api_key", lambda name, text: _secret(name, text)),
    "QWEN_EDIT_CORS_ORIGINS": ("origins", lambda name, text: _origins(name, text)),
    "QWEN_EDIT_ALLOW_WEBHOOKS": ("allow_webhooks", _switch),
    "QWEN_EDIT_QUEUE": ("places", lambda name, text: _integer(name, text, 1, 1000)),
    "QWEN_EDIT_DRAIN_S": ("drain_s", lambda name, text: _integer(name, text, 0, 3600)),
    "QWEN_EDIT_KEEP_ALIVE_S": ("keep_alive_s", lambda name, text: _integer(name, text, 1, 3600)),
}


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if name.startswith("QWEN_EDIT_") and name not in _VARIABLES:
            close = difflib.get_close_matches(name, _VARIABLES, n=1)
            hint = f"; the closest that exists is {close[0]}" if close else ""
            raise SettingsError(f"{name} is not a setting{hint}")
