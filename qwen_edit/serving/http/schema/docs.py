"""The description as a page: plain HTML that is made here once, without a script and without a request elsewhere."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from typing import Any

from qwen_edit.serving.http.page import Page, alone
from qwen_edit.serving.http.schema import curl
from qwen_edit.serving.http.schema.document import document

Schema = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dddc, #2c3232); --soft: light-dark(#55605e, #a0aba8);
  --accent: light-dark(#0b6650, #62d4b0); --well: light-dark(#eef1f0, #1b1f1f);
  --mono: ui-monospace, "SF Mono", "Cascadia Code", "DejaVu Sans Mono", monospace;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
code, pre { font-family: var(--mono); font-size: .875rem; }
pre { background: var(--well); padding: .75rem 1rem; border-radius: 10px; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
h3 code { font-size: 1.1rem; } .soft { color: var(--soft); } summary { cursor: pointer; }
"""

_METHODS = ("get", "post")


@cache
def page(*, has_key: bool) -> Page:
    """The page of `document`.

    Args:
        has_key: whether the server asks for a key.
    """
    return alone("".join(_html(document(has_key=has_key))).encode())


def _html(described: Schema) -> Iterator[str]:
    info = described["info"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<link rel="icon" href="data:,">'
    yield f"<title>{escape(info['title'])}: the API</title><style>{_STYLE}</style></head><body><main>"
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield "".join(f"<p>{escape(text)}</p>" for text in info["description"].split("\n\n"))
    yield '<p>As OpenAPI 3.1: <a href="openapi.json">openapi.json</a>.</p>'
    if "security" in described:
        yield f"<p>The key: {_keys(described['components']['securitySchemes'])}.</p>"
    operations = list(_operations(described))
    yield "<nav><ul>"
    for method, path, one in operations:
        yield f'<li><a href="#{one["operationId"]}"><code>{method} {escape(path)}</code></a> {escape(one["summary"])}'
    yield "</ul></nav>"
    for method, path, one in operations:
        yield from _operation(method, path, one)
    yield "<h2>Bodies and answers</h2>"
    for name, schema in described["components"]["schemas"].items():
        yield from _component(name, schema)
    yield "</main></body></html>"


def _keys(schemes: Schema) -> str:
    return ", or ".join(
        f"<code>{escape(one.get('name', 'Authorization: Bearer …'))}</code>, {escape(one['description'])}"
        for one in schemes.values()
    )


def _operations(described: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, item in described["paths"].items():
        for method in _METHODS:
            if method in item:
                yield method.upper(), path, item[method]


def _operation(method: str, path: str, one: Schema) -> Iterator[str]:
    yield f'<section id="{one["operationId"]}"><h3><code>{method} {escape(path)}</code></h3>'
    yield f"<p>{escape(one['summary'])}. {escape(one.get('description', ''))}</p>"
    if "parameters" in one:
        yield "<h4>Parameters</h4>"
        yield _table(
            (f"{given['name']} ({given['in']})", _type(given["schema"]), escape(given.get("description", "")))
            for given in one["parameters"]
        )
    if "requestBody" in one:
        yield "<h4>Body</h4>"
        content = one["requestBody"]["content"]
        yield _table((kind, _type(media["schema"]), "") for kind, media in content.items())
    yield "<h4>Answers</h4>"
    yield _table(
        (status, _types(answer.get("content", {})), escape(answer["description"]))
        for status, answer in one["responses"].items()
    )
    yield "<h4>Examples</h4>"
    yield "".join(f"<pre>{escape(command)}</pre>" for command in curl.commands(method, path, one))
    yield "</section>"


def _component(name: str, schema: Schema) -> Iterator[str]:
    yield f'<section id="schema-{name}"><h3><code>{name}</code></h3>'
    yield f"<p>{escape(schema.get('description', ''))}</p>"
    properties = schema.get("properties")
    if properties is None:
        yield f"<p>{_type(schema)}</p>"
    else:
        required = schema.get("required", ())
        yield _table(
            (field + (" *" if field in required else ""), _type(one), escape(one.get("description", "")))
            for field, one in properties.items()
        )
    yield "</section>"


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    cells = (f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{text}" for name, kind, text in rows)
    return f"<table>{''.join(cells)}</table>"


def _types(content: Schema) -> str:
    return "<br>".join(f"{escape(kind)}: {_type(media['schema'])}" for kind, media in content.items())


def _type(schema: Schema) -> str:
    """What a value may be, in a few words of HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "enum" in schema:
        return ", ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    kind = schema.get("type", "anything")
    words = " or ".join(kind) if isinstance(kind, list) else kind
    if "items" in schema:
        words += f" of {_type(schema['items'])}"
    return words + _bounds(schema)


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    return f" {'' if low is None else low} to {'' if high is None else high}"
