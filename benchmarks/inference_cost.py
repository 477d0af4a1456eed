"""What a purified and a folded model cost at inference, against the original: latency and memory.

    python benchmarks/inference_cost.py                   # preactresnet18 of full width at four sites
    python benchmarks/inference_cost.py --run purified/   # the model of a purification

The three models take turns, one forward pass each a round, in an order that changes from round to round, so that a busy
machine disturbs all alike; the ratio to the original is the median of the ratios within a round. Weights do not change
what a forward pass costs, so without ``--run`` they are random; the polarizer is a random matrix near the identity.
Peak memory is that of a forward pass beyond the weights and the images: on CUDA the allocator's, on the CPU that
of its tensors.
"""

import argparse
import os
import platform
import weakref
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from npd_speed import turns
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neural_polarizer.files import write_json
from neural_polarizer.layer.folding.fold import Folded, fold_polarizer
from neural_polarizer.layer.polarizer import Polarizer
from neural_polarizer.layer.sites import features_at
from neural_polarizer.layer.surgery import PolarizedModule, Site, insert
from neural_polarizer.model_files.load import load_model
from neural_polarizer.models.build import build

SITES = ("before:layer4.1", "before:layer4", "after:layer4", "before:layer4.1.conv1")


def polarized(network: nn.Module, text: str, pixels: Tensor) -> nn.Module:
    """``network`` with a polarizer near the identity."""
    site = Site.parse(text)
    polarizer = Polarizer(features_at(network, site, pixels).channels)
    with torch.no_grad():
        polarizer.mix.weight.add_(0.02 * torch.randn_like(polarizer.mix.weight))
        assert polarizer.norm.running_mean is not None
        polarizer.norm.running_mean.normal_(std=0.1)
    return insert(network, site, polarizer).eval()


def original(purified: nn.Module) -> nn.Module:
    """``purified`` without its polarizer, which is not what it computes."""
    for parent in list(purified.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PolarizedModule):
                setattr(parent, name, child.module)
    return purified


def once(model: nn.Module, pixels: Tensor) -> None:
    """One forward pass, to its end."""
    model(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()


class Held(TorchDispatchMode):
    """Adds up the memory of all tensors that come into being while it is active, and notes the peak."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.holders: Counter[int] = Counter()
        self.held = self.peak = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return output

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self.known:
            return
        self.held += 0 if self.holders[place] else size
        self.peak = max(self.peak, self.held)
        self.holders[place] += 1
        weakref.finalize(tensor, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        self.held -= 0 if self.holders[place] else size


def peak_bytes(model: nn.Module, pixels: Tensor) -> int:
    """The most memory that one forward pass holds beyond weights and images."""
    if pixels.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(pixels)
        return torch.cuda.max_memory_allocated() - before
    with Held(pixels, *model.state_dict().values()) as held:
        model(pixels)
    return held.peak


def report(models: Mapping[str, nn.Module], pixels: Tensor, rounds: int) -> dict[str, Any]:
    """Print a line a model and return its figures; the first three rounds warm up and do not count."""
    times = turns({name: partial(once, model, pixels) for name, model in models.items()}, rounds + 3)
    figures = {}
    for name, model in models.items():
        found = times[name][3:]
        first, _, third = quantiles(found, n=4)
        ratios = [own / base for own, base in zip(found, times["original"][3:], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        peak = peak_bytes(model, pixels)
        figures[name] = {"seconds": found, "ratio": [low, median(ratios), high], "weights": weights, "peak": peak}
        print(
            f"  {name:9} median {1e3 * median(found):8.3f} ms, quartiles {1e3 * first:.3f} to {1e3 * third:.3f}; "
            f"{median(ratios):.3f} times the original ({low:.3f} to {high:.3f}); weights {weights / 1e6:.2f} MB, "
            f"peak beyond them {peak / 1e6:.2f} MB"
        )
    return figures


def measure(title: str, purified: nn.Module, base: nn.Module, pixels: Tensor, rounds: int) -> dict[str, Any]:
    """Fold ``purified``; print and return what all three cost."""
    folded: Folded = fold_polarizer(purified, pixels)
    print(f"{title}: {folded.remark}")
    models = {"original": base, "purified": purified, "folded": folded.model}
    return {
        "remark": folded.remark,
        **report(models, pixels.contiguous(memory_format=torch.channels_last), rounds),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a purification")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    card = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor()
    setting = (
        f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()} {card}, "
        f"{os.cpu_count()} cores, {options.threads} threads, {options.device}; float32, channels_last, "
        f"{options.batch_size} images of {options.size}x{options.size}, {options.rounds} rounds, seed 0"
    )
    print(setting)
    pixels = torch.rand(options.batch_size, 3, options.size, options.size)
    cases = {}
    if options.run is not None:
        path = options.run / "purified.safetensors"
        title = f"{options.run} ({load_model(path).record.site})"
        cases[title] = load_model(path).model, original(load_model(path).model)
    else:
        network = build("preactresnet18", 10, width=options.width).eval()
        title = f"preactresnet18 of width {options.width}"
        cases = {f"{title}, {site}": (polarized(network, site, pixels), network) for site in SITES}
    found: dict[str, Any] = {"setting": setting}
    for title, (purified, base) in cases.items():
        for model in (purified, base):
            model.to(options.device).to(memory_format=torch.channels_last)
        found[title] = measure(title, purified, base, pixels.to(options.device), options.rounds)
    if options.json is not None:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
