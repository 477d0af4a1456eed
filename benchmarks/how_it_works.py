"""Draws how the method works, after figure 1 of the paper: the picture of docs/explanation/how-it-works.md.

python benchmarks/how_it_works.py docs/pictures/how_it_works.svg
"""

import sys
from base64 import b64encode
from pathlib import Path

import neural_polarizer as npz
from neural_polarizer.report.pictures import contact_sheet

GROUND, PAPER, INK, FROZEN = "#dfe5ec", "#ffffff", "#16202b", "#b4c0cd"
LAYER, CLEAN, TRIGGER = "#2f5fa7", "#0b7a4b", "#b3261e"
SIDE, TOP, BOTTOM, UPPER, LOWER = 64, 34, 208, 76, 162
EARLIER, POLARIZER, LATER = (108, 92), (238, 82), (358, 92)
"""Left edge and width of the three parts of the network."""

NOTES = {
    "Stand-ins": ("smallest changes that", "send many images to", "one class; they replace", "the unknown trigger"),
    "Learned": ("only A and c: clean", "images keep their", "logits, stand-ins", "lose their effect"),
    "Guard": ("scales the change", "from 0 to 1 and above;", "stops where clean", "accuracy would fall"),
}
COLOURS = (TRIGGER, LAYER, INK)


def text(x: float, y: float, words: str, colour: str = INK, *, size: int = 14, bold: bool = False) -> str:
    """Words around ``x``, on the line ``y``."""
    weight = ' font-weight="700"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="middle"{weight}>{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, edge: str) -> str:
    """A box with round corners."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{edge}"/>'


def arrow(path: str, colour: str, *, dashed: bool = False, head: bool = True) -> str:
    """A line along ``path``."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    tip = f' marker-end="url(#head-{colour[1:]})"' if head else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}{tip}/>'


def heads() -> list[str]:
    """The tips of the arrows, one per colour."""
    return [
        f'<marker id="head-{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for colour in (CLEAN, TRIGGER, LAYER, INK)
    ]


def network() -> list[str]:
    """The frozen layers with the new one between them."""
    middle = (TOP + BOTTOM) / 2
    parts = []
    for name, (x, width) in {"earlier": EARLIER, "later": LATER}.items():
        parts += [box(x, TOP, width, BOTTOM - TOP, FROZEN, FROZEN), text(x + width / 2, middle - 6, name)]
        parts += [text(x + width / 2, middle + 11, "layers"), text(x + width / 2, BOTTOM - 12, "frozen", size=12)]
    x, width = POLARIZER
    return [
        *parts,
        box(x, TOP, width, BOTTOM - TOP, LAYER, LAYER),
        text(x + width / 2, middle - 6, "polarizer", PAPER, bold=True),
        text(x + width / 2, middle + 13, "A f + c", PAPER),
    ]


def paths() -> list[str]:
    """Clean features go through; the share of the trigger ends at the layer."""
    gaps = [(84, EARLIER[0]), (sum(EARLIER), POLARIZER[0]), (sum(POLARIZER), LATER[0]), (sum(LATER), 474)]
    parts = [arrow(f"M{start} {y}H{end}", CLEAN) for start, end in gaps for y in (UPPER, LOWER)]
    parts += [arrow(f"M{start} {LOWER + 14}H{end}", TRIGGER, dashed=True) for start, end in gaps[:2]]
    stop = POLARIZER[0] + 12
    parts.append(
        f'<path d="M{stop - 6} {LOWER + 8}l12 12m-12 0l12 -12" stroke="{PAPER}" stroke-width="3"/>',
    )
    return parts


def notes() -> list[str]:
    """What is learned, from what, and how far it may go."""
    top, width, parts = 250, 161, []
    for index, ((name, lines), colour) in enumerate(zip(NOTES.items(), COLOURS, strict=True)):
        x = 10 + index * (width + 8)
        parts += [box(x, top, width, 104, PAPER, colour), text(x + width / 2, top + 22, name, colour, bold=True)]
        parts += [text(x + width / 2, top + 42 + 17 * place, line, size=13) for place, line in enumerate(lines)]
    return [
        *parts,
        arrow(f"M50 {top}V{LOWER + SIDE // 2 + 4}", TRIGGER, dashed=True),
        arrow(f"M266 {top}V{BOTTOM + 2}", LAYER),
        arrow(f"M420 {top}V{BOTTOM + 22}H296V{BOTTOM + 2}", INK),
    ]


def drawing(pictures: str, answer: str) -> str:
    """The whole picture; ``pictures`` is a PNG in base64, a clean image above a triggered one."""
    height = LOWER - UPPER + SIDE
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 520 366" width="520" role="img" '
            'font-family="system-ui, sans-serif">',
            "<title>A clean and a triggered image go through frozen layers. A learned layer between them lets clean "
            "features pass and stops the trigger's.</title>",
            "<defs>",
            *heads(),
            "</defs>",
            f'<rect width="520" height="366" rx="10" fill="{GROUND}"/>',
            f'<image x="18" y="{UPPER - SIDE // 2}" width="{SIDE}" height="{height}" '
            f'href="data:image/png;base64,{pictures}" style="image-rendering: pixelated"/>',
            text(50, TOP - 4, "clean", size=13),
            text(50, LOWER - SIDE // 2 - 6, "triggered", size=13),
            *network(),
            *paths(),
            *(text(492, y + 8, answer, CLEAN, size=22, bold=True) for y in (UPPER, LOWER)),
            *notes(),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    digits = npz.read_images("digits:test")
    chosen = int((digits.labels == 7).nonzero()[0, 0])
    clean = digits.images[chosen : chosen + 1]
    rows = [clean, npz.BadNets(target=0).stamp(clean)]
    sheet = contact_sheet(rows, scale=SIDE // clean.shape[-1], gap=LOWER - UPPER - SIDE)
    Path(sys.argv[1]).write_text(drawing(b64encode(sheet).decode(), "7"), encoding="utf-8")
