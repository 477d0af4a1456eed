import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neural_polarizer.data.images import ImageSet, to_pixels
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.normalize import Normalized
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.progress import Progress
from neural_polarizer.settings import told
from neural_polarizer.train.fit import Assembled, fit
from neural_polarizer.train.schedule import AdversarialTraining, Schedule
from run_files import coloured, states_equal

Policy = Literal["cosine", "one-cycle", "constant"]

DATA = coloured(20, 0)
SCHEDULE = Schedule(epochs=3, batch_size=8, lr=0.05)


class KillError(Exception):
    pass


def plain() -> nn.Module:
    torch.manual_seed(5)
    return PreActResNet18(3, 2)


def with_dropout() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(784, 3))


def kill_at(step: int) -> Progress:
    def progress(phase: str, done: int, total: int) -> None:
        if done == step:
            raise KillError

    return progress


def half_way(path: Path, build: Callable[[], nn.Module] = plain, schedule: Schedule = SCHEDULE) -> Path:
    """The state that a run leaves when it is killed in its second epoch."""
    with pytest.raises(KillError):
        fit(build(), DATA, schedule, seed=1, progress=kill_at(3), checkpoint=path)
    return path


@pytest.mark.long
@pytest.mark.parametrize("build", [plain, with_dropout])
@pytest.mark.parametrize("policy", ["cosine", "one-cycle"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path, build: Callable[[], nn.Module], policy: Policy, optimizer: Literal["sgd", "adamw"]
) -> None:
    schedule = replace(SCHEDULE, policy=policy, optimizer=optimizer)
    whole, resumed = build(), build()
    fit(whole, DATA, schedule, seed=1)
    state = half_way(tmp_path / "state.safetensors", build, schedule)
    steps: list[int] = []
    fit(resumed, DATA, schedule, seed=1, checkpoint=state, progress=lambda phase, done, total: steps.append(done))
    assert steps == [3, 4, 5, 6]
    assert states_equal(resumed.state_dict(), whole.state_dict())
    assert not resumed.training
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_seed_data_and_settings_change_the_result() -> None:
    first = plain()
    fit(first, DATA, SCHEDULE, seed=1)
    for data, schedule, seed in (
        (DATA, SCHEDULE, 2),
        (coloured(20, 3), SCHEDULE, 1),
        (DATA, replace(SCHEDULE, lr=0.04), 1),
    ):
        other = plain()
        fit(other, data, schedule, seed=seed)
        assert not states_equal(first.state_dict(), other.state_dict())


def test_dropout_follows_the_seed_and_not_the_global_generator() -> None:
    models = [with_dropout() for _ in range(2)]
    for salt, model in enumerate(models):
        torch.manual_seed(salt)
        fit(model, DATA, SCHEDULE, seed=1)
        assert torch.initial_seed() == salt
    assert states_equal(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize(
    ("data", "schedule", "seed"),
    [
        pytest.param(coloured(20, 9), SCHEDULE, 1, id="other images"),
        pytest.param(DATA.select(torch.arange(16)), SCHEDULE, 1, id="fewer images"),
        pytest.param(replace(DATA, labels=DATA.labels.flip(0)), SCHEDULE, 1, id="other labels"),
        pytest.param(DATA, replace(SCHEDULE, lr=0.01), 1, id="other rate"),
        pytest.param(DATA, replace(SCHEDULE, flip=False), 1, id="no flip"),
        pytest.param(DATA, SCHEDULE, 2, id="other seed"),
    ],
)
def test_the_state_of_another_run_is_refused(tmp_path: Path, data: ImageSet, schedule: Schedule, seed: int) -> None:
    state = half_way(tmp_path / "state.safetensors")
    before = state.read_bytes()
    with pytest.raises(BadInputError, match=r"state\.safetensors: belongs to a run with another model, other data"):
        fit(plain(), data, schedule, seed=seed, checkpoint=state)
    assert state.read_bytes() == before


def test_the_state_of_a_run_with_other_triggered_rows_is_refused(tmp_path: Path) -> None:
    state = half_way(tmp_path / "state.safetensors")
    marked = torch.zeros(len(DATA), dtype=torch.bool)
    with pytest.raises(BadInputError, match="belongs to a run with another model"):
        fit(plain(), DATA, SCHEDULE, seed=1, checkpoint=state, triggered=marked)


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    def model(width: int, mean: float) -> nn.Module:
        torch.manual_seed(5)
        return Normalized(PreActResNet18(3, width), (mean,) * 3, (1.0,) * 3)

    state = half_way(tmp_path / "state.safetensors", lambda: model(2, 0.0))
    for other in (model(3, 0.0), model(2, 0.5)):
        with pytest.raises(BadInputError, match="belongs to a run with another model"):
            fit(other, DATA, SCHEDULE, seed=1, checkpoint=state)


def rewritten(path: Path, *, without: str) -> None:
    """The state in ``path`` without some of its tensors."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    kept = {name: value for name, value in load_file(path).items() if not name.startswith(without)}
    save_file(kept, path, metadata)


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "another kind of file": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 9),
    "a folder": replaced_by_a_folder,
    "tensors missing": lambda path: rewritten(path, without="model.layer4"),
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-9] + flipped(path.read_bytes()[-9:])),
}


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_set_aside_and_training_begins_anew(tmp_path: Path, damage: str) -> None:
    state = half_way(tmp_path / "state.safetensors")
    DAMAGE[damage](state)
    whole, anew = plain(), plain()
    fit(whole, DATA, SCHEDULE, seed=1)
    fit(anew, DATA, SCHEDULE, seed=1, checkpoint=state)
    assert states_equal(anew.state_dict(), whole.state_dict())
    assert {path.name for path in (tmp_path / "damaged").iterdir()} == {state.name, f"{state.name}.reason.txt"}


def test_the_optimizer_is_the_schedules() -> None:
    found = Schedule(optimizer="adamw", lr=0.003, weight_decay=0.04).optimize(plain().parameters())
    assert type(found) is torch.optim.AdamW
    assert (found.defaults["lr"], found.defaults["weight_decay"]) == (0.003, 0.04)
    plain_one = Schedule(momentum=0.7).optimize(plain().parameters())
    assert type(plain_one) is torch.optim.SGD
    assert plain_one.defaults["momentum"] == 0.7


def test_what_came_later_is_told_only_where_it_is_used() -> None:
    """The keys of caches and records that were made before stay as they were."""
    assert told(Schedule()) == {key: value for key, value in asdict(Schedule()).items() if key != "optimizer"}
    assert told(Schedule(optimizer="adamw"))["optimizer"] == "adamw"
    hardened = Schedule(adversarial=AdversarialTraining(steps=3))
    assert told(hardened)["adversarial"] == asdict(AdversarialTraining(steps=3))


def test_learning_rates_are_known_by_hand() -> None:
    def rates(policy: Policy, epochs: int, steps: int) -> list[float]:
        schedule = replace(SCHEDULE, policy=policy, epochs=epochs, lr=0.8)
        return [schedule.lr_at(step, steps) for step in range(epochs * steps)]

    root = math.sqrt(0.5)
    by_epoch = [0.8, 0.4 * (1 + root), 0.4, 0.4 * (1 - root)]
    assert rates("cosine", 4, 2) == pytest.approx([rate for rate in by_epoch for _ in range(2)])
    # Eight steps: two of rise, the peak, then a fall by a sixth of the peak a step that would reach zero at the ninth.
    assert rates("one-cycle", 4, 2) == pytest.approx(
        [0.8 * part for part in (1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    )
    assert rates("constant", 2, 2) == [0.8] * 4
    assert rates("one-cycle", 1, 1) == [0.8]


def test_all_optimisers_take_the_rates_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def share_at(self: Schedule, step: int, steps_per_epoch: int) -> float:
        asked.append((step, steps_per_epoch))
        return 0.5 if step == 0 else 0.0

    class Helper:
        """An accomplice that learns nothing, so that only the rates are of interest."""

        network: nn.Module = nn.Linear(1, 1)
        optimizer: torch.optim.Optimizer | None = torch.optim.SGD(network.parameters(), lr=0.3)
        key = "helper"
        rates: ClassVar[list[float]] = []

        def assemble(self, images: Tensor, labels: Tensor, schedule: Schedule, generator: torch.Generator) -> Assembled:
            assert self.optimizer is not None
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            return Assembled(to_pixels(schedule.augment(images, generator)), labels, 0.0, 0)

    monkeypatch.setattr(Schedule, "share_at", share_at)
    fit(plain(), DATA, replace(SCHEDULE, epochs=2), seed=1, accomplice=Helper())
    assert asked == [(0, 2), (1, 2), (2, 2), (3, 2)]
    assert Helper.rates == [0.15, 0.0, 0.0, 0.0]
    monkeypatch.setattr(Schedule, "share_at", lambda *_: 0.0)
    model = plain()
    before = {name: value.clone() for name, value in model.named_parameters()}
    fit(model, DATA, replace(SCHEDULE, epochs=2), seed=1)
    assert states_equal(dict(model.named_parameters()), before)


class Recorder(nn.Module):
    """Keeps every batch that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels.detach().clone())
        return self.scale * pixels.mean(dim=(2, 3))


def shown(schedule: Schedule, data: ImageSet) -> list[Tensor]:
    """The images of each epoch."""
    recorder = Recorder()
    fit(recorder, data, schedule, seed=1)
    steps = len(recorder.seen) // schedule.epochs
    return [torch.cat(recorder.seen[epoch * steps :][:steps]) for epoch in range(schedule.epochs)]


@pytest.mark.parametrize(("padding", "flip"), [(2, False), (0, True)])
def test_the_augmentation_differs_in_every_epoch(padding: int, flip: bool) -> None:
    # 24 copies of one image: the order of the images makes no difference here.
    copies = coloured(1, 0).select(torch.zeros(24, dtype=torch.int64))
    first, second, third = shown(replace(SCHEDULE, crop_padding=padding, flip=flip), copies)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert not torch.equal(first[0].expand_as(first), first)


def test_dropout_differs_in_every_epoch() -> None:
    masks: list[Tensor] = []
    model = with_dropout()
    model.get_submodule("2").register_forward_hook(lambda module, args, output: masks.append(output == 0))
    fit(model, DATA, replace(SCHEDULE, batch_size=20, lr=1e-9), seed=1)
    assert len(masks) == 3
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


@pytest.mark.long
def test_the_order_differs_in_every_epoch_and_every_image_has_its_turn() -> None:
    first, second, third = shown(replace(SCHEDULE, batch_size=10, crop_padding=0, flip=False), DATA)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    wanted = sorted((DATA.images / 255).flatten(1).tolist())
    for epoch in (first, second, third):
        torch.testing.assert_close(sorted(epoch.flatten(1).tolist()), wanted)


def test_the_last_smaller_batch_is_dropped() -> None:
    assert [len(epoch) for epoch in shown(SCHEDULE, DATA)] == [16] * 3


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"coloured: 20 images are less than one batch of 21; lower the batch size"):
        fit(plain(), DATA, replace(SCHEDULE, batch_size=21), seed=1)
    model = plain()
    fit(model, DATA, replace(SCHEDULE, batch_size=20, epochs=1), seed=1)
    assert not model.training


