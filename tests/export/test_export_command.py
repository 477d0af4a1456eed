"""The command ``polarizer export``."""

import json
from pathlib import Path

import pytest
import torch
from export_cases import SUFFIX, model_of, record_of
from safetensors.torch import load_file

from neural_polarizer.data.parquet import write_images
from neural_polarizer.exporting.formats import FormatName
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.runs.purify import PURIFIED
from run_files import coloured, make_runs, run
from toys import assert_same, tiny_images

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def purified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory) / "purified"


@pytest.fixture
def folder(purified: Path, tmp_path: Path) -> Path:
    """A purification of one's own to write into; its record names clean images elsewhere."""
    for name in (PURIFIED, "run.json"):
        (tmp_path / name).write_bytes((purified / name).read_bytes())
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("name", ["safetensors", "state-dict", "pt2"])
def test_the_command_writes_beside_the_model_and_compares_on_the_runs_images(
    purified: Path, folder: Path, capsys: Capsys, name: FormatName
) -> None:
    done = run(capsys, "export", folder, "--to", name)
    assert (done.code, done.err) == (0, "")
    clean = purified.parent / "train.parquet"
    printed = done.out.splitlines()
    layers = "layer4.0.conv2 and into layer4.0.shortcut.0 and its constant into layer4.1.bn1, linear"
    assert printed[0].startswith(f"polarizer: folded into {layers}: exact, of the original architecture")
    path = folder / f"exported{SUFFIX[name]}"
    beside = f", {path}.json" if name == "state-dict" else ""
    assert printed[1] == f"written: {path}{beside}"
    assert printed[-1].startswith(f"checked: read back and run on 48 images ({clean}): logits differ by at most ")
    assert path.is_file()
    assert len(printed) == 3  # no word on an obstacle: the original architecture takes the weights
    if name == "state-dict":
        PreActResNet18(3, 2).load_state_dict(torch.load(path, weights_only=True), strict=True)


@pytest.mark.long
def test_the_command_compares_on_what_it_is_given_or_on_random_pixels(
    purified: Path, folder: Path, capsys: Capsys
) -> None:
    test = purified.parent / "test.parquet"
    words = ("export", folder, "--to", "state-dict")
    assert f"21 images ({test})" in run(capsys, *words, "--images", test).out
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"data": {"clean": "gone.parquet"}}))
    shown = run(capsys, *words).out
    assert "16 images (random pixels, without --images; gone.parquet: no such file" in shown
    (folder / "run.json").write_text(json.dumps(record | {"data": {"clean": "hf:someone/something"}}))
    assert "names no clean images on this machine" in run(capsys, *words).out
    (folder / "run.json").write_text(json.dumps(record | {"data": "all"}))
    assert "names no clean images on this machine" in run(capsys, *words).out
    (folder / "run.json").unlink()
    assert "exported.pt: is there already; to write over it" in run(capsys, *words).err
    (folder / "exported.pt").unlink()
    assert "(random pixels, without --images)" in run(capsys, *words).out
    quiet = run(capsys, *words, "--quiet", "--out", folder / "b.pth")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert (folder / "b.pth").is_file()


def test_one_image_and_many_are_few(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    write_images(tmp_path / "one.parquet", coloured(1, 3))
    write_images(tmp_path / "many.parquet", coloured(70, 3))
    words = ("export", folder, "--to", "safetensors", "--images")
    # One image has one class alone, so its file must name all three.
    assert "run on 1 image (" in run(capsys, *words, tmp_path / "one.parquet").out
    assert "run on 64 images (" in run(capsys, *words, tmp_path / "many.parquet").out


def test_a_foreign_file_needs_to_be_told_what_it_is(tmp_path: Path, capsys: Capsys) -> None:
    whole = model_of("preactresnet18", None, 2).state_dict()
    state = {key.removeprefix("network."): whole[key] for key in whole if key.startswith("network.")}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "theirs.pt")
    words = ("export", tmp_path / "theirs.pt", "--to", "safetensors", "--arch", "preactresnet18")
    done = run(capsys, *words, "--profile", "cifar10")
    assert (done.code, done.out) == (3, "")
    assert "theirs.pt: does not say for what size of images it is; give --images or --size" in done.err
    done = run(capsys, *words, "--profile", "cifar10", "--size", "24x16")
    assert (done.code, done.err) == (0, "")
    assert not any(line.startswith("polarizer:") for line in done.out.splitlines())
    assert "note: the prefix module. was removed from all names" in done.out
    found = load_model(tmp_path / "exported.safetensors")
    assert found.record.mean == (0.4914, 0.4822, 0.4465)
    assert_same(load_file(tmp_path / "exported.safetensors"), state)


def test_images_of_a_wrong_size_are_refused_in_words(tmp_path: Path, capsys: Capsys) -> None:
    pytest.importorskip("timm")
    architecture = "timm:vit_tiny_patch16_224?depth=1&embed_dim=24&img_size=32&patch_size=8"
    save_model(tmp_path / "model.safetensors", model_of(architecture, None), record_of(architecture, None))
    done = run(capsys, "export", tmp_path, "--to", "state-dict", "--size", 16)
    assert (done.code, done.out) == (3, "")
    assert f"a {architecture} cannot take images of 16x16 pixels" in done.err


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--to", "safetensors", "--out", PURIFIED), 3, "is the model itself; choose another --out"),
        (("--to", "onnx", "--out", "a.pt"), 2, "a file of format onnx must end in .onnx"),
        (("--to", "state-dict", "--out", "no/a.pt"), 3, "cannot write no/a.pt: its folder is not there; make it"),
        (("--to", "keras"), 2, "'keras' is not one of 'safetensors', 'state-dict', 'onnx', 'pt2'"),
        (("--to", "pt2", "--tolerance", -1), 2, "'--tolerance'"),
        (("--to", "state-dict", "--tolerance", "nan"), 2, "'--tolerance'"),
        (("--to", "state-dict", "--tolerance", 0), 3, "and 0 is allowed"),
        (("--to", "state-dict", "--images", "gone"), 3, "gone: no such file or folder"),
        (("--to", "state-dict", "--images", "wrong.parquet"), 3, "has 4 classes, but 3 are expected"),
    ],
)
def test_bad_input_to_the_command_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, words: tuple[object, ...], code: int, reason: str
) -> None:
    write_images(folder / "wrong.parquet", tiny_images(8, size=16))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.chdir(folder)
    done = run(capsys, "export", folder, *words)
    assert (done.code, done.out) == (code, "")
    assert reason in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
