"""Model files as other tools leave them, from the command line to exported models: figures, seconds, differences.

    python benchmarks/containers.py --data DATA/cifar10     # a folder with train.parquet and test.parquet
    python benchmarks/containers.py --data DATA/cifar10 --only lightning -- --method npd --epochs 1

Each network has random weights and a last layer that is fitted by least squares: a poor classifier, but better than
guessing. It is saved as its tool saves it, purified with clean images (options behind -- go to ``polarizer purify``),
exported, and verified. The table gives the accuracies, and by how much logits of the exported files differ: of ONNX in
onnxruntime, of the state dict in the original code where that still fits (extras ``export``, ``zoo``).
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from transformers import ResNetConfig, ResNetForImageClassification

import neural_polarizer as npz
from neural_polarizer.cli.main import main as polarizer
from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.data.parquet import write_images

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, channels=3, num_classes=10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding=2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Linear(1024, num_classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))
"""
Made = tuple[nn.Module, nn.Linear, Callable[[Path], Any], tuple[str, ...]]
"""A network, its last layer, what writes its file or gives what torch.save writes, and the user's options."""


def own(**arguments: int) -> Any:
    names: dict[str, Any] = {}
    exec(CODE, names)
    return names["Net"](**arguments)


def pytorch_cifar() -> Made:
    network = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()

    def content(_: Path) -> Any:
        names = {
            name: name.replace("downsample", "shortcut").replace("fc.", "linear.") for name in network.state_dict()
        }
        weights = {f"module.{names[name]}": value for name, value in network.state_dict().items()}
        return {"net": weights, "acc": 40.0, "epoch": 3}

    return network, network.fc, content, ("--arch", "torchvision:resnet18?stem=3", "--profile", "none")


def lightning() -> Made:
    network = own()

    def content(_: Path) -> Any:
        weights = {f"model.{name}": value for name, value in network.state_dict().items()}
        optimizer = torch.optim.Adam(network.parameters()).state_dict()
        more = {"pytorch-lightning_version": "2.5.0", "callbacks": {"Best": {"score": torch.tensor(0.5)}}}
        return {
            "epoch": 3,
            "state_dict": weights,
            "optimizer_states": [optimizer],
            "hyper_parameters": {"lr": 1},
            **more,
        }

    return network, network.head, content, ("--arch", "net.py:Net")


def timm_ema() -> Made:
    network = timm.create_model("resnet18", num_classes=10)

    def content(_: Path) -> Any:
        weights = network.state_dict()
        worse = {name: 0.5 * value if value.ndim else value for name, value in weights.items()}
        args = argparse.Namespace(lr=0.1, output=Path("runs"))
        return {"arch": "resnet18", "args": args, "state_dict": worse, "state_dict_ema": weights, "optimizer": {}}

    options = ("--arch", "timm:resnet18", "--profile", "none", "--weights", "state_dict_ema")
    return network, network.fc, content, options


def transformers() -> Made:
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1]}
    network = ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=10))
    return network, network.classifier[1], network.save_pretrained, ("--profile", "none")


def one_channel() -> Made:
    network = own(channels=1)
    return network, network.head, lambda _: network.state_dict(), ("--arch", "net.py:Net?channels=1", "--channels", "1")


def one_logit() -> Made:
    network = own(num_classes=1)
    return network, network.head, lambda _: network.state_dict(), ("--arch", "net.py:Net")


def prepared(images: ImageSet, name: str) -> ImageSet:
    """Grey ones for the network of one channel, animals against vehicles for that of one logit."""
    if name == "one_channel":
        grey = images.images.float().mean(1, keepdim=True).round().to(torch.uint8)
        return replace(images, images=grey.expand(-1, 3, -1, -1).contiguous())
    if name == "one_logit":
        animals = (images.labels >= 2) & (images.labels <= 7)
        return replace(images, labels=animals.long(), classes=("vehicle", "animal"))
    return images