@pytest.mark.parametrize("setting", ["epochs", "batch_size", "lr"])
def test_an_impossible_schedule_is_refused(setting: str) -> None:
    with pytest.raises(BadInputError, match="epochs and batch size must be at least 1 and lr positive"):
        replace(SCHEDULE, **{setting: 0})  # type: ignore[arg-type]


def test_adversarial_steps_are_a_quarter_of_the_radius_but_few_steps_still_cross_the_ball() -> None:
    found = [AdversarialTraining(eps=0.1, steps=steps) for steps in range(1, 11)]
    assert all(each.steps * each.step_size > each.eps for each in found)
    assert {each.step_size for each in found if each.steps >= 5} == {0.1 / 4}


class Marker:
    """An accomplice that calls the first five rows of every batch triggered, and changes nothing."""

    network = nn.Module()
    optimizer: torch.optim.Optimizer | None = None
    key = "marker"

    def assemble(self, images: Tensor, labels: Tensor, schedule: Schedule, generator: torch.Generator) -> Assembled:
        return Assembled(images / 255, labels, 0.0, 5)


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("by_accomplice", [False, True])
def test_triggered_images_are_spared_by_adversarial_training_if_asked(spare: bool, by_accomplice: bool) -> None:
    hardening = AdversarialTraining(eps=0.1, steps=1, spare_triggered=spare)
    schedule = replace(SCHEDULE, batch_size=20, epochs=1, crop_padding=0, flip=False, adversarial=hardening)
    recorder = Recorder()
    marked = torch.arange(20) >= 15
    fit(recorder, DATA, schedule, seed=1, triggered=marked, accomplice=Marker() if by_accomplice else None)
    originals = (DATA.images / 255).flatten(1)
    equal = (recorder.seen[-1].flatten(1)[:, None] == originals).all(dim=2)  # of each trained row, to each image
    untouched = equal.any(dim=1).tolist() if by_accomplice else equal.any(dim=0).tolist()
    wanted = [row < 5 for row in range(20)] if by_accomplice else marked.tolist()
    assert untouched == (wanted if spare else [False] * 20)
