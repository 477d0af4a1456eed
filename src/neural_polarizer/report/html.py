"""HTML pages that load nothing and run nothing: the templates, and the pictures that go into a page."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neural_polarizer.errors import BadInputError, needing
from neural_polarizer.report.values import percent, points, seconds, visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A PNG for the report, with its heading, the sentence below it and the group it is shown in."""

    title: str
    caption: str
    png: bytes
    group: str

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG_SIGNATURE):
            raise BadInputError(f"picture {self.title!r} is not a PNG; make it with contact_sheet()")

    @property
    def uri(self) -> str:
        """The picture itself as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def make_environment() -> "Environment":
    """The templates, by their paths in this package: all text is escaped, a name that is not given is an error."""
    with needing("report", "reports"):
        from jinja2 import Environment, PackageLoader, StrictUndefined
    environment = Environment(
        loader=PackageLoader("neural_polarizer", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters |= {"percent": percent, "points": _signed_points, "seconds": seconds, "flags": _mark_flags}
    return environment


def _signed_points(change: float | None) -> str:
    return points(change).replace("-", "\N{MINUS SIGN}") if change is not None else ""


def _mark_flags(text: str) -> "Markup":
    """Set command-line flags as code, which also keeps a line from breaking inside them."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"--[a-z]+", r'<code class="flag">\g<0></code>', str(escape(visible(text)))))


def group_pictures(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Pictures by their group, both in the order in which they come."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    return groups
