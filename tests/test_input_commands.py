"""Commands with data and systems as users have them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from neural_polarizer.data.poison import read_triggered
from neural_polarizer.data.sources import read_images
from run_files import make_runs, purify_words, run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


WITHOUT_RESOURCE = """
import sys
sys.modules["resource"] = None  # as on Windows
from neural_polarizer.bench import memory
from pathlib import Path
memory._STATUS = Path("nowhere")
assert memory.peak_memory() is None
import neural_polarizer.cli.main
"""


@pytest.mark.process
def test_the_command_line_starts_where_there_is_no_module_resource() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_RESOURCE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_the_record_has_the_words_that_main_was_given(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(word) for word in purify_words(runs / "attack", runs, tmp_path / "a", "--method", "ft", "--epochs", 1)]
    monkeypatch.setattr(sys, "argv", ["something", "else"])
    assert run(capsys, *words).code == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["command"] == ["polarizer", *words]


@pytest.mark.long
def test_a_folder_of_triggered_images_by_true_class_is_measured_with_a_poison_label(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = read_triggered(runs / "attack" / "triggered.parquet", size=None, num_classes=3)
    for i, (pixels, label) in enumerate(zip(images.images.images, images.true_labels.tolist(), strict=True)):
        folder = tmp_path / "bd_test_dataset" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    words = ("evaluate", runs / "attack", "--test", runs / "test.parquet", "--device", "cpu")
    more = ("--triggered", tmp_path / "bd_test_dataset")
    expected, found = tmp_path / "a.json", tmp_path / "b.json"
    assert run(capsys, *words, "--json", expected).code == 0
    assert run(capsys, *words, *more, "--poison-label", images.images.labels[0].item(), "--json", found).code == 0
    assert json.loads(found.read_text()) == json.loads(expected.read_text())
    refused = run(capsys, *words, *more)
    assert (refused.code, "--poison-label (next for all-to-all)" in " ".join(refused.err.split())) == (3, True)
    assert run(capsys, *words, *more, "--poison-label", 7).code == 3
    assert run(capsys, *words, *more, "--poison-label", "cat").code == 2
    shuffled = run(capsys, *words, *more, "--poison-label", "next", "--json", found)
    assert (shuffled.code, json.loads(found.read_text())["n_triggered"]) == (0, len(images))


def test_a_poison_label_without_triggered_images_is_no_usage(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "attack", tmp_path / "attack")
    (tmp_path / "attack" / "triggered.parquet").unlink()
    words = ("evaluate", tmp_path / "attack", "--test", runs / "test.parquet", "--device", "cpu")
    assert run(capsys, *words).code == 0
    refused = run(capsys, *words, "--poison-label", 0)
    assert (refused.code, "give --triggered, too" in " ".join(refused.err.split())) == (2, True)


@pytest.mark.long
def test_a_purification_of_mapped_and_numbered_classes_can_be_verified(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = read_images(str(runs / "train.parquet"))
    for i, (pixels, label) in enumerate(zip(pool.images, pool.labels.tolist(), strict=True)):
        folder = tmp_path / "clean" / pool.classes[label]  # blue, green, red: not the model's order
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    words = purify_words(
        runs / "attack", runs, tmp_path / "out", "--method", "ft", "--epochs", 1, "--clean", tmp_path / "clean"
    )
    done = run(capsys, *words)
    assert done.code == 0
    assert "classes were matched by name" in " ".join(done.out.split())
    verified = run(capsys, "verify", tmp_path / "out", "--device", "cpu")
    assert (verified.code, "NO" in verified.out) == (0, False)
