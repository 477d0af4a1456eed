"""Runs to be verified, and ways to change them."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_polarizer.runs.verify import Measuring
from neural_polarizer.runs.verify_checks import Check
from run_files import PURIFIED, main_quietly, make_runs, purify_words

MEASURING = Measuring(device=torch.device("cpu"))


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.what: check for check in checks}


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def make_verified(factory: pytest.TempPathFactory) -> Path:
    """The runs of the other tests, the purification folded and exported, made once; read it, and write elsewhere."""
    return _verified_below(make_runs(factory))


@cache
def _verified_below(base: Path) -> Path:
    folder = base.parent / "verified"
    for name in ("attack", "purified"):
        shutil.copytree(base / name, folder / name)
    for name in ("train.parquet", "test.parquet"):
        shutil.copyfile(base / name, folder / name)
    # The run that is there, which is folded now.
    main_quietly(*purify_words(base / "attack", base, folder / "purified", *PURIFIED, "--fold"))
    main_quietly("export", folder / "purified", "--to", "state-dict")
    return folder
