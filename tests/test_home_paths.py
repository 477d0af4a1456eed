"""``~`` in paths that no shell has expanded."""

from pathlib import Path

import pytest
import torch

import neural_polarizer as npz
from neural_polarizer.data.parquet import write_images
from neural_polarizer.files import at_home, read_json
from neural_polarizer.models.preact_resnet import PreActResNet18
from run_files import run
from toys import made, tiny_images

FORM = ("--arch", "preactresnet18", "--profile", "none", "--device", "cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a model and images, which is not the current folder."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(elsewhere)
    torch.save(made(PreActResNet18(4, 2)).state_dict(), folder / "model.pt")
    write_images(folder / "clean.parquet", tiny_images(12, size=16))
    return folder


@pytest.mark.long
def test_a_tilde_is_the_home_folder_on_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("purify", "~/model.pt", "--clean=~/clean.parquet", "--out=~/out", "--method", "clp", "--force", *FORM)
    done = run(capsys, *words)
    assert (done.code, done.err) == (0, "")
    assert not (home.parent / "elsewhere" / "~").exists()
    record = read_json(home / "out" / "run.json")
    assert record["command"] == ["polarizer", *words]
    assert run(capsys, "evaluate", "~/model.pt", "--test", "~/clean.parquet", "--json=~/a.json", *FORM).code == 0
    assert (home / "a.json").is_file()


def test_a_tilde_is_the_home_folder_in_python(home: Path) -> None:
    clean = npz.read_images("~/clean.parquet")
    model = npz.load("~/model.pt", arch="preactresnet18", profile="none")
    npz.save(model, "~/saved.safetensors", num_classes=4)
    npz.purify(model, clean, "clp", force=True, device="cpu").save("~/purified")
    assert (home / "saved.safetensors").is_file()
    assert (home / "purified" / "run.json").is_file()
    npz.load("~/purified")


@pytest.mark.parametrize("word", ["~backup.pt", "a~/b", "./~/x", "", "~~"])
def test_other_tildes_stay(word: str) -> None:
    assert at_home(word) == word
