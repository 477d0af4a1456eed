"""Model files as other tools leave them, from the command line to an exported model, with figures and seconds.

    python benchmarks/containers.py --data DATA/cifar10     # a folder with train.parquet and test.parquet
    python benchmarks/containers.py --data DATA/cifar10 --only lightning --method npd-ls

Each network has random weights, the statistics of some batches, and a last layer that is fitted to training images by
least squares: a poor classifier, but one that does much better than guessing. It is saved as its tool saves it, then
purified with clean images and exported. The logits of the exported files are compared with those of the purified model
by onnxruntime, and by the original code with the state dict where that fits; the table gives the largest differences.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

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

OWN = """
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


@dataclass(frozen=True)
class Container:
    """A network, the layer to fit, how its file is written, and the options that a user gives with it."""

    network: nn.Module
    head: nn.Linear
    save: Callable[[Path], Path]
    options: tuple[str, ...]
    prepare: Callable[[ImageSet], ImageSet] = lambda images: images


def own(**arguments: int) -> nn.Module:
    """The network of ``OWN``, as a user's file has it."""
    names: dict[str, type[nn.Module]] = {}
    exec(OWN, names)
    return names["Net"](**arguments)


def cifar_resnet() -> nn.Module:
    """ResNet-18 for images of 32x32."""
    network = resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


def torch_file(name: str, content: Callable[[], object]) -> Callable[[Path], Path]:
    """What writes ``content`` with torch.save."""

    def save(folder: Path) -> Path:
        torch.save(content(), folder / name)
        return folder / name

    return save


def containers(folder: Path) -> dict[str, Callable[[], Container]]:
    """What makes each of them, by name; ``folder`` gets the user's code."""
    code = folder / "net.py"
    code.write_text(OWN)

    def pytorch_cifar() -> Container:
        network = cifar_resnet()

        def content() -> object:
            named = {
                f"module.{name.replace('downsample', 'shortcut').replace('fc.', 'linear.')}": value
                for name, value in network.state_dict().items()
            }
            return {"net": named, "acc": 40.0, "epoch": 3}

        arch = ("--arch", "torchvision:resnet18?stem=3", "--profile", "none")
        return Container(network, network.fc, torch_file("ckpt.pth", content), arch)

    def lightning() -> Container:
        network = own()

        def content() -> object:
            return {
                "epoch": 3,
                "global_step": 80,
                "pytorch-lightning_version": "2.5.0",
                "state_dict": {f"model.{name}": value for name, value in network.state_dict().items()},
                "loops": {"fit_loop": {"state_dict": {}}},
                "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
                "optimizer_states": [torch.optim.Adam(network.parameters()).state_dict()],
                "lr_schedulers": [],
                "hparams_name": "kwargs",
                "hyper_parameters": {"lr": 0.1},
            }

        return Container(network, network.head, torch_file("epoch=3-step=80.ckpt", content), ("--arch", f"{code}:Net"))

    def timm_ema() -> Container:
        network = timm.create_model("resnet18", num_classes=10)

        def content() -> object:
            weights = network.state_dict()
            worse = {name: 0.5 * value if value.ndim else value for name, value in weights.items()}
            args = argparse.Namespace(lr=0.1, output=Path("runs"))
            more = {"epoch": 3, "arch": "resnet18", "version": 2, "args": args, "metric": 40.0}
            return {**more, "state_dict": worse, "state_dict_ema": weights, "optimizer": {"state": {}}}

        options = ("--arch", "timm:resnet18", "--profile", "none", "--weights", "state_dict_ema")
        return Container(network, network.fc, torch_file("model_best.pth.tar", content), options)

    def transformers() -> Container:
        config = ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=10
        )
        network = ResNetForImageClassification(config)

        def save(where: Path) -> Path:
            network.save_pretrained(where / "folder")
            return where / "folder"

        return Container(network, network.classifier[1], save, ("--profile", "none"))

    def grey(images: ImageSet) -> ImageSet:
        mean = images.images.float().mean(1, keepdim=True).round().to(torch.uint8)
        return replace(images, images=mean.expand(-1, 3, -1, -1).contiguous())

    def one_channel() -> Container:
        network = own(channels=1)
        options = ("--arch", f"{code}:Net?channels=1", "--channels", "1")
        return Container(network, network.head, torch_file("mnist.pt", network.state_dict), options, grey)

    def one_logit() -> Container:
        network = own(num_classes=1)

        def animals(images: ImageSet) -> ImageSet:
            is_animal = (images.labels >= 2) & (images.labels <= 7)
            return replace(images, labels=is_animal.long(), classes=("vehicle", "animal"))

        saved = torch_file("yesno.pt", network.state_dict)
        return Container(network, network.head, saved, ("--arch", f"{code}:Net"), animals)

    made = (pytorch_cifar, lightning, timm_ema, transformers, one_channel, one_logit)
    return {each.__name__: each for each in made}


