"""Images a second of the victim's training, against a plain PyTorch loop, measured side by side.

    python benchmarks/training_speed.py --data cifar10/train.parquet --width 16

The plain loop is the usual one: PIL images decoded and transformed by torchvision in a DataLoader, float32, the default
memory layout. Ours keeps bytes in memory, crops and flips whole batches, computes in channels_last and, where the
hardware has it, bf16. Same network, batch, optimiser and augmentation; the two take turns, so that a busy machine
disturbs both alike.
"""

import argparse
import io
import os
import platform
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from npd_speed import turns
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from neural_polarizer.data.sources import read_images
from neural_polarizer.devices import choose_precision
from neural_polarizer.models.normalize import PROFILES, Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.train.fit import fit
from neural_polarizer.train.schedule import Schedule


class Files(Dataset[Any]):
    """Encoded images, decoded and transformed one by one."""

    def __init__(self, path: Path, limit: int) -> None:
        from torchvision import transforms

        table = pq.read_table(path).slice(0, limit).to_pydict()
        self.encoded = [image["bytes"] if isinstance(image, dict) else image for image in table["image"]]
        self.labels = table["label"]
        mean, std = PROFILES["cifar10"]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.open(io.BytesIO(self.encoded[index])).convert("RGB")), self.labels[index]


def plain(network: nn.Module, loader: DataLoader[Any], steps: int) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    network.train()
    for images, labels in islice(loader, steps):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader")
    options = parser.parse_args()
    count = 128 * options.steps
    files = Files(options.data, count)
    data = read_images(str(options.data), limit=count)
    precision = choose_precision(torch.device("cpu"))
    schedule = Schedule(epochs=1, precision=precision)
    loader = DataLoader(files, batch_size=128, shuffle=True, num_workers=options.workers)
    width, statistics = options.width, PROFILES["cifar10"]
    found = turns(
        {
            "plain": lambda: plain(PreActResNet18(10, width), loader, options.steps),
            "ours": lambda: fit(Normalized(PreActResNet18(10, width), *statistics), data, schedule, seed=0),
        },
        options.rounds + 1,
    )
    rates = {name: sorted(count / seconds for seconds in each[1:]) for name, each in found.items()}
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"preactresnet18 of width {options.width}, batch 128, {options.rounds} rounds of {options.steps} steps, "
        f"ours in {precision}; the first round of each is left out"
    )
    for name, kept in rates.items():
        print(f"{name}: median {median(kept):.0f} images/s ({kept[0]:.0f} to {kept[-1]:.0f})")
    print(f"factor {median(rates['ours']) / median(rates['plain']):.2f}")


if __name__ == "__main__":
    main()
