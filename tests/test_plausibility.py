"""Whether a model makes sense of its images: the test against guessing, and the mistakes that are found and named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neural_polarizer as npz
from neural_polarizer import BadInputError, ImageSet, Normalized
from neural_polarizer.data.parquet import write_images
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.plausibility import Rules, binomial_tail, examine
from run_files import run

K = 6
CENTRES = torch.tensor(
    [[0.9, 0.2, 0.1], [0.1, 0.8, 0.3], [0.2, 0.1, 0.7], [0.7, 0.6, 0.0], [0.0, 0.5, 0.6], [0.6, 0.0, 0.5]]
)

GREYS = torch.tensor([0.05, 0.2, 0.35, 0.5, 0.65, 0.8])[:, None].expand(-1, 3)


class Nearest(nn.Module):
    """The class whose colour is nearest to the image's mean colour; it wants its pixels as they are."""

    def __init__(self, centres: Tensor = CENTRES) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres.clone())

    def forward(self, pixels: Tensor) -> Tensor:
        return -((pixels.mean(dim=(2, 3))[:, None] - self.centres) ** 2).sum(dim=2) * 20


def patches(each: int = 10, centres: Tensor = CENTRES) -> ImageSet:
    labels = torch.arange(K * each) % K
    noise = torch.rand(len(labels), 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    pixels = (centres[labels][:, :, None, None] + noise).clamp(0, 1)
    return ImageSet((pixels * 255).round().to(torch.uint8), labels, tuple("abcdef"), "patches")


@pytest.mark.parametrize(
    ("hits", "count", "share"), [(0, 5, 0.3), (1, 5, 0.3), (4, 9, 0.5), (9, 9, 0.1), (7, 40, 1 / 12)]
)
def test_the_tail_of_the_binomial_is_the_sum_of_its_terms(hits: int, count: int, share: float) -> None:
    terms = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits, count + 1)]
    assert binomial_tail(hits, count, share) == pytest.approx(sum(terms), rel=1e-9)


def test_a_good_model_is_let_through_without_a_word() -> None:
    found = examine(Nearest(), patches())
    assert (found.accuracy, found.num_classes, found.remark, found.meaningless) == (1.0, K, None, False)


def rotated(images: ImageSet, by: int) -> ImageSet:
    order = [(label + by) % K for label in range(K)]
    return ImageSet(images.images, torch.tensor(order)[images.labels], images.classes, images.source)


