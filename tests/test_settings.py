from pathlib import Path
from typing import Any

import pytest

from qwen_edit.errors import SettingsError
from qwen_edit.settings import BucketSettings, Settings


def test_an_empty_environment_has_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()
    assert Settings() == Settings(
        models=Path("/app/models"),
        device="auto",
        backend="auto",
        offload="auto",
        compiled=False,
        fused_qkv=False,
        triton=True,
        lean_imports=True,
        allow_download=False,
        allow_urls=False,
        concurrency=2,
        save_dir=None,
        max_payload_mb=None,
        bucket=None,
        on_platform=False,
        on_endpoint=False,
        gpu_sign=None,
        mode="auto",
        host="127.0.0.1",
        port=8000,
        port_health=None,
        ping_path="/ping",
        api_key=None,
        origins=(),
        allow_webhooks=False,
        places=32,
        drain_s=30,
        keep_alive_s=75,
    )


GOOD = [
    ("MODEL_CACHE_DIR", "models", "models", Path("models")),
    ("MODEL_CACHE_DIR", "/", "models", Path("/")),
    ("QWEN_EDIT_DEVICE", "auto", "device", "auto"),
    ("QWEN_EDIT_DEVICE", "cuda", "device", "cuda"),
    ("QWEN_EDIT_DEVICE", " CPU ", "device", "cpu"),
    ("QWEN_EDIT_BACKEND", "nunchaku", "backend", "nunchaku"),
    ("QWEN_EDIT_BACKEND", "Dense", "backend", "dense"),
    ("QWEN_EDIT_BACKEND", "dense-FP8", "backend", "dense-fp8"),
    ("QWEN_EDIT_OFFLOAD", "none", "offload", "none"),
    ("QWEN_EDIT_OFFLOAD", "blocks", "offload", "blocks"),
    ("QWEN_EDIT_OFFLOAD", "model", "offload", "model"),
    ("QWEN_EDIT_COMPILE", "1", "compiled", True),
    ("QWEN_EDIT_FUSED_QKV", "1", "fused_qkv", True),
    ("QWEN_EDIT_TRITON", "0", "triton", False),
    ("QWEN_EDIT_TRITON", "1", "triton", True),
    ("QWEN_EDIT_LEAN_IMPORTS", "0", "lean_imports", False),
    ("QWEN_EDIT_LEAN_IMPORTS", "1", "lean_imports", True),
    ("QWEN_EDIT_ALLOW_DOWNLOAD", "1", "allow_download", True),
    ("QWEN_EDIT_ALLOW_DOWNLOAD", "0", "allow_download", False),
    ("QWEN_EDIT_ALLOW_URLS", "1", "allow_urls", True),
    ("QWEN_EDIT_CONCURRENCY", "1", "concurrency", 1),
    ("QWEN_EDIT_CONCURRENCY", "64", "concurrency", 64),
    ("QWEN_EDIT_SAVE_DIR", "out/pictures", "save_dir", Path("out/pictures")),
    ("QWEN_EDIT_MAX_PAYLOAD_MB", "1", "max_payload_mb", 1),
    ("QWEN_EDIT_MAX_PAYLOAD_MB", "1000", "max_payload_mb", 1000),
    ("PORT", "1", "port", 1),
    ("PORT", "65535", "port", 65535),
    ("PORT_HEALTH", "80", "port_health", 80),
    ("HEALTH_CHECK_PATH", "/", "ping_path", "/"),
    ("HEALTH_CHECK_PATH", "/a/b-c.d", "ping_path", "/a/b-c.d"),
    ("QWEN_EDIT_MODE", "HTTP", "mode", "http"),
    ("QWEN_EDIT_MODE", "queue", "mode", "queue"),
    ("QWEN_EDIT_HOST", "0.0.0.0", "host", "0.0.0.0"),
    ("QWEN_EDIT_HOST", "::1", "host", "::1"),
    ("QWEN_EDIT_API_KEY", "correct-horse", "api_key", "correct-horse"),
    ("QWEN_EDIT_CORS_ORIGINS", "*", "origins", ("*",)),
    (
        "QWEN_EDIT_CORS_ORIGINS",
        "https://a.test, http://b.test:8080",
        "origins",
        ("https://a.test", "http://b.test:8080"),
    ),
    ("QWEN_EDIT_ALLOW_WEBHOOKS", "1", "allow_webhooks", True),
    ("QWEN_EDIT_QUEUE", "1", "places", 1),
    ("QWEN_EDIT_QUEUE", "1000", "places", 1000),
    ("QWEN_EDIT_DRAIN_S", "0", "drain_s", 0),
    ("QWEN_EDIT_KEEP_ALIVE_S", "5", "keep_alive_s", 5),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), GOOD)
def test_a_variable_sets_its_field_alone(name: str, text: str, field: str, value: Any) -> None:
    settings = Settings.from_environ({name: text})
    assert settings == Settings(**{field: value})


def test_every_field_has_a_variable_here() -> None:
    assert {field for _, _, field, _ in GOOD} | {"bucket", "on_platform", "on_endpoint", "gpu_sign"} == set(
        Settings.__dataclass_fields__
    )


def test_the_platform_is_known_by_its_own_variable() -> None:
    assert Settings.from_environ({"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1/job-take/$ID"}).on_platform
    assert not Settings.from_environ({"RUNPOD_WEBHOOK_GET_JOB": ""}).on_platform


@pytest.mark.parametrize("name", sorted({name for name, *_ in GOOD}))
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_value_counts_as_unset(name: str, text: str) -> None:
    assert Settings.from_environ({name: text}) == Settings()


