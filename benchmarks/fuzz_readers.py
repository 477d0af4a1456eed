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
import pickletools
import random
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.model_files.checkpoints import read_checkpoint
from neural_polarizer.model_files.load import load_model
from neural_polarizer.model_files.record import KEY, ModelRecord
from neural_polarizer.model_files.save import model_bytes
from neural_polarizer.models.preact_resnet import PreActResNet18

LONGEST = 5.0  # seconds of the processor, which others may use, too
MAX_LETTERS = 20_000  # of a refusal
NUMBERS = (0, 1, -1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    "",
    "\0",
    "\x1b[31m\n",
    "../x",
    "<script>",
    "module." * 50,
    "F32",
    "os",
    "system",
    "=1+1",
    "\ud800",
    "x" * 5000,
)


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


# --- changes ---


def scramble(data: bytes, chance: random.Random, within: tuple[int, int] | None = None) -> bytes:
    """A few changes of bytes: numbers, bits, pieces that go, come twice or are cut off."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        low, high = within or (0, len(found))
        at = chance.randrange(low, max(low + 1, min(high, len(found)) or 1))
        length = chance.choice((1, 1, 2, 4, 8, 40))
        match chance.randrange(7):
            case 0:
                found[at : at + 1] = bytes([chance.randrange(256)])
            case 1 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 2:
                width = chance.choice((1, 2, 4, 8))
                value = chance.choice(NUMBERS) % (1 << 8 * width)
                found[at : at + width] = value.to_bytes(width, chance.choice(("little", "big")))
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                found[at:at] = chance.randbytes(length)
            case _ if chance.random() < 0.2:
                del found[at:]
    return bytes(found)


def mutate_json(value: Any, chance: random.Random) -> Any:
    """The value with one place changed: gone, of another kind, doubled or nested."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, changed = chance.choice(keys), value.copy()
        match chance.randrange(8):
            case 0:
                del changed[key]
            case 1 if isinstance(changed, dict):
                changed[chance.choice(WORDS)] = changed.pop(key)
            case 2 if isinstance(changed, list):
                changed.insert(key, changed[key])
            case _:
                changed[key] = mutate_json(changed[key], chance)
        return changed
    nested: Any = value
    for _ in range(chance.choice((1, 2, 70, 300))):
        nested = [nested]
    floats = (1e308, 0.5, float("nan"), float("inf"))
    return chance.choice((None, True, [], {}, nested, *NUMBERS, *floats, *WORDS))


def mutate_pickle(data: bytes, chance: random.Random) -> bytes:
    """Opcodes left out, repeated, exchanged, with other arguments, or of an attacker."""
    starts = [position for _, _, position in pickletools.genops(data)]
    parts = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    attacks = (b"cos\nsystem\n", b"cbuiltins\ngetattr\n", b"(", b"]", b"}", b")", b"N", b"0", b"1", b"t", b"R", b"b")
    attacks += (b"\x81", b"Q", b"s", b"u", b"a", b"e", b"\x85", b"\x86", b"\x87", b"h\x00", b"q\x00", b"\x94", b"\x93")
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(parts))
        match chance.randrange(6):
            case 0:
                del parts[at]
            case 1:
                parts.insert(at, chance.choice(parts))
            case 2:
                parts[at] = chance.choice(parts)
            case 3:
                parts[at] = b"\x8a\x09" + (chance.choice(NUMBERS) % 2**64).to_bytes(9, "little")
            case 4:
                parts[at] = scramble(parts[at], chance)
            case _:
                parts.insert(at, chance.choice(attacks) * chance.choice((1, 1, 3, 600)))
        if not parts:
            break
    return b"".join(parts)


