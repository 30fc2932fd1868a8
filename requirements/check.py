"""Refuse an environment whose packages do not fit together: `python requirements/check.py`.

`pip check` does not know of `left_out.in`: what is named there need not be installed.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

LEFT_OUT = Path(__file__).with_name("left_out.in")


def main() -> None:
    """Print each requirement that is not met, and end with 1 where there is one."""
    lines = [line for line in LEFT_OUT.read_text().splitlines() if line and not line.startswith("#")]
    left_out = {canonicalize_name(need.name) for need in map(Requirement, lines) if not _counts(need)}
    found = sorted(unmet(list(distributions()), left_out))
    sys.exit("\n".join(found) if found else 0)


def unmet(installed: list[Distribution], left_out: set[NormalizedName]) -> Iterator[str]:
    """A sentence for each requirement that is not met.

    Args:
        installed: every package of the environment.
        left_out: packages that may be missing.
    """
    versions = {canonicalize_name(package.name): package.version for package in installed}
    for package in installed:
        for need in map(Requirement, package.requires or []):
            name = canonicalize_name(need.name)
            if not _counts(need) or (name in left_out and name not in versions):
                continue
            if name not in versions:
                yield f"{package.name} {package.version} requires {need}, which is not installed"
            elif not need.specifier.contains(versions[name], prereleases=True):
                yield f"{package.name} {package.version} requires {need}, and {versions[name]} is installed"


def _counts(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": ""})


if __name__ == "__main__":
    main()
