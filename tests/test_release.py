"""A release: one version everywhere, and a build from a tag."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neural_polarizer import __version__

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
IN_GIT = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="a source distribution has no tags"
)


def said(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_everywhere() -> None:
    first = re.search(r"^## (\S+)", said("CHANGELOG.md"), re.MULTILINE)
    cited = re.search(r"^version: (\S+)$", said("CITATION.cff"), re.MULTILINE)
    assert first is not None
    assert cited is not None
    assert {first[1].strip("[]"), cited[1]} == {__version__}


def test_the_changelog_of_a_version_can_be_read_in_a_minute() -> None:
    for section in re.split(r"^## ", said("CHANGELOG.md"), flags=re.MULTILINE)[1:]:
        assert len(section.split()) < 500, section.splitlines()[0]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this checkout's last commit, with a right tag and a wrong one."""
    place = tmp_path_factory.mktemp("release") / "clone"
    quiet = ["git", "-c", "advice.detachedHead=false"]
    subprocess.run([*quiet, "clone", "--quiet", str(ROOT), str(place)], check=True)
    source = (place / "src/neural_polarizer/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "(.+)"', source)
    assert version is not None
    for tag in (f"v{version[1]}", "v99.0"):
        subprocess.run([*quiet, "tag", "--force", tag], cwd=place, check=True, capture_output=True)
    return place


def release(clone: Path, tag: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "release.py"), tag, str(out)]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=300)


@IN_GIT
def test_a_release_is_built_from_its_tag_and_not_from_the_working_tree(clone: Path, tmp_path: Path) -> None:
    (clone / "README.md").write_text("changed since the tag")
    tags = subprocess.run(["git", "tag"], cwd=clone, capture_output=True, text=True, check=True).stdout.split()
    (tag,) = (each for each in tags if each != "v99.0")
    done = release(clone, tag, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    stem = f"neural_polarizer-{tag.removeprefix('v')}"
    assert names == ["SHA256SUMS", f"{stem}-py3-none-any.whl", f"{stem}.tar.gz", "sbom.cdx.json"]
    for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    components = json.loads((tmp_path / "out" / "sbom.cdx.json").read_text())["components"]
    assert "torch" in {each["name"] for each in components}


@IN_GIT
def test_a_tag_of_another_version_is_refused(clone: Path, tmp_path: Path) -> None:
    done = release(clone, "v99.0", tmp_path / "out")
    assert done.returncode == 1
    assert "the tag v99.0 holds version" in done.stderr
    assert not (tmp_path / "out").exists()
