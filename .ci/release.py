"""Builds a release from a tag: source distribution, wheel, a list of what is installed, and their hashes.

python .ci/release.py TAG OUT

The working tree does not matter. Needs git and the extra dev, and no network.
"""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def git(*words: str) -> bytes:
    """What git says, in the current folder."""
    return subprocess.run(["git", *words], check=True, capture_output=True).stdout


def unpack(tag: str, folder: Path) -> None:
    """The files of the tagged commit."""
    archive = folder / "tag.tar"
    archive.write_bytes(git("archive", "--format=tar", tag))
    with tarfile.open(archive) as files:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python before 3.11.4 has none
        files.extractall(folder / "source", **safely)  # type: ignore[arg-type]


def version_in(source: Path) -> str:
    """The version that the package says it has."""
    text = (source / "src" / "neural_polarizer" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else "unknown"


def main(tag: str, out: Path) -> None:
    """Build the tag into ``out``, which must not exist."""
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        unpack(tag, Path(temporary))
        source = Path(temporary) / "source"
        version = version_in(source)
        if tag != f"v{version}":
            out.rmdir()
            sys.exit(f"release: the tag {tag} holds version {version}; the tag of that version is v{version}")
        time = git("log", "-1", "--format=%ct", tag).decode().strip()
        build = [sys.executable, "-m", "hatchling", "build", "--directory", str(out.resolve())]
        subprocess.run(build, cwd=source, env={**os.environ, "SOURCE_DATE_EPOCH": time}, check=True)
        listed = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--pyproject"]
        made = [str(source / "pyproject.toml"), "--output-file", str(out / "sbom.cdx.json"), sys.executable]
        subprocess.run([*listed, *made], check=True)
    files = sorted(out.iterdir())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    print("".join(lines), end="")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
