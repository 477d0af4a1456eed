"""Feed the readers of model files and data what nobody would write, and see that they read it or refuse it.

    python benchmarks/fuzz_readers.py --minutes 10 --seed 0 --out runs/fuzz

Each case is a good file, changed with knowledge of its format: a zip file keeps its checksums, a pickle consists of
opcodes, a header of JSON is JSON again, a PNG has the right CRCs. A reader must give its result or raise BadInputError,
in one printable line and within five seconds. All others get the same time. The input of every failure is kept in
``--out``, and so is that of a case that takes the whole process down.
"""

import argparse
import faulthandler
import io
import json
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from fuzz_changes import (
    mutate_image,
    mutate_legacy,
    mutate_parquet,
    mutate_record,
    mutate_safetensors,
    mutate_zip,
)
from PIL import Image
from torch import nn

from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import model_bytes
from neural_polarizer.models.preact_resnet import PreActResNet18

LONGEST = 5.0  # seconds of the processor, which others may use, too
MAX_LETTERS = 20_000  # of a refusal


class HangError(BaseException):
    """A reader took too long; no Exception, which readers of hostile files catch."""


@dataclass(frozen=True)
class Reader:
    """A reader, good files for it, and a way to change them.

    Args:
        suffix: of the file that it is given.
        samples: good files.
        mutate: a good file and a source of chance to a bad one, or another good one.
        read: what is tested.
    """

    suffix: str
    samples: tuple[bytes, ...]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]


