import re
import tomllib

from qwen_edit.version import VERSION
from tests.support.places import ROOT

HEADING = re.compile(r"^## \[(?P<version>\d+\.\d+\.\d+)\] - (?:Unreleased|\d{4}-\d{2}-\d{2})$")


def headings() -> list[str]:
    return [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]


def test_every_version_has_a_date_or_is_unreleased() -> None:
    assert headings()
    assert [heading for heading in headings() if not HEADING.match(heading)] == []


def test_the_top_version_is_the_packages() -> None:
    top = HEADING.match(headings()[0])
    assert top is not None
    assert top["version"] == VERSION


def test_the_package_takes_its_version_from_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "qwen_edit.version.VERSION"}


def test_the_kinds_of_changes_are_those_of_keep_a_changelog() -> None:
    kinds = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
