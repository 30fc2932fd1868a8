"""Refuse an environment whose packages do not fit together: `python requirements/check.py`.

As `pip check`, with what `overrides.in` puts in the place of requirements.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

OVERRIDES = Path(__file__).with_name("overrides.in")


def main() -> None:
    """Print each requirement that is not met, and end with 1 where there is one."""
    found = sorted(unmet(list(distributions()), overrides(OVERRIDES.read_text())))
    sys.exit("\n".join(found) if found else 0)


def overrides(text: str) -> dict[NormalizedName, Requirement]:
    """The requirements in a file like `overrides.in`, by the package's name."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(need.name): need for need in map(Requirement, lines)}


def unmet(installed: Iterable[Distribution], instead: Mapping[NormalizedName, Requirement]) -> Iterator[str]:
    """A sentence for each requirement that is not met.

    Args:
        installed: every package of the environment.
        instead: requirements that take the place of those for the same package. One whose marker does not hold lets it
            be missing.
    """
    packages = list(installed)
    versions = {canonicalize_name(package.name): package.version for package in packages}
    for package in packages:
        for asked in filter(counts, map(Requirement, package.requires or [])):
            name = canonicalize_name(asked.name)
            need = instead.get(name, asked)
            if name not in versions:
                if counts(need):
                    yield f"{package.name} {package.version} requires {need}, which is not installed"
            elif not need.specifier.contains(versions[name], prereleases=True):
                yield f"{package.name} {package.version} requires {need}, and {versions[name]} is installed"


def counts(need: Requirement) -> bool:
    """Whether a requirement is one here, without extras."""
    return need.marker is None or need.marker.evaluate({"extra": ""})


if __name__ == "__main__":
    main()
