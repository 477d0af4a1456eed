"""Prints what extras of pyproject.toml ask for, one requirement a line, to install it without the package itself.

python .ci/requirements.py EXTRA...
python .ci/requirements.py --lowest [EXTRA...]

With --lowest, what the package needs, too, and the lowest versions that are allowed, as NAME==VERSION; torch's stay as
they are installed.
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
names = [name for name in sys.argv[1:] if name != "--lowest"]
found = [text for name in names for text in project["optional-dependencies"][name]]
if "--lowest" in sys.argv:
    found = list(filter(None, map(lowest, (*project["dependencies"], *found))))
print("\n".join(found))
