"""Draws what a model says of triggered images before and after its purification: the picture of README and site.

python benchmarks/before_after.py runs/demo docs/pictures/before_after.svg
"""

import sys
from base64 import b64encode
from pathlib import Path

import torch
from torch import Tensor, nn

from neural_polarizer.data.images import to_pixels
from neural_polarizer.data.poison import read_triggered
from neural_polarizer.model_files.load import load_model
from neural_polarizer.report.pictures import contact_sheet

SIDE, GAP, LEFT, TOP = 64, 8, 118, 34
INK, BAD, GOOD = "#16202b", "#b3261e", "#0b7a4b"
FONT = 'font-family="system-ui, sans-serif" font-size="15"'


@torch.no_grad()
def said(model: nn.Module, images: Tensor) -> list[int]:
    """The class that the model names for each uint8 image."""
    return model(to_pixels(images)).argmax(dim=1).tolist()


def drawing(images: Tensor, rows: dict[str, list[int]], truth: list[int]) -> str:
    """The images in a row, and below each what each model says; wrong answers are red."""
    sheet = b64encode(contact_sheet([images], scale=SIDE // images.shape[-1], gap=GAP)).decode()
    width, height = LEFT + len(truth) * (SIDE + GAP) + 8, TOP + SIDE + 34 * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>Images with the trigger: {'; '.join(f'{name} {answers}' for name, answers in rows.items())}</title>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#dfe5ec"/>',
        f'<text x="12" y="22" {FONT} fill="{INK}">Digits with the trigger, a white square, and the answers</text>',
        f'<image x="{LEFT}" y="{TOP}" width="{len(truth) * (SIDE + GAP) - GAP}" height="{SIDE}" '
        f'href="data:image/png;base64,{sheet}" style="image-rendering: pixelated"/>',
    ]
    for index, (name, answers) in enumerate(rows.items()):
        y = TOP + SIDE + 30 + 34 * index
        parts.append(f'<text x="12" y="{y}" {FONT} font-weight="600" fill="{INK}">{name}</text>')
        for place, (answer, right) in enumerate(zip(answers, truth, strict=True)):
            x, colour = LEFT + place * (SIDE + GAP) + SIDE // 2, GOOD if answer == right else BAD
            parts.append(
                f'<text x="{x}" y="{y}" {FONT} font-weight="700" fill="{colour}" text-anchor="middle">{answer}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    demo = Path(sys.argv[1])
    triggered = read_triggered(demo / "attack" / "triggered.parquet", size=None, num_classes=10)
    first = [int((triggered.true_labels == digit).nonzero()[0, 0]) for digit in range(1, 10)]
    shown = triggered.images.images[first]
    models = {"original": load_model(demo / "attack").model, "purified": load_model(demo / "purified").model}
    answers = {name: said(model.eval(), shown) for name, model in models.items()}
    Path(sys.argv[2]).write_text(drawing(shown, answers, triggered.true_labels[first].tolist()), encoding="utf-8")
