"""Weights in several files that an index names, honest and hostile."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import Call
from safetensors.torch import save_file

from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import read_weights, sha256_of_weights, shards
from run_files import states_equal

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {"body.weight": torch.ones(2, 3), "head.weight": torch.zeros(4, 2), "head.bias": torch.arange(4.0)}
WHERE = {"body.weight": FIRST, "head.weight": SECOND, "head.bias": SECOND}


def sharded(folder: Path, before: str = "", save: Callable[..., Any] = save_file) -> Path:
    for file in (FIRST, SECOND):
        save({before + name: TENSORS[name] for name in WHERE if WHERE[name] == file}, folder / file)
    return indexed(folder, {before + name: file for name, file in WHERE.items()})


def indexed(folder: Path, weight_map: Any) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_all_files_of_an_index_are_one_set_of_weights(tmp_path: Path, save: Callable[..., Any]) -> None:
    index = sharded(tmp_path, save=save)
    found = read_weights(index)
    assert states_equal(found.tensors, TENSORS)
    assert (found.threats, found.findings) == ((), ())
    assert states_equal(
        read_weights(index, weights="head").tensors, {"weight": torch.zeros(4, 2), "bias": torch.arange(4.0)}
    )


def test_a_prefix_goes_only_where_all_names_have_it(tmp_path: Path) -> None:
    found = read_weights(sharded(tmp_path, "module."))
    assert states_equal(found.tensors, TENSORS)
    assert found.findings == ("the prefix module. was removed from all names",)
    save_file({"body.weight": TENSORS["body.weight"]}, tmp_path / FIRST)
    index = indexed(tmp_path, {("" if file == FIRST else "module.") + name: file for name, file in WHERE.items()})
    found = read_weights(index)
    assert set(found.tensors) == {"body.weight", "module.head.weight", "module.head.bias"}
    assert found.findings == ()


def test_the_hash_is_that_of_all_files(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    lines = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in (FIRST, SECOND)]
    known = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert read_weights(index).sha256 == sha256_of_weights(index) == known
    save_file({name: TENSORS[name] + 1 for name in WHERE if WHERE[name] == SECOND}, tmp_path / SECOND)
    assert known != read_weights(index).sha256 == sha256_of_weights(index)


def test_what_unpickling_any_of_the_files_would_do_is_told(tmp_path: Path) -> None:
    index = sharded(tmp_path, save=torch.save)
    torch.save(
        {"head.weight": torch.zeros(4, 2), "head.bias": torch.zeros(4), "x": Call(os.system, "true")}, tmp_path / SECOND
    )
    assert "system" in " ".join(read_weights(index).threats)


def a_folder(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()


HOSTILE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "above": (r"\.\./x\.safetensors is no file of weights beside it", lambda f: indexed(f, {"a": "../x.safetensors"})),
    "absolute": ("is no file of weights beside it", lambda f: indexed(f, {"a": "/etc/x.bin"})),
    "below": ("is no file of weights beside it", lambda f: indexed(f, {"a": "x/y.bin"})),
    "with a drive": ("is no file of weights beside it", lambda f: indexed(f, {"a": "C:x.bin"})),
    "itself": ("is no file of weights beside it", lambda f: indexed(f, {"a": "model.safetensors.index.json"})),
    "a number": ("3 is no file of weights beside it", lambda f: indexed(f, {"a": 3})),
    "a list": ("has no 'weight_map' of 1 to", lambda f: indexed(f, ["a"])),
    "empty": ("has no 'weight_map' of 1 to", lambda f: indexed(f, {})),
    "no JSON": ("cannot be read as JSON", lambda f: (f / "model.safetensors.index.json").write_text("{")),
    "huge": ("too large for an index", lambda f: indexed(f, {"a": "x" * (9 << 20)})),
    "one is gone": (f"lacks its files {SECOND}; get them", lambda f: (f / SECOND).unlink()),
    "a folder": (f"lacks its files {FIRST}", a_folder),
    "one too few": (r"other tensors than .*json says \(new\)", lambda f: indexed(f, {**WHERE, "new": FIRST})),
    "one twice": (
        r"json says \(head.bias\)",
        lambda f: save_file({k: TENSORS[k] for k in ("body.weight", "head.bias")}, f / FIRST),
    ),
    "elsewhere": (r"json says \(head.bias\)", lambda f: indexed(f, {**WHERE, "head.bias": FIRST})),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_that_lies_costs_one_line(tmp_path: Path, name: str) -> None:
    index = sharded(tmp_path)
    reason, spoil = HOSTILE[name]
    spoil(tmp_path)
    with pytest.raises(BadInputError, match=reason) as caught:
        read_weights(index)
    assert "\n" not in str(caught.value)


def test_all_files_together_have_the_limit_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = sharded(tmp_path)
    monkeypatch.setattr(shards, "MAX_FILE_BYTES", (tmp_path / SECOND).stat().st_size + 1)
    with pytest.raises(BadInputError, match="its files together are larger than"):
        read_weights(index)
    monkeypatch.setattr(shards, "MAX_TENSORS", 2)
    with pytest.raises(BadInputError, match="has no 'weight_map' of 1 to 2 tensors"):
        read_weights(index)
