"""Where the benchmark's data sets lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.sources import read_images
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.errors import BadInputError

DIGITS = "digits"
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Sources:
    """Data specs by the names that suites use."""

    specs: Mapping[str, tuple[str, str]]  # (training images, test images) by name

    def read(self, name: str, images: int | None = None) -> tuple[ImageSet, ImageSet]:
        """Training and test images; the last data set read is kept in memory.

        ``images`` takes only so many training images, and half as many test images, from all classes alike.
        """
        if name not in self.specs:
            raise BadInputError(
                f"no such data set {name!r}: give --data FOLDER with {name}/train.parquet and {name}/test.parquet, or "
                f"--data {name}=TRAIN,TEST"
            )
        return _read(*self.specs[name], images)

    def check(self, names: Sequence[str]) -> None:
        """Refuse data sets that nobody has named, before anything is computed."""
        for name in names:
            if name not in self.specs:
                self.read(name)


@lru_cache(maxsize=1)
def _read(train: str, test: str, images: int | None) -> tuple[ImageSet, ImageSet]:
    first = read_images(train)
    second = read_images(test, size=first.image_size, num_classes=first.num_classes)
    if images is None:
        return first, second
    return _part(first, images), _part(second, images // 2)


def _part(images: ImageSet, count: int) -> ImageSet:
    return images.select(clean_subset(images, min(count, len(images)), seed=0))


def parse_sources(texts: Sequence[str]) -> Sources:
    """From the command line: folders with one folder a data set, or NAME=TRAIN,TEST; the digits are always there."""
    found = {DIGITS: (f"{DIGITS}:train", f"{DIGITS}:test")}
    for text in texts:
        name, equals, specs = text.partition("=")
        train, comma, test = specs.partition(",")
        if equals and comma:
            found[name] = (train, test)
            continue
        folder = Path(text)
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        named = {path.name: tuple(path / f"{split}.parquet" for split in _SPLITS) for path in inside if path.is_dir()}
        whole = {name: pair for name, pair in named.items() if all(path.is_file() for path in pair)}
        if not whole:
            raise BadInputError(
                f"--data {text}: expected a folder that holds NAME/train.parquet and NAME/test.parquet, or "
                "NAME=TRAIN,TEST"
            )
        found |= {name: (str(train), str(test)) for name, (train, test) in whole.items()}
    return Sources(found)
