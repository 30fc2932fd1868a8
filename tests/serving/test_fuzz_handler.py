"""Arbitrary JSON at the handler. `HYPOTHESIS_PROFILE=soak` runs 20,000 inputs instead of a few hundred."""

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edit.contract.dialects import SERVICES
from qwen_edit.contract.request import EditRequest
from qwen_edit.serving.queue.worker import Worker
from qwen_edit.serving.service import Service
from qwen_edit.settings import Settings
from tests.support.pictures import file_of, flag, frames_of

EXAMPLES = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 300

# There are no weights, so that a request which is right in everything ends for the want of them. `internal` is not
# among these: it would be an exception that nobody foresaw.
EXPECTED = {"invalid_request", "invalid_image", "image_too_large", "model_unavailable"}

FILES = [
    *(file_of(flag(8, 6), file_format) for file_format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")),
    frames_of("GIF", 2),
    file_of(flag(90, 6), "PNG"),  # more than 8 times as wide as high
]
FIELDS = [*EditRequest.model_fields, *SERVICES, "promt", "input", ""]

# JSON can carry half a surrogate pair, and Python's reader also takes NaN and infinity.
texts = st.text(st.characters(exclude_categories=()), max_size=60)
numbers = st.one_of(
    st.integers(),
    st.sampled_from([-1, 0, 1, 4, 8, 20, 32, 50, 64, 128, 256, 1024, 2048, 2**63, 10**300]),
    st.floats(),
    st.sampled_from([1.0, 4.0, 20.0]),
)
words = st.sampled_from(["png", "jpeg", "webp", "auto", "url", "https://127.0.0.1/x.png", "8", " ", "\0", "x" * 4001])
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, words)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def pictures(draw: st.DrawFn) -> str:
    """A picture in base64, whole, damaged in a few bytes, cut, or spelled in another way."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for position, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=3)):
        data[position] = value
    kept = bytes(data[: draw(st.sampled_from([len(data), len(data), len(data) // 2, 1]))])
    encode = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes]))
    text = encode(kept).decode("ascii")
    prefix = draw(st.sampled_from(["", "", "data:image/png;base64,", "data:,", "data:text/html;base64,", "%"]))
    return prefix + draw(st.sampled_from([text, text, text.rstrip("="), text[:-1], text + draw(texts)]))


@st.composite
def near_requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request that is right, or almost."""
    request: dict[str, Any] = {"image": draw(pictures()), "prompt": draw(texts | st.just("make it snow"))}
    request |= draw(st.dictionaries(st.sampled_from(FIELDS), scalars, max_size=2))
    request |= draw(st.dictionaries(st.sampled_from(FIELDS) | texts, json_values, max_size=1))
    for name in draw(st.sets(st.sampled_from(["image", "prompt"]), max_size=1)):
        request.pop(name) if draw(st.booleans()) else None
    return request


jobs = st.one_of(
    st.fixed_dictionaries({"id": texts, "input": json_values}),
    st.fixed_dictionaries({"id": texts, "input": near_requests()}),
    st.dictionaries(st.sampled_from(["id", "input", "webhook", "s3Config", "policy"]), json_values, max_size=4),
)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ask one worker, that has no weights, on one event loop."""
    worker = Worker(Service(Settings(models=tmp_path_factory.mktemp("bare") / "nowhere")))
    with asyncio.Runner() as runner:
        yield lambda job: runner.run(worker.handle(job))
    worker.service.close()


@settings(max_examples=EXAMPLES)
@given(job=jobs)
def test_any_json_is_answered_with_a_sentence_of_the_contract(ask: Any, job: dict[str, Any]) -> None:
    reply = ask(job)

    assert reply.keys() == {"error"}
    code, colon, sentence = reply["error"].partition(": ")
    assert code in EXPECTED, reply
    assert (colon, sentence.strip()) == (": ", sentence)
    assert sentence
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < 4000
    json.dumps(reply, ensure_ascii=False).encode("utf-8")  # as the SDK posts it


@settings(max_examples=EXAMPLES // 10)
@given(prompt=texts.filter(lambda text: text.strip() and "\0" not in text and text.isprintable()))
def test_a_request_that_is_right_asks_for_weights(ask: Any, prompt: str) -> None:
    # Or the fuzzing above would not reach beyond the request's own checks.
    picture = base64.b64encode(FILES[0]).decode("ascii")

    assert ask({"id": "1", "input": {"image": picture, "prompt": prompt}})["error"].startswith("model_unavailable: ")
