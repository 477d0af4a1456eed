import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from neural_polarizer.data.parquet import write_images
from neural_polarizer.models.preact_resnet import PreActResNet18
from run_files import attack_words, coloured, make_runs, purify_words, run

Capsys = pytest.CaptureFixture[str]
Words = tuple[object, ...]


class Call:
    """Pickled as a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def changed(runs: Path, path: Path, **tensors: Tensor) -> Path:
    """The attacked model with other tensors."""
    source = runs / "attack" / "model.safetensors"
    with safe_open(source, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    save_file(
        {**load_file(source), **{name.replace("__", "."): value for name, value in tensors.items()}}, path, metadata
    )
    return path


def cut_off(runs: Path, path: Path) -> Path:
    path.write_bytes((runs / "attack" / "model.safetensors").read_bytes()[:-1000])
    return path


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def labelled(path: Path, *labels: int) -> Path:
    """A parquet file without class names."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    cells = pa.array([buffer.getvalue()] * len(labels), pa.binary())
    pq.write_table(pa.table({"image": cells, "label": pa.array(labels, pa.int64())}), path)
    return path


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
    path.mkdir(exist_ok=True)
    return path


def other_size(path: Path) -> Path:
    write_images(path, coloured(9, 1, (16, 20)))
    return path


def small_net() -> dict[str, Tensor]:
    return PreActResNet18(3, 2).state_dict()


def in_a_file(here: Path) -> Path:
    (here / "note.txt").write_text("a file")
    return here / "note.txt" / "out"


FOREIGN = ("--arch", "preactresnet18", "--site", "after:layer4")

