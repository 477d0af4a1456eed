"""What a file is, by its first bytes; its extension is only what somebody called it."""

import io
import re

from neural_polarizer.errors import BadInputError

_HEAD_BYTES = 512
_EXPORT = "on a machine that may run its code, save its state_dict with safetensors.torch.save_file"
_LEGACY = re.compile(rb"\x80[\2-\5](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
"""The magic number with which ``torch.save`` began before 1.6, a pickle of its own, framed from protocol 4 on."""
_PACKED = (b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
_DATA = "not a model; the model comes first, and data with options such as --clean"
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model; run 'git lfs pull' where it came from"),
    (b"\x1f\x8b", "compressed with gzip; unpack it with gunzip and give the file inside"),
    *((start, "compressed; unpack it and give the model file inside") for start in _PACKED),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras); convert the weights to a PyTorch state_dict and save that"),
    (b"\x93NUMPY", "a NumPy array; make tensors of it with torch.from_numpy and save their state_dict"),
    (b"PAR1", f"a parquet file, {_DATA}"),
    *((start, f"an image, {_DATA}") for start in (b"\x89PNG", b"\xff\xd8\xff")),
)


def detect(file: io.BufferedReader) -> str:
    """``"safetensors"``, ``"torch-zip"`` or ``"torch-legacy"``.

    Raises:
        BadInputError: it is none of them; the message says what it is and what to do.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if head[8:9] == b"{":  # after eight bytes of length; first, as the length may look like other formats
        return "safetensors"
    if head.startswith(b"PK\3\4"):
        return "torch-zip"
    if legacy_start(head):
        return "torch-legacy"
    raise BadInputError(_reason(head))


def legacy_start(head: bytes) -> int:
    """How many bytes the magic number of the format before PyTorch 1.6 takes; 0 where a file does not begin with it."""
    found = _LEGACY.match(head)
    return 0 if found is None else found.end()


def _reason(head: bytes) -> str:
    if not head:
        return "an empty file; download or save it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, not a model; download the file itself, not the page that shows it"
    for start, what in _BEGINNINGS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the model file inside"
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return f"a bare pickle, which can only be run, not read; {_EXPORT}"
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "an ONNX model; export the PyTorch weights it was made from as a state_dict"
    if text.startswith((b"{", b"[")):
        return "a text file of JSON, not of weights; give the file of weights beside it, or the folder of both"
    return "not a model file that this program knows; give a safetensors file or a torch.save checkpoint"
