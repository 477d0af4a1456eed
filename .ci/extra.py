"""Prints what an extra of pyproject.toml asks for, one requirement a line, to install it without the package itself.

python .ci/extra.py EXTRA
"""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
print("\n".join(project["optional-dependencies"][sys.argv[1]]))
