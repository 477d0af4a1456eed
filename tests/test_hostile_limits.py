"""The worst files on the command line: exit code 3, one line, little memory, and nothing else happens."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from neural_polarizer.data.parquet import write_images
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.preact_resnet import PreActResNet18
from run_files import coloured

ALLOWED_MB = 300  # beyond a good file
FLOATS = b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQK\x00"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def torch_zip(path: Path, pickle: bytes, compression: int = zipfile.ZIP_STORED, storage: bytes = bytes(16)) -> None:
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for name, data in {"data.pkl": pickle, "version": b"3\n", "data/0": storage}.items():
            archive.writestr(f"a/{name}", data)


def safetensors(path: Path, header: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(4))


def tensor(shape: bytes, stride: bytes) -> bytes:
    """A state dict of one tensor over four floats; sizes are pickled."""
    return b"\x80\x02}U\x01w" + FLOATS + shape + stride + b"\x89}tRs."


def parquet(path: Path, images: Any, labels: Any = None) -> None:
    table = pa.table({"image": images, "label": np.zeros(len(images), np.int64) if labels is None else labels})
    pq.write_table(table, path, compression="zstd", store_schema=False, write_statistics=False)


def repeated(cell: bytes, count: int) -> pa.Array:
    """``count`` times the same bytes, which a parquet file stores once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([cell], pa.binary()))


def bomb_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb_webp() -> bytes:
    """A lossless file whose header claims 16,383 x 16,383 pixels."""
    body = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + bytes(5)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


ENTRY = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
NAMES = b"".join(b"U\x06%06dh\x00" % number for number in range(300_000))
MODELS: dict[str, Callable[[Path], object]] = {
    "header that claims a terabyte": lambda p: safetensors(p, b"{" + ENTRY + b"}", 1 << 40),
    "header of nothing but objects": lambda p: safetensors(
        p, b"{" + ENTRY[:-1] + b',"x":[' + b",".join([b'{"":0}'] * 1_000_000) + b"]}}"
    ),
    "300,000 tensors": lambda p: safetensors(
        p, b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(300_000)) + b"}"
    ),
    "300,000 pickled tensors": lambda p: torch_zip(
        p, b"\x80\x02" + FLOATS + b"K\x04\x85K\x01\x85\x89}tRq\x000}(" + NAMES + b"u."
    ),
    "deflated": lambda p: torch_zip(p, tensor(b"K\x04\x85", b"K\x01\x85"), zipfile.ZIP_DEFLATED, bytes(400 << 20)),
    "2^62 elements": lambda p: torch_zip(
        p, tensor(b"\x8a\x08" + (2**62).to_bytes(8, "little") + b"\x85", b"K\x01\x85")
    ),
    "expanded strides": lambda p: torch_zip(
        p, tensor(b"\x8a\x05" + (40 * 10**9).to_bytes(5, "little") + b"\x85", b"K\x00\x85")
    ),
    "a million objects": lambda p: torch_zip(p, b"\x80\x02cos\nsystem\nq\x000](" + b"h\x00)R" * 330_000 + b"e."),
    "a name of millions of prefixes": lambda p: safetensors(
        p, b"{" + ENTRY.replace(b"w", b"module." * 1_000_000, 1) + b"}"
    ),
    "code": lambda p: torch_zip(p, b"\x80\x02cos\nsystem\nU\x11touch /tmp/canary\x85R."),
}


def image_folder(path: Path, data: bytes, name: str) -> None:
    for kind in "abc":
        (path / kind).mkdir(parents=True)
    (path / "a" / name).write_bytes(data)


DATA: dict[str, Callable[[Path], object]] = {
    "image bomb": lambda p: image_folder(p, bomb_png(), "a.png"),
    "WebP bomb": lambda p: image_folder(p, bomb_webp(), "a.png"),
    "image bomb in parquet": lambda p: parquet(p, pa.array([bomb_png()] * 3)),
    "page that unpacks to 100 megabytes": lambda p: parquet(p, pa.array([bytes(100 << 20)])),
    "long cell, 80 times": lambda p: parquet(p, repeated(b"x" * (12 << 20), 80)),
    "11 million labels": lambda p: parquet(p, pa.nulls(11_000_000, pa.binary())),
}


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="measures children of a fork")
def test_the_worst_files_cost_little_memory_and_do_nothing(tmp_path: Path) -> None:
    small = ModelRecord(architecture="preactresnet18", num_classes=3, width=2, image_size=(16, 16))
    save_model(tmp_path / "good.safetensors", PreActResNet18(3, 2).eval(), small)
    write_images(tmp_path / "good.parquet", coloured(6, 0))
    good = [
        ["sites", str(tmp_path / "good.safetensors")],
        ["evaluate", str(tmp_path / "good.safetensors"), "--test", str(tmp_path / "good.parquet")],
    ]
    commands = []
    for name, make in MODELS.items():
        path = tmp_path / f"{name}.pt"
        make(path)
        commands.append(["sites", str(path), "--arch", "preactresnet18"])
    for name, make in DATA.items():
        path = tmp_path / (name if name in ("image bomb", "WebP bomb") else f"{name}.parquet")
        make(path)
        commands.append(["evaluate", str(tmp_path / "good.safetensors"), "--test", str(path)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("watched_commands.py"))],
        input=json.dumps([*good, *commands]),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = dict(zip(["good model", "good data", *MODELS, *DATA], json.loads(run.stdout), strict=True))
    assert [found.pop("good model")["code"], found["good data"]["code"]] == [0, 0]
    base = found.pop("good data")["peak"]
    for name, each in found.items():
        assert each["code"] == 3, (name, each)
        assert len(each["said"]) == 1, (name, each)
        assert name in each["said"][0], (name, each)
        assert each["deeds"] == [], (name, each)
        assert each["peak"] - base < ALLOWED_MB, (name, each, base)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
