"""How fast NPD learns: against a plain form of the reference procedure, and against the hardware.

    python benchmarks/npd_speed.py plain                      # (a) the same algorithm, step by step, and ours
    python benchmarks/npd_speed.py whole --width 16           # a whole run, and the plain form at 50 epochs
    python benchmarks/npd_speed.py ceiling                    # (b) FLOP/s of the inner loop and of convolutions alone
    python benchmarks/npd_speed.py scaling                    # (d) clean images, width, image size
    python benchmarks/npd_speed.py memory                     # (e) peak memory of a run with 2,500 images

Random weights and images of noise: neither changes what a pass costs. All variants of a measurement take turns, so that
a busy machine disturbs them alike; medians and the spread of the repetitions are printed. ``--json FILE`` keeps them.
"""

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from plain_npd import plain_npd
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses.npd import NPD
from neural_polarizer.defenses.npd.presets import preset
from neural_polarizer.files import write_json
from neural_polarizer.models.build import build
from neural_polarizer.models.normalize import PROFILES, Normalized

CLASSES = 10


def model_of(width: int) -> Normalized:
    """PreActResNet18 with random weights."""
    torch.manual_seed(0)
    return Normalized(build("preactresnet18", CLASSES, width=width), *PROFILES["cifar10"]).eval()


def images_of(count: int, size: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    return ImageSet(
        torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8),
        torch.arange(count) % CLASSES,
        tuple(map(str, range(CLASSES))),
        "noise",
    )


def turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in each round, in an order that changes from round to round."""
    names = list(variants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            variants[name]()
            found[name].append(time.perf_counter() - started)
    return found


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """(a) One checkpoint, the same images, epochs and seed; nothing stops early, so all do the same work."""
    model, clean = model_of(options.width), images_of(options.images, options.size)
    settings = replace(
        preset("npd", name="reference", profile="cifar10"),
        epochs=options.epochs,
        warmup_epochs=1,
        early_stop=1.0,
        batch_size=128,
    )

    def reference(precision: str, layout: torch.memory_format) -> Callable[[], object]:
        return lambda: plain_npd(model, clean, settings, seed=0, precision=precision, layout=layout)

    def ours(**changes: Any) -> Callable[[], object]:
        return lambda: replace(settings, **changes).repair(model, clean, seed=0)

    found = turns(
        {
            "plain, fp32": reference("fp32", torch.contiguous_format),
            "plain, fp32, channels_last": reference("fp32", torch.channels_last),
            "plain, bf16, channels_last": reference("bf16", torch.channels_last),
            "ours, fp32": ours(),
            "ours, bf16": ours(precision="bf16"),
            "ours, bf16, compiled": ours(precision="bf16", compile=True),
        },
        options.rounds,
    )
    base = median(found["plain, fp32"])
    for name, seconds in found.items():
        times = f"{median(seconds):8.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"  {name:28} {times}  {base / median(seconds):5.2f} times as fast")
    return {"seconds": found}


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """The shipped NPD as a whole, and the plain form: one epoch and three, from which its 50 are reckoned."""
    model, clean = model_of(options.width), images_of(options.images, options.size)
    settings = replace(
        preset("npd", name="reference", profile="cifar10"), warmup_epochs=1, early_stop=1.0, batch_size=128
    )
    variants: dict[str, Callable[[], object]] = {
        f"plain, fp32, {epochs}": lambda e=epochs: plain_npd(model, clean, replace(settings, epochs=e), seed=0)  # type: ignore[misc]
        for epochs in (1, 3)
    }
    variants["shipped"] = lambda: NPD(precision="bf16").repair(model, clean, seed=0)
    found = turns(variants, options.rounds)
    one, three = (median(found[f"plain, fp32, {epochs}"]) for epochs in (1, 3))
    found["plain, fp32, 50 epochs (reckoned)"] = [one + 49 * (three - one) / 2]
    for name, seconds in found.items():
        factor = found["plain, fp32, 50 epochs (reckoned)"][0] / median(seconds)
        print(f"  {name:34} {median(seconds):8.2f} s ({min(seconds):.2f} to {max(seconds):.2f})  {factor:6.1f} times")
    return {"seconds": {name: found[name] for name in ("plain, fp32, 50 epochs (reckoned)", "shipped")}}


def ceiling(options: argparse.Namespace) -> dict[str, Any]:
    """(b) The inner loop's FLOP/s, those of its convolutions one by one, and of the best of them."""
    model = model_of(options.width).requires_grad_(False).to(memory_format=torch.channels_last)
    pixels = torch.rand(128, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(128) % CLASSES

    def inner() -> None:
        point = torch.zeros_like(pixels).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(pixels + point).float(), labels)
        torch.autograd.grad(loss, point)

    counter = FlopCounterMode(display=False)
    with counter:
        inner()
    shapes: list[tuple[nn.Conv2d, tuple[int, ...]]] = []
    handles = [
        module.register_forward_hook(lambda layer, inputs, _: shapes.append((layer, tuple(inputs[0].shape))))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(pixels[:1])
    for handle in handles:
        handle.remove()
    alone = {
        f"{layer.in_channels} to {layer.out_channels}, {layer.kernel_size[0]}x{layer.kernel_size[0]}, "
        f"stride {layer.stride[0]}, {shape[2]} pixels": _both_ways(layer, (128, *shape[1:]))
        for layer, shape in shapes
    }
    work = {name: _flops(run) for name, run in alone.items()}
    found = turns({"the inner loop": inner, **alone}, options.rounds + 2)
    rates = {name: work.get(name, counter.get_total_flops()) / median(times[2:]) for name, times in found.items()}
    best = max(rate for name, rate in rates.items() if name in alone)
    for name, rate in rates.items():
        print(f"  {name:44} {rate / 1e9:8.1f} GFLOP/s, {100 * rate / best:5.1f} % of the best convolution")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        inner()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    shares = {event.key: event.self_cpu_time_total / total for event in events[:12]}
    for name, share in shares.items():
        print(f"  {100 * share:5.1f} % of the time in {name}")
    return {"flops_per_second": rates, "shares": shares}


def _both_ways(layer: nn.Conv2d, shape: tuple[int, ...]) -> Callable[[], object]:
    """One convolution forwards and backwards to its input, in bf16 and channels_last."""
    features = torch.rand(shape).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = layer.weight.detach().bfloat16().contiguous(memory_format=torch.channels_last)
    out = F.conv2d(features, weight, None, layer.stride, layer.padding)

    def run() -> Tensor:
        point = features.detach().requires_grad_()
        result = F.conv2d(point, weight, None, layer.stride, layer.padding)
        return torch.autograd.grad(result, point, torch.ones_like(out))[0]

    return run


def _flops(run: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """(d) One epoch of the shipped NPD: images, width and size, one at a time."""
    settings = replace(NPD(precision="bf16"), epochs=1)
    cases = [(count, 16, 32) for count in (250, 500, 1000, 2500, 5000)]
    cases += [(1000, width, 32) for width in (32, 64)] + [(1000, 16, 64)]
    found = {}
    for count, width, size in cases:
        model, clean = model_of(width), images_of(count, size)
        seconds = turns({"": lambda m=model, c=clean: settings.repair(m, c, seed=0)}, options.rounds)[""]  # type: ignore[misc]
        found[f"{count} images, width {width}, {size} pixels"] = seconds
        print(f"  {count:5} images, width {width}, {size} pixels: {median(seconds):7.2f} s an epoch", flush=True)
    return {"seconds": found}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """(e) The peak of a process that purifies for one epoch: small width, few images, all of them at full width."""
    found = {}
    for width, images in ((16, options.images), (options.width, options.images // 5), (options.width, options.images)):
        name = f"{images} images, width {width}, {options.size} pixels"
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found[name] = fresh.submit(peak, width, images, options.size).result()
        print(f"  {name}: peak {found[name]:.0f} MiB", flush=True)
    return {"peak_mib": found}


def peak(width: int, images: int, size: int) -> float:
    """The peak in MiB of this process, which purifies for one epoch."""
    replace(NPD(precision="bf16"), epochs=1).repair(model_of(width), images_of(images, size), seed=0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MEASUREMENTS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], int]] = {
    "plain": (plain, 512),
    "whole": (whole, 2500),
    "ceiling": (ceiling, 0),
    "scaling": (scaling, 0),
    "memory": (memory, 2500),
}
"""Each measurement, and the number of images it takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--images", type=int)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure, images = MEASUREMENTS[options.measurement]
    options.images = options.images or images
    setting = (
        f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{options.threads} threads, bf16 by {torch.backends.cpu.get_cpu_capability()}; width {options.width}, "
        f"{options.size} pixels, {options.rounds} rounds, seed 0"
    )
    print(f"{options.measurement}: {setting}", flush=True)
    found = measure(options)
    if options.json is not None:
        write_json(options.json, {"setting": setting, **found})


if __name__ == "__main__":
    main()
