"""Whether a model makes sense of its images: the test against guessing, and the mistakes that are found and named."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import neural_polarizer as npz
from neural_polarizer import BadInputError, ImageSet, Normalized
from neural_polarizer.data.classes import ClassNames
from neural_polarizer.data.convert import as_image_set
from neural_polarizer.data.parquet import write_images
from neural_polarizer.data.sources import read_images
from neural_polarizer.defenses import Defense, Outcome, Run
from neural_polarizer.model_files.record import ModelRecord
from neural_polarizer.model_files.save import save_model
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.plausibility.examine import Finding, binomial_tail, examine, harm_done
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


def write_png(path: Path, pixels: Tensor) -> None:
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


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


class Called(Nearest):
    """A module whose call passes by the hooks."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.forward(pixels)


def test_a_module_with_a_call_of_its_own_is_examined_as_any_other() -> None:
    found = examine(Called(CENTRES.flip(1)), patches())
    assert found.remedy is not None
    assert found.remedy.what.startswith("with its channels in the order BGR")
    assert npz.evaluate(Called(), patches(), device="cpu").acc == 1.0


def test_what_the_message_names_is_what_helps() -> None:
    model, images, _ = MISTAKES["class order"]
    said = npz.purify  # the order that the message lists, given back as classes=
    with pytest.raises(BadInputError) as caught:
        said(model, images, "ft", device="cpu")
    order = proposed(str(caught.value))
    assert npz.evaluate(model, images, classes=order, device="cpu").acc == 1.0


def proposed(said: str) -> list[str]:
    return said.partition("in the order ")[2].partition(" (")[0].split(", ")


@pytest.mark.parametrize("own", ["pqrstu", "012345", "123456"])
@pytest.mark.parametrize("binding", [False, True])
def test_the_order_that_is_proposed_is_in_the_names_that_the_data_have(tmp_path: Path, own: str, binding: bool) -> None:
    images = rotated(patches(), 2)
    for i, label in enumerate(images.labels.tolist()):
        (tmp_path / own[label]).mkdir(exist_ok=True)
        write_png(tmp_path / own[label] / f"{i}.png", images.images[i])
    known = ClassNames(tuple("abcdef"), binding=binding and own != "pqrstu")
    read = read_images(str(tmp_path), classes=known)
    assert read.classes == tuple("abcdef")
    order = proposed(str(examine(Nearest(), read).remark))
    assert order == [own[(place + 2) % K] for place in range(K)]
    assert examine(Nearest(), read_images(str(tmp_path), classes=order)).accuracy == 1.0
    assert npz.evaluate(Nearest(), read, classes=order, device="cpu").acc == 1.0


def test_where_some_classes_have_no_images_the_numbers_of_the_others_are_proposed() -> None:
    images = patches()
    images = images.select(images.labels < 3)
    given = [(pixels, "pqr"[label]) for pixels, label in zip(images.images, images.labels.tolist(), strict=True)]
    read = as_image_set(given, classes={"q": 0, "r": 1, "p": 2})
    said = str(examine(Nearest(), read).remark)
    assert "with its classes under the numbers q: 1, r: 2, p: 0 (--classes FILE; " in said
    assert npz.evaluate(Nearest(), given, classes={"q": 1, "r": 2, "p": 0}, device="cpu").acc == 1.0


def test_labels_without_names_are_put_in_order_by_their_numbers() -> None:
    model, images, _ = MISTAKES["class order"]
    pairs = list(zip(images.images, images.labels.tolist(), strict=True))
    with pytest.raises(BadInputError) as caught:
        npz.purify(model, pairs, "ft", classes=list("abcdef"), device="cpu")
    order = proposed(str(caught.value))
    assert order == list("123450")
    assert npz.evaluate(model, pairs, classes=order, device="cpu").acc == 1.0


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


def test_the_level_tells_guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = patches(4)
    labels = images.labels.clone()
    labels[8:] = (labels[8:] + torch.arange(16) % 5 + 1) % K  # 8 of 24 are right: p = 0.03
    some = ImageSet(images.images, labels, images.classes, "some")
    assert examine(Nearest(), some).guessing
    monkeypatch.setattr("neural_polarizer.plausibility.examine.LEVEL", 0.1)
    assert not examine(Nearest(), some).guessing