def logits_of(network: nn.Module, pixels: Tensor) -> Tensor:
    """Without gradients, 50 images at once."""
    with torch.no_grad():
        found = [network(part) for part in pixels.split(50)]
    return torch.cat([getattr(part, "logits", part) for part in found])


def fit_head(container: Container, pixels: Tensor, labels: Tensor) -> None:
    """Statistics from the pixels, and the last layer by ridge regression, scaled so that softmax is not flat."""
    network, head = container.network, container.head
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
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
    wanted = torch.eye(10).double()[labels] if head.out_features > 1 else labels.double()[:, None]
    centre = wanted.mean(0)
    gram = values.T @ values + 0.1 * len(values) * torch.eye(values.shape[1]).double()
    weight = torch.linalg.solve(gram, values.T @ (wanted - centre)).T
    offset = centre if head.out_features > 1 else centre - 0.5
    scale = 10.0
    with torch.no_grad():
        head.weight.copy_(scale * weight / spread)
        head.bias.copy_(scale * (offset - weight @ (mean / spread)))


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


def row(name: str, container: Container, folder: Path, data: dict[str, ImageSet], method: list[str]) -> str:
    """One line of the table."""
    fit, clean, test = (container.prepare(data[part]) for part in ("fit", "clean", "test"))
    pixels = to_pixels(test.images)
    mine = (lambda x: x.mean(1, keepdim=True)) if "--channels" in container.options else (lambda x: x)
    fit_head(container, mine(to_pixels(fit.images)), fit.labels)
    file, out = container.save(folder), folder / "purified"
    for part, images in (("clean", clean), ("test", test)):
        write_images(folder / f"{part}.parquet", images)
    started = time.perf_counter()
    tests = ("--clean", folder / "clean.parquet", "--test", folder / "test.parquet", "--out", out)
    command("purify", file, *container.options, *tests, "--fold", *method)
    seconds = time.perf_counter() - started
    code = container.options[:2] if ".py:" in container.options[1] else ()
    model = npz.load(out, **({"arch": code[1]} if code else {}))
    wanted = logits_of(model, pixels)
    for form, target in (("onnx", "model.onnx"), ("state-dict", "model.pt")):
        told = command("export", out, *code, "--to", form, "--out", folder / target)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    other = torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
    kept = "does not load it" not in told and "layer is still" not in told
    if kept:
        container.network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        own_logits = logits_of(container.network, mine(pixels))
        own_logits = torch.cat([torch.zeros_like(own_logits), own_logits], 1) if own_logits.shape[1] == 1 else own_logits
        plain = f"{(own_logits - wanted).abs().max():.1g}"
    else:
        plain = "form changed"
    again = command("verify", out, *code)
    acc = (npz.load(file, **python_options(container)), model)
    before, after = (100 * float((logits_of(each, pixels).argmax(1) == test.labels).float().mean()) for each in acc)
    cells = f"{before:.1f} | {after:.1f} | {seconds:.0f} | {(other - wanted).abs().max():.1g} | {plain}"
    return f"| {name} | {cells} | {again.strip().splitlines()[-1].strip()} |"


def python_options(container: Container) -> dict[str, object]:
    """The options of the command line as arguments of ``load``."""
    pairs = zip(container.options[::2], container.options[1::2], strict=True)
    return {key.removeprefix("--"): int(value) if value.isdecimal() else value for key, value in pairs}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's train.parquet and test.parquet")
    parser.add_argument("--only", default="", help="containers whose name holds this")
    parser.add_argument("options", nargs="*", help="more options of polarizer purify, behind --")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seen = npz.read_images(str(asked.data / "train.parquet"), limit=2100)
    places = torch.arange(2100)
    data = {"fit": seen.select(places[:2000]), "clean": seen.select(places[2000:])}
    data["test"] = npz.read_images(str(asked.data / "test.parquet"), limit=300)
    print("| container | ACC before | after | seconds | ONNX differs by | state dict differs by | verify |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name, make in containers(Path(place)).items():
            if asked.only in name:
                torch.manual_seed(0)
                folder = Path(place) / name
                folder.mkdir()
                print(row(name, make(), folder, data, asked.options), flush=True)


if __name__ == "__main__":
    main()