@torch.no_grad()
def logits_of(network: nn.Module, pixels: Tensor) -> Tensor:
    found = [network(part) for part in pixels.split(50)]
    logits = torch.cat([getattr(part, "logits", part) for part in found])
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def fit_head(network: nn.Module, head: nn.Linear, pixels: Tensor, labels: Tensor) -> None:
    """Statistics of batches, then the last layer by ridge regression on its standardised inputs."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network.train()
    logits_of(network, pixels[:500])
    network.eval()
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits_of(network, pixels)
    hook.remove()
    values = torch.cat(seen).double()
    mean, spread = values.mean(0), values.std(0).clamp(min=1e-6)
    values = (values - mean) / spread
    wanted = labels.double()[:, None] if head.out_features == 1 else torch.eye(10).double()[labels]
    centre = wanted.mean(0)
    gram = values.T @ values + 0.1 * len(values) * torch.eye(values.shape[1]).double()
    weight = torch.linalg.solve(gram, values.T @ (wanted - centre)).T
    with torch.no_grad():
        head.weight.copy_(10 * weight / spread)  # so that a softmax of the logits is not flat
        head.bias.copy_(10 * (centre - 0.5 - weight @ (mean / spread)))


def command(*words: object) -> str:
    """What the command printed.

    Raises:
        RuntimeError: it failed.
    """
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            polarizer([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"polarizer {' '.join(map(str, words))}: {printed.getvalue()}") from end
    return printed.getvalue()


def row(make: Callable[[], Made], folder: Path, data: dict[str, ImageSet], more: list[str]) -> str:
    (folder / "net.py").write_text(CODE)
    network, head, content, options = make()
    options = tuple(f"{folder}/{word}" if ".py:" in word else word for word in options)
    images = {part: prepared(each, make.__name__) for part, each in data.items()}
    pixels, grey = to_pixels(images["test"].images), "--channels" in options
    taken = (lambda x: x.mean(1, keepdim=True)) if grey else (lambda x: x)
    fit_head(network, head, taken(to_pixels(images["fit"].images)), images["fit"].labels)
    before, file = logits_of(network, taken(pixels)), folder / "model"
    if (weights := content(file)) is not None:
        torch.save(weights, file)
    for part in ("clean", "test"):
        write_images(folder / f"{part}.parquet", images[part])
    given = [word for part in ("clean", "test") for word in (f"--{part}", folder / f"{part}.parquet")]
    started, out = time.perf_counter(), folder / "purified"
    command("purify", file, *options, *given, "--out", out, "--fold", *more)
    seconds = time.perf_counter() - started
    code = options[:2] if ".py:" in options[1] else ()
    after = logits_of(npz.load(out, arch=code[1] if code else None), pixels)
    command("export", out, *code, "--to", "onnx", "--out", folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (of_onnx,) = session.run(["logits"], {"pixels": pixels.numpy()})
    told = command("export", out, *code, "--to", "state-dict", "--out", folder / "model.pt")
    differs = "another form"
    if "does not load it" not in told:
        network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        differs = f"{(logits_of(network, taken(pixels)) - after).abs().max():.1g}"
    accuracies = (100 * float((each.argmax(1) == images["test"].labels).float().mean()) for each in (before, after))
    cells = [make.__name__, *(f"{each:.1f}" for each in accuracies), f"{seconds:.0f}"]
    cells += [f"{(torch.from_numpy(of_onnx) - after).abs().max():.1g}", differs]
    return f"| {' | '.join(cells)} | {command('verify', out, *code).strip().splitlines()[-1].strip()} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's train.parquet and test.parquet")
    parser.add_argument("--only", default="", help="containers whose name holds this")
    parser.add_argument("options", nargs="*", help="more options of polarizer purify, behind --")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seen = npz.read_images(str(asked.data / "train.parquet"), limit=2100)
    data = {"fit": seen.select(torch.arange(2000)), "clean": seen.select(torch.arange(2000, 2100))}
    data["test"] = npz.read_images(str(asked.data / "test.parquet"), limit=300)
    print("| container | ACC before | after | seconds | ONNX differs by | state dict differs by | verify |")
    print("|---|---|---|---|---|---|---|")
    for make in (pytorch_cifar, lightning, timm_ema, transformers, one_channel, one_logit):
        if asked.only in make.__name__:
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                print(row(make, Path(folder), data, asked.options), flush=True)


if __name__ == "__main__":
    main()
