"""Prints the lowest versions that pyproject.toml allows, one NAME==VERSION a line; torch's stay as they are installed.

python .ci/lowest.py [EXTRA...]
"""

import sys
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AS_INSTALLED = ("torch", "torchvision")


def lowest(text: str) -> str | None:
    """``NAME==VERSION`` of a dependency, or None where it is not for this Python."""
    wanted = Requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return None
    if wanted.name in AS_INSTALLED:
        return f"{wanted.name}=={version(wanted.name)}"
    (bound,) = (each.version for each in wanted.specifier if each.operator == ">=")
    return f"{wanted.name}=={bound}"


project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [text for name in sys.argv[1:] for text in project["optional-dependencies"][name]]
print("\n".join(filter(None, map(lowest, (*project["dependencies"], *extras)))))
