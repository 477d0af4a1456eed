"""Images that two sets have in common."""

import hashlib

from neural_polarizer.data.images import ImageSet


def count_shared(ours: ImageSet, others: ImageSet) -> int:
    """How many images of ``ours`` are in ``others``, too, pixel by pixel; labels do not count."""
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(ours))


def _digests(images: ImageSet) -> list[bytes]:
    rows = images.images.cpu().contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
