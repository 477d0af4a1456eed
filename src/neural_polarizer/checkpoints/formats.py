"""What a file is, by its first bytes; its extension is only what somebody called it."""

import io

from neural_polarizer.errors import BadInputError

_HEAD_BYTES = 512
_EXPORT = "on a machine that may run its code, save its state_dict with safetensors.torch.save_file"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the magic number of torch.save before 1.6


def detect(file: io.BufferedReader) -> str:
    """``"safetensors"`` or ``"torch-zip"``.

    Raises:
        BadInputError: it is neither; the message says what it is and what to do.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if head[8:9] == b"{":  # after eight bytes of length; first, as the length may look like other formats
        return "safetensors"
    if head.startswith(b"PK\3\4"):
        return "torch-zip"
    raise BadInputError(_reason(head))


def _reason(head: bytes) -> str:
    if not head:
        return "an empty file; download or save it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, not a model; download the file itself, not the page that shows it"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the model; run 'git lfs pull' where it came from"
    if head.startswith(b"\x1f\x8b"):
        return "compressed with gzip; unpack it with gunzip and give the file inside"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file (Keras); convert the weights to a PyTorch state_dict and save that"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the model file inside"
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        if head[2:].startswith(_LEGACY):
            return f"the torch.save format from before PyTorch 1.6, which can only be run, not read; {_EXPORT}"
        return f"a bare pickle, which can only be run, not read; {_EXPORT}"
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "an ONNX model; export the PyTorch weights it was made from as a state_dict"
    return "not a model file that this program knows; give a safetensors file or a torch.save checkpoint"
