"""Exports of many architectures in every format: what folding leaves, and by how much logits differ.

    python benchmarks/export_round_trips.py            # random weights, the site that --site auto chooses
    python benchmarks/export_round_trips.py --only timm

Networks have initial weights and the statistics of one batch, as without these logits overflow; the polarizer is a
random matrix near the identity. The table gives the largest difference of a logit on 33 digits (extra ``demo``), read
back from the file, and the seconds that writing and checking took.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.data.sources import read_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.exporting.export import export_model
from neural_polarizer.exporting.formats import FORMATS, FormatName
from neural_polarizer.layer.sites import default_site, features_at
from neural_polarizer.layer.structures import make_polarizer
from neural_polarizer.layer.surgery import insert
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.models.build import build
from neural_polarizer.models.normalize import PROFILES, Normalized

ARCHITECTURES = (
    "preactresnet18",
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224?img_size=32&patch_size=4",
    "vgg19_bn",
    "densenet161",
    "inception_v3",
)
CLASSES = 10
MEAN, STD = PROFILES["cifar10"]


@torch.no_grad()
def purified(architecture: str, seen: ImageSet) -> tuple[nn.Module, ModelRecord]:
    """A network with a polarizer that is not the identity, and its record."""
    pixels = to_pixels(seen.images)
    model = Normalized(build(architecture, CLASSES), MEAN, STD).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(pixels)
    model.eval()
    site = default_site(model, pixels[:4])
    layer = make_polarizer("conv-bn", features_at(model, site, pixels[:4]), torch.Generator())
    layer.mix.weight.add_(0.02 * torch.randn_like(layer.mix.weight))
    assert layer.norm.running_mean is not None
    layer.norm.running_mean.normal_(std=0.1)
    record = ModelRecord(architecture=architecture, num_classes=CLASSES, mean=MEAN, std=STD, site=str(site))
    return insert(model, site, layer).eval(), record


def row(architecture: str, seen: ImageSet, folder: Path) -> str:
    model, record = purified(architecture, seen)
    cells, told, largest = [], "", 0.0
    for name in get_args(FormatName):
        started = time.perf_counter()
        try:
            done = export_model(model, folder / f"model{FORMATS[name].suffixes[0]}", name, seen, record)
        except BadInputError as error:
            cells.append(str(error))
            continue
        cells.append(f"{done.deviation:.1g} ({time.perf_counter() - started:.0f} s)")
        largest = done.largest_logit
        if name == "state-dict":
            told = "yes" if done.obstacle is None else f"no: {done.obstacle}"
    return f"| {architecture} | {record.site} | {told} | {largest:.2g} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="architectures whose name holds this")
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = read_images("digits:test")
    seen = digits.select(torch.arange(33) * (len(digits) // 33))
    print(f"| architecture | site | original architecture | largest logit | {' | '.join(get_args(FormatName))} |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            if options.only in architecture:
                print(row(architecture, seen, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