Case = Callable[[Path, Path, Path], Words]
CASES: dict[str, tuple[str, Case]] = {
    # name: reason, and the command from (runs, an empty folder, the output folder)
    "missing model": (r"gone\.pt: no such file", lambda r, h, o: purify_words(h / "gone.pt", r, o)),
    "folder without a model": (
        "the folder holds none of",
        lambda r, h, o: purify_words(folder(h / "m", "x"), r, o),
    ),
    "missing data": (
        r"gone\.parquet: no such file or folder; a data spec is one of",
        lambda r, h, o: purify_words(r / "attack", r, o, "--clean", h / "gone.parquet"),
    ),
    "missing test data": (
        "no such file or folder",
        lambda r, h, o: purify_words(r / "attack", r, o, "--test", h / "gone.parquet"),
    ),
    "missing triggered data": (
        r"gone\.parquet: no such file",
        lambda r, h, o: purify_words(r / "attack", r, o, "--triggered", h / "gone.parquet"),
    ),
    "triggered data without true labels": (
        "needs one column true_label; found",
        lambda r, h, o: purify_words(r / "attack", r, o, "--triggered", r / "test.parquet"),
    ),
    "empty folder": (
        "no parquet file and no class folder; use root/class_name/image.png",
        lambda r, h, o: purify_words(r / "attack", r, o, "--clean", folder(h / "d")),
    ),
    "folder without images": (
        "no images in its class folders",
        lambda r, h, o: purify_words(r / "attack", r, o, "--clean", folder(h / "d", "cat", "dog")),
    ),
    "empty clean set": (
        "holds no images",
        lambda r, h, o: purify_words(r / "attack", r, o, "--clean", labelled(h / "a.parquet")),
    ),
    "labels out of range": (
        r"labels must lie in 0\.\.2, found 0\.\.7",
        lambda r, h, o: purify_words(r / "attack", r, o, "--clean", labelled(h / "a.parquet", 0, 7)),
    ),
    "other classes than the model": (
        "has 2 classes, but 3 are expected",
        lambda r, h, o: purify_words(r / "attack", r, o, "--clean", two_classes(h / "two.parquet")),
    ),
    "too few clean images": (
        r"must hold 1\.\.48 images, got 49",
        lambda r, h, o: purify_words(r / "attack", r, o, "--n-clean", 49),
    ),
    "cut-off safetensors": (
        r"model\.safetensors: a (truncated|damaged) safetensors file",
        lambda r, h, o: purify_words(cut_off(r, h / "model.safetensors"), r, o),
    ),
    "random bytes": ("not a model file", lambda r, h, o: purify_words(junk(h / "model.pt"), r, o, *FOREIGN)),
    "pickle that runs code": (
        "no weights found in it: .*system",
        lambda r, h, o: purify_words(saved(h / "a.pt", Call(f"touch {h / 'canary'}")), r, o, *FOREIGN),
    ),
    "pickle that runs code among weights": (
        "of a kind that cannot be read|no weights found in it",
        lambda r, h, o: purify_words(
            saved(h / "a.pt", {**small_net(), "linear.bias": Call(f"touch {h / 'canary'}")}), r, o, *FOREIGN
        ),
    ),
    "another architecture": (
        "the weights do not fit this architecture: .* missing: conv1.weight",
        lambda r, h, o: purify_words(
            saved(h / "a.pt", {"fc.weight": torch.ones(3, 2)}), r, o, *FOREIGN, "--num-classes", 3
        ),
    ),
    "no architecture": (
        "does not say what network it is; name it with --arch",
        lambda r, h, o: purify_words(saved(h / "a.pt", small_net()), r, o),
    ),
    "unknown architecture": (
        "unknown architecture 'lenet': expected preactresnet18",
        lambda r, h, o: purify_words(saved(h / "a.pt", small_net()), r, o, "--arch", "lenet"),
    ),
    "architecture that contradicts the file": (
        "is a preactresnet18, not a vgg19_bn",
        lambda r, h, o: purify_words(r / "attack", r, o, "--arch", "vgg19_bn"),
    ),
    "wrong class count": (
        "has 3 classes, not 10",
        lambda r, h, o: purify_words(r / "attack", r, o, "--num-classes", 10),
    ),
    "NaN weights": (
        "unusable values: linear.bias holds NaN or infinite values",
        lambda r, h, o: purify_words(changed(r, h / "a", linear__bias=torch.full((3,), float("nan"))), r, o),
    ),
    "unknown site": (
        "site 'after:layer44': no such module; the nearest names are layer4",
        lambda r, h, o: purify_words(r / "attack", r, o, "--site", "after:layer44"),
    ),
    "site of another form": (
        "expected before:NAME or after:NAME",
        lambda r, h, o: purify_words(r / "attack", r, o, "--site", "layer4"),
    ),
    "site without a feature map": (
        "these are the logits",
        lambda r, h, o: purify_words(r / "attack", r, o, "--site", "after:linear"),
    ),
    "target beyond the classes": (
        r"the target class must lie in 0\.\.2, got 3",
        lambda r, h, o: purify_words(r / "attack", r, o, "--method", "npd-tp", "--target", 3),
    ),
    "target missing": (
        "npd-tu needs the attacker's class: give target",
        lambda r, h, o: purify_words(r / "attack", r, o, "--method", "npd-tu"),
    ),
    "target without use": (
        "npd does not use a target: leave it out",
        lambda r, h, o: purify_words(r / "attack", r, o, "--target", 1),
    ),
    "radius": (
        "radii must be finite and not negative",
        lambda r, h, o: purify_words(r / "attack", r, o, "--radius", "nan"),
    ),
    "size": ("'big' is not an image size", lambda r, h, o: purify_words(r / "attack", r, o, "--size", "big")),
    "size beyond counting": (
        "is not an image size such as 32 or 32x48, of at most 50,000,000 pixels",
        lambda r, h, o: purify_words(r / "attack", r, o, "--size", "9" * 5000),
    ),
    "setting nested without end": (
        "epochs cannot be",
        lambda r, h, o: purify_words(r / "attack", r, o, "--set", "epochs=" + "[" * 100_000),
    ),
    "weights of 1e38": (
        "gives NaN or infinite logits for a black or a white image",
        lambda r, h, o: purify_words(changed(r, h / "a", conv1__weight=torch.full((2, 3, 3, 3), 3e38)), r, o),
    ),
    "device": (
        "device 'tpu9' cannot be used here",
        lambda r, h, o: purify_words(r / "attack", r, o, "--device", "tpu9"),
    ),
    "device without values": (
        "device 'meta' cannot be used here",
        lambda r, h, o: purify_words(r / "attack", r, o, "--device", "meta"),
    ),
    "method in a file": (
        r"cannot load the method '\./mine\.py:Mine': give MODULE:CLASS",
        lambda r, h, o: purify_words(r / "attack", r, o, "--method", "./mine.py:Mine"),
    ),
    "output below a file": (
        r"cannot write to the output folder .*note\.txt/out: Not a directory; choose another --out",
        lambda r, h, o: purify_words(r / "attack", r, in_a_file(h)),
    ),
    "output is a file": (
        "cannot write to the output folder .*File exists",
        lambda r, h, o: purify_words(r / "attack", r, in_a_file(h).parent),
    ),
    "output of an attack": (
        "holds an attack, which would be mixed up",
        lambda r, h, o: purify_words(r / "attack", r, shutil.copytree(r / "attack", h / "attack")),
    ),
    "purified already": (
        "purified.safetensors: has a polarizer already, .*; purify its folded model instead",
        lambda r, h, o: purify_words(r / "purified", r, o),
    ),
    "attack: unknown": (
        "unknown attack 'ghost': choose one of badnets, blended",
        lambda r, h, o: ("attack", "ghost", *attack_words(r, o)[2:]),
    ),
    "attack: target": (
        r"the target class must lie in 0\.\.2, got 3",
        lambda r, h, o: attack_words(r, o, "--target", 3),
    ),
    "attack: rate": (
        r"the poison rate must lie in \[0, 1\], got 1\.5",
        lambda r, h, o: attack_words(r, o, "--poison-rate", 1.5),
    ),
    "attack: rate is no number": (
        "the poison rate must lie in",
        lambda r, h, o: attack_words(r, o, "--poison-rate", "nan"),
    ),
    "attack: patch": ("a trigger of 17 pixels does not fit", lambda r, h, o: attack_words(r, o, "--set", "size=17")),
    "attack: rate of learning": (
        "lr positive and a number that float32 has, got",
        lambda r, h, o: attack_words(r, o, "--lr", -1),
    ),
    "attack: batch": (
        "48 images are less than one batch of 64; lower the batch size",
        lambda r, h, o: attack_words(r, o, "--batch-size", 64),
    ),
    "attack: width": (
        "only preactresnet18, vgg19, vgg19_bn, densenet161, inception_v3 have a width",
        lambda r, h, o: attack_words(r, o, "--arch", "torchvision:resnet18"),
    ),
    "attack: one class": (
        "a classifier needs at least 2 classes",
        lambda r, h, o: attack_words(r, o, "--data", one_class(h / "a.parquet"), "--test", h / "a.parquet"),
    ),
    "attack: sizes differ": (
        r"3 classes of 16x20 pixels do not go with .* of 16x16; resize both to one size \(--size\)",
        lambda r, h, o: attack_words(r, o, "--test", other_size(h / "a.parquet")),
    ),
    "attack: test labels": (
        r"labels must lie in 0\.\.2, found 5\.\.5",
        lambda r, h, o: attack_words(r, o, "--test", labelled(h / "a.parquet", 5)),
    ),
    "attack: output below a file": (
        "cannot write to the output folder",
        lambda r, h, o: attack_words(r, in_a_file(h)),
    ),
    "evaluate: missing model": (
        "no such file",
        lambda r, h, o: ("evaluate", h / "gone", "--test", r / "test.parquet", "--json", h / "a.json"),
    ),
    "evaluate: name too long": (
        "cannot be read",
        lambda r, h, o: ("evaluate", "x" * 300, "--test", r / "test.parquet"),
    ),
}