BAD = {
    "QWEN_EDIT_DEVICE": ["gpu", "cuda:1", "0"],
    "QWEN_EDIT_BACKEND": ["int4", "auto,dense", "fp8"],
    "QWEN_EDIT_OFFLOAD": ["yes", "1", "sequential"],
    "QWEN_EDIT_COMPILE": ["on", "max-autotune"],
    "QWEN_EDIT_FUSED_QKV": ["yes", "2"],
    "QWEN_EDIT_TRITON": ["yes", "off"],
    "QWEN_EDIT_LEAN_IMPORTS": ["off", "yes"],
    "QWEN_EDIT_ALLOW_DOWNLOAD": ["true", "yes", "2", "01"],
    "QWEN_EDIT_ALLOW_URLS": ["on", "-1"],
    "QWEN_EDIT_CONCURRENCY": ["0", "65", "-1", "2.0", "two", "١", "²", "1_0", "9" * 5000],
    "QWEN_EDIT_MAX_PAYLOAD_MB": ["0", "1001", "-1", "0.5", "10 MB", "9" * 5000],
    "PORT_HEALTH": ["0", "65536", "none"],
    "HEALTH_CHECK_PATH": ["ping", "/a b", "/a?b", "/ä", "http://a.test/"],
    "QWEN_EDIT_MODE": ["lb", "1", "serve"],
    "QWEN_EDIT_HOST": ["a b", "http://a.test", "a/b"],
    "QWEN_EDIT_CORS_ORIGINS": ["a.test", "https://a.test/", "https://a.test;https://b.test", "null"],
    "QWEN_EDIT_ALLOW_WEBHOOKS": ["yes", "2"],
    "QWEN_EDIT_QUEUE": ["0", "1001", "-1", "many"],
    "QWEN_EDIT_DRAIN_S": ["-1", "3601", "1.5"],
    "QWEN_EDIT_KEEP_ALIVE_S": ["0", "3601"],
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


BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://s3.eu-west-1.example.com",
    "BUCKET_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "BUCKET_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+EXAMPLEKEY",
    "BUCKET_NAME": "edits.2025-a_b",
}


def test_four_variables_make_a_bucket() -> None:
    bucket = Settings.from_environ(BUCKET).bucket
    assert bucket == BucketSettings(*BUCKET.values())
    assert Settings.from_environ({name: f" {text}\n" for name, text in BUCKET.items()}).bucket == bucket


@pytest.mark.parametrize("empty", ["", "  "])
def test_four_empty_variables_make_no_bucket(empty: str) -> None:
    assert Settings.from_environ(dict.fromkeys(BUCKET, empty)).bucket is None


@pytest.mark.parametrize("name", BUCKET)
def test_half_a_bucket_is_refused_with_what_is_missing(name: str) -> None:
    every = ", ".join(BUCKET)
    others = ", ".join(other for other in BUCKET if other != name)
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({**BUCKET, name: " "})
    assert str(caught.value) == f"{name} is unset, expected all or none of {every}"
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({name: BUCKET[name]})
    assert str(caught.value) == f"{others} are unset, expected all or none of {every}"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000",
        "http://[::1]:9000/",
        "https://minio",
        "HTTPS://Account.r2.example.com",
        "https://example.com/storage/v1/s3",
    ],
)
def test_an_endpoint_is_a_url_of_a_host(url: str) -> None:
    bucket = Settings.from_environ({**BUCKET, "BUCKET_ENDPOINT_URL": url}).bucket
    assert bucket is not None
    assert bucket.endpoint_url == url


BAD_BUCKET = {
    "BUCKET_ENDPOINT_URL": [
        *("s3.example.com", "ftp://example.com", "file:///etc/passwd", "https:///x", "https://a b"),
        *("https://user:secret@example.com", "https://example.com?x=1", "https://example.com#x", "https://münchen.de"),
        *("https://[::1", "https://example.com:port", "https://example.com\\x", "https://a\nb"),
    ],
    "BUCKET_ACCESS_KEY_ID": ["two words", "ключ", "a\nb"],
    "BUCKET_SECRET_ACCESS_KEY": ["two words", "a\tb"],
    "BUCKET_NAME": ["folder/name", "two words", "x" * 256, "büro", "a\nb"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD_BUCKET.items() for text in texts])
def test_a_bucket_that_cannot_be_is_refused_without_repeating_what_may_be_a_secret(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is {len(text)} characters that are not a") as caught:
        Settings.from_environ({**BUCKET, name: text})
    assert text not in str(caught.value)


def test_keys_are_not_printed() -> None:
    printed = repr(Settings.from_environ(BUCKET))
    assert BUCKET["BUCKET_NAME"] in printed
    assert BUCKET["BUCKET_ACCESS_KEY_ID"] not in printed
    assert BUCKET["BUCKET_SECRET_ACCESS_KEY"] not in printed


@pytest.mark.parametrize("key", ["short", "with a space", "ümlaut-key", "x" * 513])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(SettingsError, match=r"QWEN_EDIT_API_KEY is .* characters, expected") as caught:
        Settings.from_environ({"QWEN_EDIT_API_KEY": key})
    assert key not in str(caught.value)


def test_a_reply_over_http_has_the_load_balancers_limit_behind_it_alone() -> None:
    assert Settings.from_environ({}).http_limit is None
    assert Settings.from_environ({"RUNPOD_ENDPOINT_ID": "x"}).http_limit == 30_000_000
    assert Settings.from_environ({"QWEN_EDIT_MAX_PAYLOAD_MB": "5"}).http_limit == 5_000_000
