"""How long the default method takes, and how much memory, by phase.

    python benchmarks/stand_ins_speed.py preactresnet18:16 --images 2500 --threads 1
    python benchmarks/stand_ins_speed.py torchvision:resnet50 --size 224 --classes 1000 --images 32 --one-pass

Weights and smooth pictures are random.  The head's biases are such that no class is preferred, and an image's label is
what the network answers, so that the guard has something to lose.  preactresnet18:W is of width W.
With --one-pass only one pass of all images forwards and backwards is timed, as a search in pixels makes many.
"""

import argparse
import resource
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import neural_polarizer as npz
from neural_polarizer.data.images import ImageSet
from neural_polarizer.devices import choose_precision
from neural_polarizer.models.build import build


def pictures(count: int, size: int) -> Tensor:
    """Smooth ones, uint8."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = [F.interpolate(part, size=(size, size), mode="bilinear") for part in coarse.split(100)]
    return torch.cat([(255 * part).to(torch.uint8) for part in parts])


@torch.no_grad()
def balanced(model: nn.Module, images: Tensor) -> Tensor:
    """Give batch norms the pictures' statistics and the head biases without a preference; the network's answers."""
    model.train()
    for part in images[:256].split(32):
        model(part.float() / 255)
    model.eval()
    logits = torch.cat([model(part.float() / 255) for part in images.split(32)])
    head = [each for each in model.modules() if isinstance(each, nn.Linear)][-1]
    head.bias.sub_(logits.mean(dim=0))
    return (logits - logits.mean(dim=0)).argmax(dim=1)


def memory() -> str:
    """The peak of this process; Linux counts in kB."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most"


def one_pass(model: nn.Module, images: Tensor) -> float:
    """Seconds of a pass forwards and backwards to the pixels, the mean of two after one that is not timed."""
    model = model.requires_grad_(False).to(memory_format=torch.channels_last)
    half = choose_precision(torch.device("cpu")) == "bf16"
    pixels = (images.float() / 255).contiguous(memory_format=torch.channels_last).requires_grad_()
    started = 0.0
    for turn in range(3):
        started = time.perf_counter() if turn == 1 else started
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(pixels)
        torch.autograd.grad(logits.float().logsumexp(dim=1).sum(), pixels)
    return (time.perf_counter() - started) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one-pass", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    name, width = options.network, None
    if name.startswith("preactresnet18:"):
        name, width = name.split(":")
    model = build(name, options.classes, width=int(width) if width else None)
    images = pictures(options.images, options.size)
    if options.one_pass:
        seconds = one_pass(model.eval(), images)
        print(f"{1000 * seconds / len(images):.0f} ms an image, {memory()}")
        return
    labels = balanced(model, images)
    clean = ImageSet(images, labels, tuple(map(str, range(options.classes))), "random pictures")
    method = npz.LeastStandIns(precision=choose_precision(torch.device("cpu")))
    started = time.perf_counter()
    purified = npz.purify(model, clean, method, seed=0, force=True)
    seconds = time.perf_counter() - started
    print(
        f"{seconds:.0f} s in all, {method.precision}:", ", ".join(f"{k} {v:.0f}" for k, v in purified.seconds.items())
    )
    print(f"{memory()}; {purified.notes}")


if __name__ == "__main__":
    main()
