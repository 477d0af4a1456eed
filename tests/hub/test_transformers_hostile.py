"""Folders of transformers that cannot be used, or want more than to be read; nothing is ever fetched."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_files import PLAIN, changed, classifier, stored
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import KEY
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models import build as builder

pytestmark = pytest.mark.usefixtures("no_network")


def too_long(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["A"], "x": "y" * (9 << 20)}))


REFUSED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "code of its own": ("asks for code of its own", lambda f: changed(f, auto_map={"AutoConfig": "evil--x.Y"})),
    "another task": ("names no image classifier", lambda f: changed(f, architectures=["ViTModel"])),
    "several classes": ("names no image classifier", lambda f: changed(f, architectures=["A", "B"])),
    "unknown class": (
        "has no image classifier 'vit', 'Os",
        lambda f: changed(f, architectures=["OsForImageClassification"]),
    ),
    "unknown type": ("has no image classifier 'evil'", lambda f: changed(f, model_type="evil")),
    "a path as type": ("has no 'model_type'", lambda f: changed(f, model_type="../../evil")),
    "timm": ("is a network of timm", lambda f: changed(f, model_type="timm_wrapper")),
    "nested": (
        "has a configuration within its configuration",
        lambda f: changed(f, model_type="clip", architectures=["CLIPForImageClassification"]),
    ),
    "tokens": (
        "does not take an image as it is",
        lambda f: changed(f, model_type="imagegpt", architectures=["ImageGPTForImageClassification"]),
    ),
    "huge": ("entry 'hidden_size' is no number or word of sensible size", lambda f: changed(f, hidden_size=10**6)),
    "endless": ("would have far too many layers", lambda f: changed(f, num_hidden_layers=99_999)),
    "many numbers": (
        "the weights do not fit this architecture",
        lambda f: changed(f, intermediate_size=99_999, hidden_size=9_996),
    ),
    "wrong kind of value": ("transformers cannot build it", lambda f: changed(f, hidden_size="many")),
    "impossible": ("transformers cannot build it", lambda f: changed(f, patch_size=0)),
    "grey": ("takes images of other than 3 channels", lambda f: changed(f, num_channels=1)),
    "not JSON": ("cannot be read .no strict JSON", lambda f: (f / "config.json").write_text("{")),
    "NaN": ("NaN is not a number", lambda f: (f / "config.json").write_text('{"a": NaN}')),
    "twice": ("a name appears twice", lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}')),
    "a list": ("no JSON object", lambda f: (f / "config.json").write_text("[]")),
    "too long": ("larger than 8 MiB", too_long),
    "no weights": (
        "holds none of model.safetensors, .*index.json; save the",
        lambda f: (f / "model.safetensors").unlink(),
    ),
    "other weights": (
        "the weights do not fit this architecture: ",
        lambda f: save_file({"classifier.weight": torch.ones(3, 12)}, f / "model.safetensors"),
    ),
    "swapped channels": (
        "swaps the channels",
        lambda f: changed(f, "preprocessor_config.json", do_flip_channel_order=True),
    ),
    "no deviation": (
        "mean, std, size or scale cannot be used",
        lambda f: changed(f, "preprocessor_config.json", image_std=[0, 1, 1]),
    ),
    "no size": (
        "mean, std, size or scale cannot be used",
        lambda f: changed(f, "preprocessor_config.json", size={"longest_edge": 3}),
    ),
    "a list as size": (
        "mean, std, size or scale cannot be used",
        lambda f: changed(f, "preprocessor_config.json", size=[16, 16]),
    ),
    "two shortest edges": (
        "mean, std, size or scale cannot be used",
        lambda f: changed(f, "preprocessor_config.json", size={"shortest_edge": [16, 16]}),
    ),
}


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory, transformers: Any) -> Path:
    return stored(
        tmp_path_factory.mktemp("vit"), classifier(transformers, "ViT"), image_mean=0.5, image_std=0.5, size=16
    )


@pytest.mark.long
@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, vit_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in vit_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    reason, spoil = REFUSED[name]
    spoil(tmp_path)
    monkeypatch.setattr(builder, "MAX_CALLS", 5_000)
    with pytest.raises(BadInputError, match=reason) as caught:
        load_model(f"transformers:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_words_that_could_fetch_code_never_reach_the_library(
    tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    start = transformers.ViTConfig.__init__

    def watched(self: Any, *args: Any, **settings: Any) -> None:
        seen.append(settings)
        start(self, *args, **settings)

    folder = stored(tmp_path, classifier(transformers, "ViT"), **PLAIN)
    names = ("attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config")
    changed(folder, **dict.fromkeys(names, "kernels-community/evil"), use_kernels=True, name_or_path="evil/evil")
    monkeypatch.setattr(transformers.ViTConfig, "__init__", watched)
    loaded = load_model(folder)
    assert seen
    assert "evil" not in repr(seen)
    assert loaded.record.num_classes == 3


def test_a_hostile_record_asks_in_vain(tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "MAX_CALLS", 5_000)
    loaded = load_model(stored(tmp_path / "hub", classifier(transformers, "ViT"), **PLAIN))
    path = tmp_path / "ours.safetensors"
    save_model(path, loaded.model, loaded.record)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
    for config, reason in (
        ({"auto_map": {}}, "asks for code of its own"),
        ({"num_hidden_layers": 99_999}, "far too many layers"),
        ({"model_type": "timm_wrapper"}, "is a network of timm"),
    ):
        text = json.dumps({**json.loads(record["config"]), **config})
        save_file(load_file(path), path, {KEY: json.dumps({**record, "config": text})})
        with pytest.raises(BadInputError, match=reason):
            load_model(path)
    save_file(load_file(path), path, {KEY: json.dumps({**record, "config": None})})
    with pytest.raises(BadInputError, match=r"give the folder with its config\.json instead"):
        load_model(path)


def test_without_the_library_its_extra_is_named(
    tmp_path: Path, vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInputError, match=r"transformers is not installed: pip install 'neural-polarizer\[hf\]'"):
        load_model(vit_folder)