def bytes_of(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def torch_files() -> tuple[bytes, ...]:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    nested = {
        "model": state,
        "model_name": "preactresnet18",
        "num_classes": 3,
        "optimizer": {"state": {0: torch.ones(2)}},
    }
    values = ((state, 2), (nested, 4), (net, 2), ({"net": net, "half": torch.ones(3).half()}, 5))
    return tuple(bytes_of(partial(torch.save, value, pickle_protocol=protocol)) for value, protocol in values)


def legacy_files() -> tuple[bytes, ...]:
    """Files of the format before PyTorch 1.6: weights in an entry, a whole module, and a newer protocol."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))

    def old(value: Any, protocol: int = 2) -> bytes:
        options: Any = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
        return bytes_of(lambda buffer: torch.save(value, buffer, **options))

    return old({"state_dict": network.state_dict(), "epoch": 3}), old(network), old(network.state_dict(), 4)


def safetensors_files() -> tuple[bytes, ...]:
    tensors = {"a": torch.ones(2, 3), "b.c": torch.zeros(4, dtype=torch.bfloat16), "empty": torch.ones(0, 2)}
    return (
        safetensors.torch.save(tensors),
        safetensors.torch.save({f"module.{n}": t for n, t in tensors.items()}, {"k": "v"}),
    )


def our_files() -> tuple[bytes, ...]:
    record = ModelRecord(
        architecture="preactresnet18", num_classes=3, width=1, image_size=(16, 16), classes=("a", "b", "c")
    )
    return (model_bytes(PreActResNet18(3, 1).eval(), record),)


def images() -> tuple[bytes, ...]:
    colours = Image.radial_gradient("L").resize((13, 9)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((colours, kind, {}) for kind in ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")),
        *((colours.convert(mode), "PNG", {}) for mode in ("P", "RGBA", "1", "LA")),
        *((colours, "TIFF", {"compression": kind}) for kind in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")),
        (colours, "JPEG", {"progressive": True, "exif": exif}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "WEBP", {"lossless": True, "exif": exif}),
        (colours, "PNG", {"exif": exif, "save_all": True, "append_images": [colours.rotate(180)]}),
        (colours.convert("P"), "GIF", {"save_all": True, "append_images": [colours.rotate(90)]}),
        (colours.convert("P"), "BMP", {}),
    ]
    return tuple(bytes_of(partial(picture.save, format=kind, **options)) for picture, kind, options in forms)


def parquet_files() -> tuple[bytes, ...]:
    png = images()[0]
    structs = pa.array(
        [{"bytes": png, "path": "a.png"}] * 4, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    tables = (
        pa.table({"image": structs, "label": pa.array([0, 1, 1, 0])}).replace_schema_metadata(metadata),
        pa.table({"img": pa.array([png] * 3, pa.binary()), "label": pa.array([0, 1, 2], pa.uint8())}),
    )
    options: tuple[dict[str, Any], ...] = (
        {"compression": "zstd"},
        {"compression": "snappy", "row_group_size": 2, "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False},
        {"compression": "gzip", "use_dictionary": False, "column_encoding": {"label": "DELTA_BINARY_PACKED"}},
    )
    return tuple(bytes_of(partial(pq.write_table, table, **option)) for table in tables for option in options)


def readers() -> dict[str, Reader]:
    return {
        "torch zip": Reader(".pt", torch_files(), mutate_zip, read_checkpoint),
        "torch legacy": Reader(".pth", legacy_files(), mutate_legacy, read_checkpoint),
        "safetensors": Reader(".safetensors", safetensors_files(), mutate_safetensors, read_checkpoint),
        "our record": Reader(".safetensors", our_files(), mutate_record, load_model),
        "parquet": Reader(".parquet", parquet_files(), mutate_parquet, lambda path: read_images(str(path))),
        "image": Reader(".png", images(), mutate_image, lambda path: read_images(str(path.parent.parent))),
    }


def case(reader: Reader, seed: str) -> bytes:
    """A changed file, the same for the same seed."""
    chance = random.Random(seed)
    return reader.mutate(chance.choice(reader.samples), chance)


def outcome(reader: Reader, data: bytes, folder: Path) -> str:
    """``read`` or ``refused``; everything else is raised, and a refusal that is no clear line is an AssertionError."""
    path = folder / "class" / f"case{reader.suffix}"
    path.parent.mkdir(exist_ok=True)
    for other in path.parent.iterdir():
        other.unlink()
    path.write_bytes(data)
    try:
        reader.read(path)
    except BadInputError as error:
        text = str(error)
        assert text.isprintable(), f"a refusal with control characters: {text!r}"
        assert len(text) <= MAX_LETTERS, f"a refusal of {len(text)} letters: {text[:200]}"
        assert str(folder) in text or "site" in text or "architecture" in text, f"a refusal without a place: {text}"
        return "refused"
    return "read"


def _hang(*_: object) -> None:
    raise HangError(f"more than {LONGEST} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for the inputs of failures")
    parser.add_argument("--only", action="append", help="a reader; default: all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGPROF, _hang)
    chosen = {name: each for name, each in readers().items() if not options.only or name in options.only}
    spent, slowest = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, (0.0, ""))
    counts: dict[str, Counter[str]] = {name: Counter() for name in chosen}
    current = options.out / "current"  # a case that ends the process stays here
    current.mkdir(exist_ok=True)
    end, watched = time.monotonic() + 60 * options.minutes, 0.0
    while time.monotonic() < end:
        if time.monotonic() > watched:  # for a hang where no Python code runs any more
            faulthandler.dump_traceback_later(10 * LONGEST, exit=True)
            watched = time.monotonic() + LONGEST
        name = min(spent, key=spent.__getitem__)
        label = f"{name.replace(' ', '-')}-{options.seed}-{counts[name].total()}{chosen[name].suffix}"
        data = case(chosen[name], label)
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        started = time.process_time()
        try:
            result = outcome(chosen[name], data, current)
        except HangError:
            result = "hung"
        except Exception as error:
            result = f"crashed: {type(error).__name__}"
            traceback.print_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - started
        spent[name] += seconds
        slowest[name] = max(slowest[name], (seconds, label))
        counts[name][result] += 1
        if result not in ("read", "refused"):
            (options.out / label).write_bytes(data)
            print(f"{label}: {result}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    shutil.rmtree(current)
    for name, found in counts.items():
        told = ", ".join(f"{count:,} {result}" for result, count in found.most_common())
        print(f"{name}: {found.total():,} cases, {told}; slowest {slowest[name][0]:.2f} s ({slowest[name][1]})")
    sys.exit(any(set(found) - {"read", "refused"} for found in counts.values()))


if __name__ == "__main__":
    main()
