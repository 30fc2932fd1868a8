"""The page's file and its headers, without a browser."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from qwen_edit.contract.request import EditRequest
from qwen_edit.pictures.read import MAX_BYTES, MAX_PIXELS
from qwen_edit.serving.http import page

Attributes = list[tuple[str, str | None]]

TEXT = page.load().body.decode()
POLICY = dict(rule.split(" ", 1) for rule in page.load().headers["Content-Security-Policy"].split("; "))

MOST_BYTES = 80_000


class Reader(HTMLParser):
    """Collects the elements with their attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(TEXT)

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        if self.cdata_elem in self.texts:
            self.texts[tag].append(data)


READ = Reader()


@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_allows_the_one_script_and_the_one_style_by_their_hashes(tag: str) -> None:
    (text,) = READ.texts[tag]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert POLICY[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_policy_allows_nothing_else() -> None:
    assert {rule: source for rule, source in POLICY.items() if rule not in ("script-src", "style-src")} == {
        "default-src": "'none'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_the_other_headers_keep_the_page_to_itself() -> None:
    headers = page.load().headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Permissions-Policy"] == "camera=(self)"
    assert headers["Cache-Control"] == "no-cache"
    assert re.fullmatch(r'"[0-9a-f]{32}"', headers["ETag"])


def test_no_element_has_a_handler_or_a_style_of_its_own() -> None:
    named = [(tag, name) for tag, attributes in READ.elements for name in attributes]
    assert named
    assert [one for one in named if one[1] == "style" or one[1].startswith("on")] == []


def test_no_element_names_an_address_outside_of_the_page() -> None:
    addresses = [
        attributes[name] or ""
        for _tag, attributes in READ.elements
        for name in ("href", "src", "action", "srcset", "poster")
        if name in attributes
    ]
    assert addresses
    assert [one[:40] for one in addresses if not one.startswith(("#", "data:image/"))] == []
    # The namespace in the icon is a name, which nobody fetches.
    assert set(re.findall(r"https?://[^\s'\"]+", TEXT)) == {"http://www.w3.org/2000/svg"}


def test_every_label_and_every_reference_meets_an_element() -> None:
    ids = [attributes["id"] for _tag, attributes in READ.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
        referred = " ".join(attributes.get(name) or "" for _tag, attributes in READ.elements).split()
        assert set(referred) <= set(ids)
    assert set(re.findall(r"\$\(\"([\w-]+)\"\)", TEXT)) <= set(ids)


def test_the_fields_are_ones_of_the_contract() -> None:
    (fields,) = re.findall(r"const FIELDS = \[(.*?)\];", TEXT)
    assert set(re.findall(r'"(\w+)"', fields)) < set(EditRequest.model_fields)


def test_the_limits_are_those_of_the_server() -> None:
    for name, value in (("MOST_BYTES", MAX_BYTES), ("MOST_PIXELS", MAX_PIXELS)):
        (written,) = re.findall(rf"{name} = ([\d_]+)", TEXT)
        assert int(written) == value


def test_the_page_is_small() -> None:
    assert len(page.load().body) <= MOST_BYTES


def test_the_example_photo_is_small() -> None:
    (photo,) = (attributes["src"] for _tag, attributes in READ.elements if attributes.get("id") == "example-photo")
    assert photo is not None
    assert len(photo) <= 15_000


def test_the_key_is_never_stored() -> None:
    stored = re.findall(r"(?:localStorage|sessionStorage|document\.cookie)[^;)]*", TEXT)
    assert stored == ['localStorage.setItem("theme", next', 'localStorage.getItem("theme"']
