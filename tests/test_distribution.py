"""The source distribution and the wheel: the same bytes whoever builds them, all that they need, and nothing else."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from neural_polarizer import __version__

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
PUBLIC = {
    *(".ci", ".github", ".gitignore", "benchmarks", "docs", "examples", "src", "tests"),
    *("CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO"),
    *("README.md", "RELEASING.md", "SECURITY.md", "mkdocs.yml", "pyproject.toml"),
}


@dataclass(frozen=True)
class Built:
    """What one build has given."""

    sdist: Path
    wheel: Path


def build(source: Path, out: Path) -> Built:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(out)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def names_in(sdist: Path) -> set[str]:
    """The files, without the folder that all of them lie in."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers()}


def test_a_build_from_the_unpacked_sdist_is_the_same_byte_for_byte(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python before 3.11.4 has none
        archive.extractall(tmp_path / "unpacked", **safely)  # type: ignore[arg-type]
    (source,) = (tmp_path / "unpacked").iterdir()
    (source / "pyproject.toml").touch()  # the times of the files are not those of the first build
    again = build(source, tmp_path / "again")
    assert again.sdist.name == built.sdist.name
    assert again.sdist.read_bytes() == built.sdist.read_bytes()
    assert again.wheel.name == built.wheel.name
    assert again.wheel.read_bytes() == built.wheel.read_bytes()


def test_the_sdist_holds_what_is_public_and_nothing_else(built: Built) -> None:
    names = names_in(built.sdist)
    assert {name.partition("/")[0] for name in names} == PUBLIC
    private = ("node_modules", "__pycache__", ".venv", ".safetensors")
    assert [name for name in names if any(part in name for part in private)] == []


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(built: Built) -> None:
    package = ROOT / "src" / "neural_polarizer"
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == wanted
    endings = {Path(name).suffix for name in names}
    assert "neural_polarizer/py.typed" in names
    assert {".jinja", ".css", ".js", ".toml", ".csv"} <= endings


def test_the_metadata_are_valid_and_say_what_the_index_shows(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name)
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("neural-polarizer", __version__)
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    with tarfile.open(built.sdist) as archive:
        member = archive.extractfile(f"{built.sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert member is not None
        assert member.read() == text


def test_the_installed_wheel_has_a_command_that_works(built: Built, tmp_path: Path) -> None:
    """In a fresh environment, where all that it depends on is there already; the checkout is not."""
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True, timeout=120)
    python, command = fresh / "bin" / "python", fresh / "bin" / "polarizer"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(built.wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    places = {"base": str(fresh), "platbase": str(fresh)}
    own = Path(sysconfig.get_path("purelib", vars=places))
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def said(*words: object) -> str:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "120"}
        done = subprocess.run(
            list(map(str, words)), cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert said(python, "-c", "import importlib.util as u; print(u.find_spec('neural_polarizer').origin)").startswith(
        str(own)
    )
    assert said(command, "--version") == f"neural-polarizer {__version__}\n"
    assert "--out" in said(command, "demo", "--help")
