"""ACC, ASR, RA and DER: by hand, and with everything about the model as it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from neural_polarizer.attacks import BadNets
from neural_polarizer.data.images import ImageSet
from neural_polarizer.data.poison import TriggeredSet
from neural_polarizer.errors import BadInputError
from neural_polarizer.metrics import Metrics, defense_effectiveness, evaluate, predict
from toys import TinyNet, made, quick, snapshot, tiny_images, tiny_model


class Reader(nn.Module):
    """Classifies an image as the value of its first pixel; ``num_classes`` logits."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.drop = nn.Dropout(1.0)  # in training mode every answer would be 0

    def forward(self, pixels: Tensor) -> Tensor:
        classes = (pixels[:, 0, 0, 0] * 255).round().long()
        return self.drop(nn.functional.one_hot(classes, self.num_classes).float() + 0.5)


def _told(answers: list[int], labels: list[int], num_classes: int = 4) -> ImageSet:
    """Images that a Reader classifies as ``answers``."""
    images = torch.zeros(len(answers), 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(answers, dtype=torch.uint8)
    return ImageSet(images, torch.tensor(labels), tuple(str(k) for k in range(num_classes)), "told")


def test_acc_asr_and_ra_by_hand() -> None:
    test = _told([0, 1, 2, 0], [0, 1, 2, 3])
    triggered = TriggeredSet(_told([0, 0, 2, 3, 1], [0] * 5), torch.tensor([1, 2, 2, 3, 3]))
    found = evaluate(Reader(), test, triggered)
    assert found == Metrics(acc=3 / 4, asr=2 / 5, ra=2 / 5, n_test=4, n_triggered=5)


def test_all_to_one_leaves_the_target_class_out_and_all_to_all_nothing() -> None:
    to_one = TriggeredSet(_told([0, 0, 0, 1], [0, 0, 0, 0]), torch.tensor([0, 0, 1, 2]))
    assert evaluate(Reader(), None, to_one) == Metrics(asr=1 / 2, ra=0.0, n_triggered=2)
    to_all = TriggeredSet(_told([1, 2, 3, 0], [1, 2, 3, 0]), torch.tensor([0, 1, 2, 3]))
    assert evaluate(Reader(), None, to_all) == Metrics(asr=1.0, ra=0.0, n_triggered=4)


def test_without_triggered_images_there_is_no_asr() -> None:
    assert evaluate(Reader(), _told([0, 1], [0, 0])) == Metrics(acc=0.5, n_test=2)
    assert evaluate(Reader()) == Metrics()


def test_predictions_do_not_depend_on_the_batch_size_and_every_batch_is_told() -> None:
    images, told = _told([3, 1, 2, 0, 1], [0] * 5), []
    for size in (1, 2, 5, 100):
        assert predict(Reader(), images, batch_size=size).tolist() == [3, 1, 2, 0, 1]
    predict(Reader(), images, batch_size=2, progress=lambda *step: told.append(step))
    assert told == [("evaluate", 1, 3), ("evaluate", 2, 3), ("evaluate", 3, 3)]


def test_the_model_comes_back_as_it_was() -> None:
    model, images = tiny_model(), tiny_images(8)
    model.train()
    model.get_submodule("network.features.1").eval()
    before = snapshot(model)
    evaluate(model, images, BadNets(size=2).triggered(images))
    after = snapshot(model)
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert all(not parameter.is_meta and parameter.device.type == "cpu" for parameter in model.parameters())


def test_the_model_comes_back_as_it_was_after_an_error_too() -> None:
    model = tiny_model().train()
    wrong = ImageSet(torch.zeros(2, 5, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",), "five")
    before = snapshot(model)[1:]
    with pytest.raises(RuntimeError, match=r"size of tensor|channels"):
        evaluate(model, wrong)
    assert snapshot(model)[1:] == before
    with pytest.raises(BadInputError):
        evaluate(model, tiny_images(10, num_classes=5))
    assert snapshot(model)[1:] == before


def test_a_copy_computes_on_another_device() -> None:
    """The meta device stands for the accelerator a test cannot count on."""
    moved: list[tuple[nn.Module, str]] = []

    class Traveller(Reader):
        def to(self, *args: object, **kwargs: object) -> "Traveller":
            moved.append((self, str(args[0])))
            return self

    model = Traveller()
    evaluate(model, _told([1], [1]), device="cpu")
    assert moved == []
    model.register_buffer("home", torch.zeros(1, device="meta"))
    evaluate(model, _told([1], [1]), device="cpu")
    ((other, device),) = moved
    assert (other is model, device) == (False, "cpu")


def test_no_gradients_are_recorded() -> None:
    model, recorded = made(TinyNet()), []
    model.register_forward_hook(lambda _m, _x, out: recorded.append(out.requires_grad))
    evaluate(model, tiny_images(4))
    assert recorded == [False]


class Answers(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)[:, :2].argmax(1, keepdim=True).expand(-1, 2)


@pytest.mark.parametrize(
    ("model", "images", "match"),
    [
        (Reader(3), _told([0, 0], [0, 3]), r"told: has label 3, but the model's output is \(2, 3\); it needs N x K"),
        (Reader(3), _told([0, 0], [1, 3]), "they seem to be counted from 1: subtract 1"),
        (nn.Identity(), _told([0, 0], [0, 0]), r"the model's output is \(2, 3, 2, 2\)"),
        (Answers(), _told([0, 0], [0, 1]), "it gives int64 numbers, as after argmax"),
    ],
)
def test_a_model_with_too_few_classes_is_refused(model: nn.Module, images: ImageSet, match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        evaluate(model, images)


def test_empty_sets_are_refused() -> None:
    with pytest.raises(BadInputError, match="told: the test set is empty"):
        evaluate(Reader(), _told([0], [0]).select(torch.arange(0)))
    with pytest.raises(BadInputError, match="told: no triggered image has a poison label of its own"):
        evaluate(Reader(), None, TriggeredSet(_told([0], [0]), torch.tensor([0])))


def test_nothing_to_predict_gives_no_predictions() -> None:
    assert predict(Reader(), _told([0], [0]).select(torch.arange(0))).tolist() == []


def _rates(acc: float, asr: float) -> Metrics:
    return Metrics(acc=acc, asr=asr)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9182, 0.9379), (0.9177, 0.0084), 0.9645),  # paper, Table 1, BadNets-A2O: FP
        ((0.9182, 0.9379), (0.8743, 0.0448), 0.9246),  # paper, Table 1, BadNets-A2O: i-BAU
        ((0.9182, 0.9379), (0.9182, 0.9379), 0.5),
        ((1.0, 1.0), (1.0, 0.0), 1.0),
        ((1.0, 0.0), (0.0, 1.0), 0.0),
        ((0.9, 0.5), (0.95, 0.5), 0.5),  # a rise in accuracy earns nothing
    ],
)
def test_defense_effectiveness_by_hand(
    before: tuple[float, float], after: tuple[float, float], expected: float
) -> None:
    assert defense_effectiveness(_rates(*before), _rates(*after)) == pytest.approx(expected, abs=5.1e-5)


RATES = st.floats(0.0, 1.0)


@quick
@given(acc=RATES, asr=RATES, acc_after=RATES, asr_after=RATES)
def test_a_rise_of_asr_costs_nothing_and_effectiveness_stays_in_range(
    acc: float, asr: float, acc_after: float, asr_after: float
) -> None:
    found = defense_effectiveness(_rates(acc, asr), _rates(acc_after, asr_after))
    assert found is not None
    assert 0 <= found <= 1
    assert found >= (1 - max(0.0, acc - acc_after)) / 2
    assert defense_effectiveness(_rates(acc, asr), _rates(acc, asr)) == 0.5


def test_no_effectiveness_without_all_four_rates() -> None:
    full = _rates(0.9, 0.9)
    for gap in (Metrics(acc=0.9), Metrics(asr=0.9)):
        assert defense_effectiveness(full, gap) is None
        assert defense_effectiveness(gap, full) is None