def seen(hits: int, count: int) -> Finding:
    """What a model of K classes makes of so many images."""
    return Finding(
        hits=hits,
        count=count,
        num_classes=K,
        remedy=None,
        mistaken=False,
        source="images",
    )


@pytest.mark.parametrize(
    ("before", "after", "classes", "told"),
    [
        (60, 0, K, r"fell from 100\.0 % to 0\.0 %, no better than guessing among 6 classes; give more images"),
        (60, 10, K, r"to 16\.7 %, no better than guessing among 6 classes"),
        (60, 29, K, r"fell from 100\.0 % to 48\.3 %; give more images, of every class"),
        (60, 0, 1, r"no better than guessing among 6 classes; they have 1 of 6 classes: give more images"),
        (60, 31, K, None),
        (30, 30, K, None),
    ],
)
def test_a_repair_that_ruined_the_model_is_told_with_both_accuracies(
    before: int, after: int, classes: int, told: str | None
) -> None:
    said = harm_done(seen(before, 60), after, classes)
    assert said is None if told is None else said is not None and re.search(f"do not use the result: .*{told}", said)


def test_no_harm_is_told_of_a_model_that_was_guessing_before() -> None:
    finding = examine(Nearest(torch.full_like(CENTRES, 0.5)), patches())
    assert finding.hits == 10
    assert harm_done(finding, 0, K) is None


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


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("fitted"))


@pytest.mark.long
def test_the_command_stops_names_the_remedy_and_goes_on_by_force(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, good, bad = fitted, tmp_path / "good.parquet", tmp_path / "bad.parquet"
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


@dataclass(frozen=True, kw_only=True)
class Forgets(Defense):
    """Makes a network say the last class of all images."""

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        with torch.no_grad():
            for each in model.parameters():
                each.zero_()
            next(each for each in reversed(list(model.modules())) if isinstance(each, nn.Linear)).bias[-1] = 1
        return Outcome(model, notes=("a note of its own",))


@dataclass(frozen=True, kw_only=True)
class Keeps(Defense):
    """Does nothing."""

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        return Outcome(model)


@pytest.mark.long
def test_a_ruined_model_is_the_first_warning_of_any_method(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clean = fitted, tmp_path / "clean.parquet"
    images = patches()
    one_class = images.select(images.labels == 0)
    write_images(clean, one_class)
    words = ("purify", model, "--clean", clean, "--device", "cpu", "--out")
    done = run(capsys, *words, tmp_path / "a", "--method", f"{__name__}:Forgets")
    first = json.loads((tmp_path / "a" / "run.json").read_text())["warnings"][0]
    assert done.code == 0
    assert first.startswith("do not use the result: accuracy on the clean images fell from 100.0 % to 0.0 %, no better")
    assert "they have 1 of 6 classes" in first
    assert " ".join(done.out.split()).partition("warning: ")[2].startswith(first)
    assert first in " ".join((tmp_path / "a" / "report.html").read_text().split())
    kept = run(capsys, *words, tmp_path / "b", "--method", f"{__name__}:Keeps")
    assert "do not use" not in kept.out
    assert "5 of 6 classes have no clean image" in kept.out
    found = npz.purify(npz.load(model), one_class, Forgets(), device="cpu")
    assert found.notes[:2] == (first, "a note of its own")


@pytest.mark.long
@pytest.mark.parametrize("method", ["anp", "ep", "i-bau"])
def test_clean_images_of_one_class_give_no_ruined_model_without_a_word(fitted: Path, method: str) -> None:
    images = patches()
    one_class, model = images.select(images.labels == 2), npz.load(fitted)
    settings: dict[str, Any] = {"iterations": 20} if method == "anp" else {}
    found = npz.purify(model, one_class, method, scale="laptop", device="cpu", **settings)
    assert found.clean_acc is not None
    assert (found.clean_acc[1] < 0.5) == found.notes[0].startswith("do not use the result")
    told = "5 of 6 classes have no clean image, so accuracy on them is not protected; that on the clean images shows no"
    assert any(note.startswith(told) for note in found.notes)