def junk(path: Path) -> Path:
    path.write_bytes(bytes(range(100, 200)) * 20)
    return path


def two_classes(path: Path) -> Path:
    images = coloured(6, 0)
    write_images(path, type(images)(images.images, images.labels % 2, ("cat", "dog")))
    return path


def one_class(path: Path) -> Path:
    images = coloured(48, 0)
    write_images(path, type(images)(images.images, torch.zeros(48, dtype=torch.int64), ("cat",)))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(runs: Path, tmp_path: Path, capsys: Capsys, name: str) -> None:
    reason, words = CASES[name]
    here, out = folder(tmp_path / "here"), tmp_path / "out"
    command = words(runs, here, out)
    before = set(here.rglob("*"))
    done = run(capsys, *command)
    assert done.code == 3, done.err
    assert re.search(reason, done.err), done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert "written to" not in done.out
    assert set(here.rglob("*")) == before
    assert not (here / "canary").exists()
    assert not out.exists()


@pytest.mark.long
@pytest.mark.parametrize("command", ["attack", "purify"])
def test_a_full_disk_exits_with_4_and_leaves_nothing_half_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, command: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = run(
        capsys,
        *(attack_words(runs, tmp_path) if command == "attack" else purify_words(runs / "attack", runs, tmp_path)),
    )
    assert done.code == 4
    assert re.fullmatch(r"error: cannot write \S+: No space left on device\n", done.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_code_beside_good_weights_is_not_run_but_told(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    state = load_file(runs / "attack" / "model.safetensors")
    model = saved(tmp_path / "a.pt", {"model": state, "data": Call(f"touch {tmp_path / 'canary'}")})
    done = run(capsys, *purify_words(model, runs, tmp_path / "out", *FOREIGN))
    assert (done.code, done.err) == (0, "")
    assert not (tmp_path / "canary").exists()
    assert re.search(r"warning: .*system", done.out)
    threats = json.loads((tmp_path / "out" / "run.json").read_text())["threats"]
    assert any("system" in threat for threat in threats)


def test_the_canary_sings_where_it_can(tmp_path: Path) -> None:
    torch.load(saved(tmp_path / "a.pt", Call(f"touch {tmp_path / 'canary'}")), weights_only=False)
    assert (tmp_path / "canary").exists()
