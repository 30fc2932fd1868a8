"""The description of the API: it leaves nothing out, its examples run, and its page asks nobody for anything."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from openapi_spec_validator import validate
from starlette.routing import Route

from qwen_edit.contract.openai import DIALECT
from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse
from qwen_edit.serving.http.app import build
from qwen_edit.serving.http.readiness import Readiness
from qwen_edit.serving.http.schema import docs, examples
from qwen_edit.serving.http.schema.document import document
from qwen_edit.serving.jobs.table import Jobs
from qwen_edit.serving.service import Service
from qwen_edit.settings import Settings
from tests.support.http_worker import HttpWorker

DOCUMENT = document(has_key=False)
OPERATIONS = [
    (path, method, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in ("get", "post")
]
NAMES = [operation["operationId"] for _, _, operation in OPERATIONS]
BODIES = [
    (path, kind, example["value"])
    for path, _, operation in OPERATIONS
    for kind, media in operation.get("requestBody", {}).get("content", {}).items()
    for example in media.get("examples", {}).values()
]


def test_it_is_openapi() -> None:
    validate(document(has_key=True))
    validate(DOCUMENT)


def test_the_server_gives_it(server: HttpWorker) -> None:
    assert server.ask("/openapi.json").json() == DOCUMENT


def test_every_route_is_described_and_no_other(models: Path) -> None:
    service = Service(Settings(models=models, device="cpu"), places=1)
    app = build(Jobs(service), Readiness(service))
    assert isinstance(app, FastAPI)
    routes = {
        (route.path, method.lower()) for route in app.routes if isinstance(route, Route) for method in methods(route)
    }
    service.close()

    at_the_edge = {("/ping", "get"), ("/health/ready", "get")}
    assert {(path, method) for path, method, _ in OPERATIONS} == routes | at_the_edge


def methods(route: Route) -> set[str]:
    return (route.methods or set()) - {"HEAD"}


def test_every_operation_says_what_it_does_and_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(operation["summary"] and operation["responses"] for _, _, operation in OPERATIONS)


def test_every_field_of_the_contract_is_described() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    own = {"return" if name == "return_as" else name for name in EditRequest.model_fields}
    assert own <= schemas["EditRequest"]["properties"].keys()
    assert own | DIALECT.keys() | {"stream", "partial_images"} == schemas["OpenAIEdit"]["properties"].keys()
    answered = {field.serialization_alias or name for name, field in EditResponse.model_fields.items()}
    assert answered == schemas["EditResponse"]["properties"].keys()


def test_every_operation_with_a_body_has_an_example() -> None:
    taking = {path for path, _, operation in OPERATIONS if "requestBody" in operation}
    assert {path for path, _, _ in BODIES} == taking == {"/run", "/runsync", "/v1/images/edits", "/edit"}


@pytest.mark.parametrize(("path", "kind", "value"), BODIES)
def test_an_example_runs(server: HttpWorker, path: str, kind: str, value: Any) -> None:
    if kind == "multipart/form-data":
        body, kind = form_of(value)
        answer = server.ask(path, body, content_type=kind)
    else:
        answer = server.ask(path, value)
    if path == "/run":
        assert server.final(answer.json()["id"])["status"] == "COMPLETED"

    assert answer.status == 200, answer.body[:300]
    assert b"FAILED" not in answer.body
    assert b'"error"' not in answer.body


def form_of(value: dict[str, str]) -> tuple[bytes, str]:
    """A form whose picture is a file, and its type."""
    head = '--edge\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = [head.format("image", '; filename="a.png"').encode() + base64.b64decode(value["image"])]
    parts += [head.format(name, "").encode() + text.encode() for name, text in value.items() if name != "image"]
    return b"\r\n".join([*parts, b"--edge--\r\n"]), "multipart/form-data; boundary=edge"


def test_a_picture_alone_runs_with_the_examples_of_its_parameters(server: HttpWorker) -> None:
    parameters = DOCUMENT["paths"]["/edit"]["post"]["parameters"]
    given = {one["name"]: one["schema"]["examples"][0] for one in parameters if "examples" in one["schema"]}
    assert given["prompt"]

    answer = server.ask(
        f"/edit?{urlencode(given)}", base64.b64decode(examples.PICTURE), content_type="image/png", accept="image/png"
    )

    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")


@pytest.mark.parametrize("name", ["status", "status_sync", "stream", "cancel", "retry"])
def test_the_operations_on_a_job_run_with_the_id_of_an_example(server: HttpWorker, name: str) -> None:
    """`retry` takes a job that failed: the same with a prompt that fails on this device."""
    prompt = "fail" if name == "retry" else "x"
    job_id = server.ask("/runsync", {"input": {**examples.EDIT, "prompt": prompt}}).json()["id"]
    (path, method) = next((path, method) for path, method, one in OPERATIONS if one["operationId"] == name)

    answer = server.ask(path.replace("{job_id}", job_id), method=method.upper())

    assert answer.status == 200, answer.body[:300]
    assert server.final(job_id)["status"] == ("FAILED" if name == "retry" else "COMPLETED")


@pytest.mark.parametrize(("path", "method"), [one[:2] for one in OPERATIONS if "requestBody" not in one[2]])
def test_an_operation_without_a_body_answers(server: HttpWorker, path: str, method: str) -> None:
    if "{" not in path:
        assert server.ask(path, method=method.upper()).status == 200


class Reader(HTMLParser):
    """Its elements, and what they would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        self.links |= {given.get(name) or "" for name in ("href", "src", "style", "onclick")} - {""}


def test_the_page_has_every_operation_and_fetches_nothing(server: HttpWorker) -> None:
    answer = server.ask("/docs")
    reader = Reader()
    reader.feed(answer.body.decode())

    assert reader.ids >= {*NAMES, *(f"schema-{name}" for name in DOCUMENT["components"]["schemas"])}
    assert not reader.tags & {"script", "img", "iframe", "form", "object"}
    inner = {link.removeprefix("#") for link in reader.links if link.startswith("#")}
    assert inner <= reader.ids
    assert {link for link in reader.links if not link.startswith("#")} == {"openapi.json", "data:,"}


def test_the_pages_policy_allows_its_style_alone(server: HttpWorker) -> None:
    answer = server.ask("/docs")
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    (style,) = re.findall(rb"<style>(.*?)</style>", answer.body, re.DOTALL)

    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'none'")
    assert policy["style-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(style).digest()).decode()}'"


def test_a_page_that_is_known_is_not_sent_again(server: HttpWorker) -> None:
    tag = server.ask("/docs").headers["etag"]
    assert server.ask("/docs", if_none_match=tag).status == 304


def test_the_page_shows_each_example_as_a_command() -> None:
    text = html.unescape(docs.page(has_key=False).body.decode())
    for _, kind, value in BODIES:
        assert kind != "application/json" or json.dumps(value) in text


def test_keys_are_described_where_the_server_asks_for_one() -> None:
    assert "security" not in DOCUMENT
    assert document(has_key=True)["security"] == [{"bearer": []}, {"key": []}]
    assert "X-API-Key" in docs.page(has_key=True).body.decode()
