"""What a hosting site and a contributor's machine read of the repository."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.places import ROOT

HOOKS = ROOT / ".pre-commit-config.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_workflow_runs_what_a_contributor_runs_and_nothing_else() -> None:
    (job,) = loaded(WORKFLOW)["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_workflow_has_the_python_of_the_image() -> None:
    (job,) = loaded(WORKFLOW)["jobs"].values()
    (version,) = (step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert f"python:{version}-" in (ROOT / "Dockerfile").read_text()


def test_the_workflow_may_read_the_repository_and_nothing_more() -> None:
    assert loaded(WORKFLOW)["permissions"] == {"contents": "read"}


def test_the_hooks_check_style_types_large_files_and_private_keys() -> None:
    hooks = {hook["id"] for repository in loaded(HOOKS)["repos"] for hook in repository["hooks"]}
    assert hooks >= {"ruff", "ruff-format", "mypy", "check-added-large-files", "detect-private-key"}


def test_the_hooks_run_the_programs_that_make_check_runs() -> None:
    (local,) = (repository for repository in loaded(HOOKS)["repos"] if repository["repo"] == "local")
    programs = [shlex.split(hook["entry"])[0] for hook in local["hooks"]]
    checks = (ROOT / "Makefile").read_text()
    for program in programs:
        assert f"$(VENV)/{program.removeprefix('.venv/')}" in checks


def test_every_file_of_the_checkout_is_small_enough_for_the_hooks() -> None:
    (limit,) = (
        int(argument.removeprefix("--maxkb="))
        for repository in loaded(HOOKS)["repos"]
        for hook in repository["hooks"]
        for argument in hook.get("args", [])
    )
    largest = max((ROOT / "builder" / "made" / "demo").rglob("*"), key=lambda path: path.stat().st_size)
    assert largest.stat().st_size <= limit * 1024


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_something_that_cannot_be_left_out(form: Path) -> None:
    fields = loaded(form)["body"]
    assert any(field.get("validations", {}).get("required") for field in fields)
    names = [field["id"] for field in fields if field["type"] != "markdown"]
    assert len(names) == len(set(names))


def test_there_is_a_form_for_a_bug_and_one_for_a_feature() -> None:
    assert [form.stem for form in FORMS] == ["bug", "feature"]