def mutate_zip(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return scramble(data, chance, within=chance.choice((None, (len(data) - 400, len(data)))))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (program,) = (name for name in members if name.endswith("data.pkl"))
    name = program if chance.random() < 0.8 else chance.choice(list(members))
    match chance.randrange(10):
        case 0:
            members.pop(name)
        case 1:
            members[chance.choice((*WORDS, "archive/data/0x"))] = members.pop(name)
        case _:
            members[name] = (mutate_pickle if name == program else scramble)(members[name], chance)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, content in members.items():
            archive.writestr(zipfile.ZipInfo(each.encode(errors="replace").decode()), content)
    return buffer.getvalue()


def mutate_legacy(data: bytes, chance: random.Random) -> bytes:
    """One of the pickles changed, or anything behind the magic number."""
    if chance.random() < 0.3:
        return scramble(data, chance)
    stream, ends = io.BytesIO(data), [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    parts = [data[start:end] for start, end in zip(ends, [*ends[1:], len(data)], strict=True)]
    place = chance.randrange(1, len(parts))
    change = scramble if place == len(parts) - 1 else mutate_pickle
    parts[place] = change(parts[place], chance)
    return b"".join(parts)


def mutate_safetensors(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return scramble(data, chance, within=chance.choice((None, (0, 200))))
    (length,) = struct.unpack_from("<Q", data)
    header = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), chance)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def mutate_record(data: bytes, chance: random.Random) -> bytes:
    """Our own file, saying something else of its model."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    told = header["__metadata__"]
    told[KEY] = json.dumps(mutate_json(json.loads(told[KEY]), chance))
    if chance.random() < 0.3:
        told[KEY] = scramble(told[KEY].encode(), chance).decode(errors="replace")
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


def mutate_parquet(data: bytes, chance: random.Random) -> bytes:
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = (
        None,
        (4, 64),
        (footer, len(data) - 8),
        (footer, len(data) - 8),
        (footer, footer + 200),
        (len(data) - 8, len(data)),
    )
    changed = scramble(data, chance, within=chance.choice(places))
    if chance.random() < 0.7:  # let the footer be found again
        length = int.from_bytes(data[-8:-4], "little") + len(changed) - len(data)
        changed = changed[:-8] + max(0, length).to_bytes(4, "little") + b"PAR1"
    return changed


def mutate_image(data: bytes, chance: random.Random) -> bytes:
    if not data.startswith(b"\x89PNG") or chance.random() < 0.3:
        return scramble(data, chance, within=chance.choice((None, (0, 64), (0, 300))))
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = chance.randrange(len(chunks))
    kind, body = chunks[place]
    if kind == b"IDAT" and chance.random() < 0.5:
        body = zlib.compress(scramble(zlib.decompress(body), chance))
    else:
        body = scramble(body, chance)
    chunks[place] = (chance.choice((kind, kind, kind, b"zTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"fcTL")), body)
    if chance.random() < 0.2:
        chunks.insert(place, chance.choice(chunks))
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:8] + b"".join(packed)


# --- good files ---


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
    return tuple(
        bytes_of(lambda file, value=value, protocol=protocol: torch.save(value, file, pickle_protocol=protocol))
        for value, protocol in values
    )


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
    return tuple(bytes_of(lambda file, form=form: form[0].save(file, form[1], **form[2])) for form in forms)


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
    return tuple(
        bytes_of(lambda file, table=table, option=option: pq.write_table(table, file, **option))
        for table in tables
        for option in options
    )


def readers() -> dict[str, Reader]:
    """All readers by name."""

    def model(path: Path) -> object:
        return load_model(path)

    def folder(path: Path) -> object:
        return read_images(str(path.parent.parent))

    return {
        "torch zip": Reader(".pt", torch_files(), mutate_zip, read_checkpoint),
        "torch legacy": Reader(".pth", legacy_files(), mutate_legacy, read_checkpoint),
        "safetensors": Reader(".safetensors", safetensors_files(), mutate_safetensors, read_checkpoint),
        "our record": Reader(".safetensors", our_files(), mutate_record, model),
        "parquet": Reader(".parquet", parquet_files(), mutate_parquet, lambda path: read_images(str(path))),
        "image": Reader(".png", images(), mutate_image, folder),
    }


# --- one case, and many ---


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
