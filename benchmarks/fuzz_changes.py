"""Changes of good files with knowledge of their formats, for ``fuzz_readers.py``."""

import io
import json
import pickletools
import random
import struct
import zipfile
import zlib
from typing import Any

from neural_polarizer.model_files.record import KEY

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
    attacks = [b"cos\nsystem\n", b"cbuiltins\ngetattr\n", b"(", b"]", b"}", b")", b"N", b"0", b"1", b"t", b"R", b"b"]
    attacks += [b"\x81", b"Q", b"s", b"u", b"a", b"e", b"\x85", b"\x86", b"\x87", b"h\x00", b"q\x00", b"\x94", b"\x93"]
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
