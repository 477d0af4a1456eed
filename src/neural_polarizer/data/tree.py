"""A folder that may come from a stranger: links that leave it are followed only where the user says so."""

from dataclasses import dataclass
from pathlib import Path

from neural_polarizer.errors import BadInputError, refusing, shown
from neural_polarizer.files import text_of

FOLLOW = "?links=follow"
"""At the end of a data spec: links in the folder may lead out of it."""

_JUNK = frozenset(  # of macOS, Windows, network storage and Python
    (
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "found.000"),
        *("system volume information", "@eadir", "@__thumb", "#recycle", "#snapshot", "lost+found", "__pycache__"),
        *("recycler", "recycled", "@recycle", "@tmp", "network trash folder", "temporary items"),
    )
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is left out, as hidden or as the work of an operating system."""
    return name.startswith(".") or name.lower() in _JUNK


def read_text(path: Path, most: int) -> str:
    """The text of a table or of names, a file of at most so many bytes.

    Raises:
        BadInputError: it is larger, no regular file, or no text.
    """
    said = f"{shown(path)}: cannot be read as text"
    with refusing(said, OSError), refusing(said, UnicodeDecodeError, then="; save it as UTF-8"):
        if not path.is_file():
            raise BadInputError(f"{shown(path)}: no such file, or not a regular one")
        if path.stat().st_size > most:
            raise BadInputError(f"{shown(path)}: larger than {most >> 20} MiB, too large for a table or names")
        return text_of(path.read_bytes())


@dataclass(frozen=True)
class Tree:
    """A folder of data, and whether links in it may leave it."""

    root: Path
    follow: bool = False

    def inside(self, path: Path) -> Path:
        """``path``, if it is no link, or one that may be followed.

        Raises:
            BadInputError: it is a link that leads nowhere, in circles, or out of the folder.
        """
        if not path.is_symlink():
            return path
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # a loop, or a target that is not there
            raise BadInputError(f"{shown(path)}: a symbolic link that is broken; copy the file") from None
        if not self.follow and not target.is_relative_to(self.root.resolve()):
            raise BadInputError(
                f"{shown(path)}: a symbolic link that leaves the folder; if you trust where it leads, say "
                f"'{shown(self.root)}{FOLLOW}' instead of {shown(self.root)}, or copy the file"
            )
        return path

    def named(self, name: str) -> Path:
        """The file that a text in the folder names, relative to it or with its path.

        Raises:
            BadInputError: it is outside, or a link on the way may not be followed.
        """
        name = name.removeprefix(f"{self.root.absolute()}/")
        parts = name.replace("\\", "/").split("/")
        if not name or "\0" in name or Path(name).is_absolute() or ".." in parts:
            raise BadInputError(f"{shown(self.root)}: {shown(name)!r} names no file below this folder")
        path = self.root
        for part in parts:
            path = self.inside(path / part)
        return path
