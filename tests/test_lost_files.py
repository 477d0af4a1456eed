"""A file that lies where a result is to go, and is not ours, stays as it is."""

from pathlib import Path
from typing import Any

import pytest

import neural_polarizer as npz
from neural_polarizer.errors import BadInputError
from neural_polarizer.files import UNFINISHED, check_free, writing
from neural_polarizer.runs import purify as purifications
from run_files import Outcome, attack_words, make_runs, purify_words, run
from toys import tiny_images, tiny_model

Capsys = pytest.CaptureFixture[str]
MINE = b"my own work"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


def words(command: str, runs: Path, out: Path) -> tuple[Any, ...]:
    """A command that writes into the folder ``out``."""
    purified = ("--clean", runs / "train.parquet", "--out", out, "--device", "cpu")
    return {
        "attack": attack_words(runs, out),
        "purify": purify_words(runs / "attack", runs, out, "--method", "ft", "--batch-size", 4, "--epochs", 1),
        "audit": ("audit", runs / "attack", *purified, "--n-clean", 6),
        "demo": ("demo", "--out", out),
        "bench": ("bench", "report", "smoke", "--results", runs / "results", "--out", out),
    }[command]


def refused(done: Outcome, path: Path) -> bool:
    said = f"error: {path}: is there already and would be lost; move it, or choose another folder\n"
    return (done.code, done.err, path.read_bytes()) == (3, said, MINE)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("attack", "model.safetensors"),
        ("attack", "trigger.png"),
        ("purify", "report.html"),
        ("purify", "polarizer.safetensors"),
        ("purify", "folded.safetensors"),
        ("purify", "verdict.json"),
        ("audit", "report.html"),
        ("audit", "audit.json"),
        ("audit", "verdict.sarif"),
        ("demo", "attack/model.safetensors"),
        ("bench", "index.html"),
        ("bench", "smoke.csv"),
    ],
)
def test_no_command_writes_over_a_file_that_is_not_ours(
    runs: Path, tmp_path: Path, capsys: Capsys, command: str, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(MINE)
    assert refused(run(capsys, *words(command, runs, tmp_path)), path)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


def test_a_folder_without_a_name_is_not_the_present_one(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    empty = runs / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    done = run(capsys, "purify", runs / "attack", "--clean", runs / "train.parquet", "--out", "")
    assert done.code == 2
    assert "names no folder" in done.err
    assert [*empty.iterdir()] == []


def test_python_writes_over_no_file_that_is_not_ours(tmp_path: Path) -> None:
    purified = npz.purify(tiny_model(), tiny_images(), npz.NPD(epochs=1), site="auto", device="cpu", force=True)
    (tmp_path / "report.html").write_bytes(MINE)
    with pytest.raises(BadInputError, match=r"report\.html: is there already and would be lost"):
        purified.save(tmp_path)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("report.html", MINE)]
    purified.save(tmp_path / "other")
    purified.save(tmp_path / "other")  # the same once more


def test_a_run_that_ends_half_way_is_written_over_by_the_next(
    runs: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(purifications, "render_run", failing)
        assert run(capsys, *words("purify", runs, tmp_path)).code == 130
    assert {"purified.safetensors", UNFINISHED} <= {each.name for each in tmp_path.iterdir()}
    assert run(capsys, *words("purify", runs, tmp_path)).code == 0
    assert not (tmp_path / UNFINISHED).exists()
    assert run(capsys, *words("purify", runs, tmp_path), "--fold").code == 0


def test_a_block_that_fails_before_it_writes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path, ("a",)):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    with pytest.raises(BadInputError, match="a: is there already"):
        check_free(tmp_path, ("b", "a"))


def test_an_export_without_a_name_writes_over_its_own_alone(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes((runs / "attack" / "model.safetensors").read_bytes())
    (tmp_path / "exported.safetensors").write_bytes(MINE)
    asked = ("export", model, "--to", "safetensors", "--images", runs / "test.parquet")
    done = run(capsys, *asked)
    assert (done.code, (tmp_path / "exported.safetensors").read_bytes()) == (3, MINE)
    assert done.err.endswith("exported.safetensors: is there already; to write over it, name it with --out\n")
    assert run(capsys, *asked, "--out", tmp_path / "exported.safetensors").code == 0


def test_the_description_of_an_export_takes_nobody_s_place(tmp_path: Path) -> None:
    images = tiny_images()
    (tmp_path / "m.pt.json").write_bytes(MINE)
    with pytest.raises(BadInputError, match=r"m\.pt\.json: is there already, where the description would go"):
        npz.export(tiny_model(), tmp_path / "m.pt", images)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("m.pt.json", MINE)]
    npz.export(tiny_model(), tmp_path / "n.pt", images)
    npz.export(tiny_model(), tmp_path / "n.pt", images)  # its own