MISTAKES: dict[str, tuple[nn.Module, ImageSet, str]] = {
    "normalised network": (
        nn.Sequential(Normalized(nn.Identity(), (0.0,) * 3, (1.0,) * 3), Nearest((GREYS - 0.5) / 0.5)),
        patches(centres=GREYS),
        r"with --profile 0.5/0.5 \(Python: Normalized\(model, .*\) it would be 100\.0 %",
    ),
    "plain network": (
        Nearest((GREYS - 0.5) / 0.5),
        patches(centres=GREYS),
        r"with --profile 0.5/0.5 .* it would be 100\.0 %",
    ),
    "network of 0 to 255": (Nearest(CENTRES * 255), patches(), r"with --profile 0/0.003921569 .* 100\.0 %"),
    "normalised twice": (
        Normalized(Nearest(GREYS), (0.5,) * 3, (0.1,) * 3),
        patches(centres=GREYS),
        r"with --profile none .* it would be 100\.0 %",
    ),
    "BGR": (Nearest(CENTRES.flip(1)), patches(), r"with its channels in the order BGR .* it would be 100\.0 %"),
    "class order": (
        Nearest(),
        rotated(patches(), 1),
        r"with its classes in the order b, c, d, e, f, a \(--classes FILE; .*\) it would be 100\.0 %",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_mistake_is_named_with_the_accuracy_without_it(name: str) -> None:
    model, images, told = MISTAKES[name]
    found = examine(model, images)
    assert found.meaningless
    with pytest.raises(BadInputError, match=rf"patches: the model classifies only .*{told}; --force"):
        found.require_sense()


def test_what_the_message_names_is_what_helps() -> None:
    model, images, _ = MISTAKES["class order"]
    said = npz.purify  # the order that the message lists, given back as classes=
    with pytest.raises(BadInputError) as caught:
        said(model, images, "ft", device="cpu")
    order = str(caught.value).partition("in the order ")[2].partition(" (")[0].split(", ")
    assert npz.evaluate(model, images, classes=order, device="cpu").acc == 1.0


def test_a_model_that_knows_nothing_is_stopped_with_the_likely_causes() -> None:
    found = examine(Nearest(torch.full_like(CENTRES, 0.5)), patches())
    assert found.guessing
    assert found.remedy is None
    with pytest.raises(BadInputError, match=r"10 of 60 .*\(16\.7 %\), no better than guessing among 6 .*likely causes"):
        found.require_sense()


def test_a_matching_of_classes_that_only_fits_these_images_by_chance_is_not_offered() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        images = patches(3)
        chance = ImageSet(
            images.images, torch.randint(K, (len(images),), generator=generator), images.classes, "chance"
        )
        assert examine(Nearest(), chance).remedy is None


def test_few_images_decide_nothing_and_a_mediocre_model_is_no_guess() -> None:
    one = patches().select(torch.tensor([0]))
    wrong = ImageSet(one.images, torch.tensor([1]), one.classes, "one")
    assert not examine(Nearest(), wrong).meaningless
    images = patches()
    half = torch.where(torch.arange(60) % 2 == 0, images.labels, torch.randint(K, (60,)))
    found = examine(Nearest(), ImageSet(images.images, half, images.classes, "half"))
    assert not found.meaningless


def test_the_level_is_a_setting() -> None:
    images = patches(4)
    labels = images.labels.clone()
    labels[8:] = (labels[8:] + torch.arange(16) % 5 + 1) % K  # 8 of 24 are right: p = 0.03
    some = ImageSet(images.images, labels, images.classes, "some")
    assert examine(Nearest(), some, rules=Rules(level=0.01)).guessing
    assert not examine(Nearest(), some, rules=Rules(level=0.1)).guessing


# --- in the commands and in Python -----------------------------------------------------------------------------------


def model_file(folder: Path) -> Path:
    """A PreAct-ResNet18 of width 4, fitted to the patches."""
    torch.manual_seed(0)
    network = PreActResNet18(K, 4)
    model = Normalized(network, (0.0,) * 3, (1.0,) * 3).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    images = patches()
    model.train()
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.images / 255), images.labels).backward()
        optimizer.step()
    record = ModelRecord(architecture="preactresnet18", num_classes=K, width=4)
    save_model(folder / "model.safetensors", model.eval(), record)
    assert examine(model, images).accuracy > 0.95
    return folder / "model.safetensors"


def test_the_command_stops_names_the_remedy_and_goes_on_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, good, bad = model_file(tmp_path), tmp_path / "good.parquet", tmp_path / "bad.parquet"
    write_images(good, patches())
    write_images(bad, rotated(patches(), 2))
    words: tuple[Any, ...] = ("--method", "ft", "--epochs", 1, "--device", "cpu", "--precision", "fp32")
    stopped = run(capsys, "purify", model, "--clean", bad, "--out", tmp_path / "a", *words)
    assert stopped.code == 3
    assert "in the order c, d, e, f, a, b (--classes FILE" in " ".join(stopped.err.split())
    assert stopped.err.count("\n") == 1
    assert not (tmp_path / "a").exists()
    forced = run(capsys, "purify", model, "--clean", bad, "--out", tmp_path / "a", "--force", *words)
    assert forced.code == 0
    assert "classifies only" in forced.out
    (tmp_path / "order.txt").write_text("\n".join("cdefab"))
    helped = run(
        capsys, "purify", model, "--clean", bad, "--out", tmp_path / "b", "--classes", tmp_path / "order.txt", *words
    )
    assert (helped.code, helped.err) == (0, "")
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["clean_acc"]["before"] > 0.95
    assert 0 <= record["clean_acc"]["after"] <= 1
    assert "clean" in helped.out
    assert "Accuracy on the clean images given" in (tmp_path / "b" / "report.html").read_text()
    told = run(capsys, "evaluate", model, "--test", bad, "--device", "cpu")
    assert told.code == 0
    assert "with its classes in the order" in " ".join(told.out.split())
    assert "classifies only" not in run(capsys, "evaluate", model, "--test", good, "--device", "cpu").out


def test_python_stops_likewise_and_says_so_in_the_notes_by_force() -> None:
    model, images, _ = MISTAKES["BGR"]
    options: dict[str, Any] = {"schedule.epochs": 1, "device": "cpu"}
    with pytest.raises(BadInputError, match=r"order BGR .*force=True"):
        npz.purify(model, images, "ft", **options)
    found = npz.purify(model, images, "ft", force=True, **options)
    assert any("order BGR" in note for note in found.notes)
    assert found.clean_acc is not None
    assert found.clean_acc[0] < 0.5
