"""What names a network: a library, a name in it, and whole numbers that change its shape."""

from collections.abc import Mapping
from dataclasses import dataclass

from neural_polarizer.errors import BadInputError

FORMS = "preactresnet18, vgg19, vgg19_bn, densenet161, inception_v3, torchvision:NAME or timm:NAME"
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "timm": ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "window_size", "resize"),
    "torchvision": ("image_size", "stem", "resize"),
}
"""By library; all are the library's own arguments but ``stem`` and ``resize``, which ``models.build`` explains."""
MAX_OPTION = 2048  # a record in a stranger's file may ask for it


@dataclass(frozen=True)
class Architecture:
    """A network by name."""

    library: str  # "torchvision", "timm", "transformers", or empty for the networks that have a name of their own
    name: str  # in that library
    options: tuple[tuple[str, int], ...] = ()  # by name, sorted

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Read ``NAME``, ``LIBRARY:NAME`` or ``LIBRARY:NAME?OPTION=NUMBER&OPTION=NUMBER``.

        Raises:
            BadInputError: an option that the library does not have, or a value that is no whole number in range.
        """
        head, mark, tail = text.partition("?")
        library, _, name = head.rpartition(":")
        options: dict[str, int] = {}
        for part in tail.split("&") if mark else ():
            option, _, value = part.partition("=")
            known = OPTIONS.get(library, ())
            number = int(value) if value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_OPTION)) else 0
            if option not in known or option in options or not 1 <= number <= MAX_OPTION:
                expected = (
                    f"expected each option once, as OPTION=NUMBER of 1 to {MAX_OPTION}, and of {', '.join(known)}"
                    if known
                    else f"only networks of {' and '.join(OPTIONS)} have options"
                )
                raise BadInputError(f"architecture {text[:200]!r}: {part[:80]!r} is no option; {expected}")
            options[option] = number
        return cls(library, name, tuple(sorted(options.items())))

    def __str__(self) -> str:
        options = "&".join(f"{name}={value}" for name, value in self.options)
        return (f"{self.library}:" if self.library else "") + self.name + (f"?{options}" if options else "")
