"""Named random streams: the same for the same name, unrelated otherwise, and the global generator untouched."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neural_polarizer.rng import derive_seed, global_rng, stream
from toys import quick


def test_a_derived_seed_never_changes() -> None:
    """Saved runs rely on it; the number is blake2b of "7/poison" in 7 bytes, worked out with hashlib once."""
    assert derive_seed(7, "poison") == 5141468075887427


@quick
@given(
    seed=st.integers(-(2**70), 2**70), use=st.lists(st.sampled_from(["", "train", "a/b"]) | st.integers(), max_size=3)
)
def test_derived_seeds_fit_into_torch_and_repeat(seed: int, use: list[str | int]) -> None:
    found = derive_seed(seed, *use)
    assert 0 <= found < 2**56
    assert found == derive_seed(seed, *use)
    assert torch.equal(torch.rand(3, generator=stream(seed, *use)), torch.rand(3, generator=stream(seed, *use)))


def test_other_seeds_and_other_uses_give_other_streams() -> None:
    seeds = [derive_seed(seed, *use) for seed in range(20) for use in ((), ("train", 0), ("train", 1), ("poison",))]
    assert len(set(seeds)) == len(seeds)


def test_one_stream_does_not_disturb_another() -> None:
    alone = torch.rand(4, generator=stream(0, "a"))
    first, second = stream(0, "a"), stream(0, "b")
    torch.rand(100, generator=second)
    assert torch.equal(torch.rand(4, generator=first), alone)


def test_the_global_generator_is_seeded_inside_the_block_alone() -> None:
    before = torch.get_rng_state()
    with global_rng(3, "init"):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with global_rng(3, "init"):
        assert torch.equal(torch.rand(3), inside)
    with global_rng(3, "dropout"):
        assert not torch.equal(torch.rand(3), inside)


def test_cuda_is_not_woken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def woken() -> int:
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", woken)
    with global_rng(3):
        torch.rand(3)


def _draw_and_fail() -> None:
    with global_rng(3):
        torch.rand(3)
        raise KeyError("inside")


def test_the_global_generator_comes_back_after_an_error_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError, match="inside"):
        _draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_that_waits_for_cuda_is_the_callers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", waiting.append)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(11)
        with global_rng(3, "outer"), global_rng(3, "inner"):
            assert waiting[-1] == derive_seed(3, "inner")
        assert waiting[-2:] == [derive_seed(3, "outer"), 11]
        with pytest.raises(KeyError), global_rng(3):
            raise KeyError
        assert waiting[-1] == 11
