"""The baselines from Python, and a defense of one's own beside them."""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from baseline_cases import BASELINES, record_in, words
from module_cases import METHODS
from neural_polarizer import BadInputError, WrongUsageError, purify
from neural_polarizer.data.images import ImageSet
from neural_polarizer.defenses import (
    DEFAULT,
    DEFENSES,
    NPD,
    Defense,
    FineTuning,
    Outcome,
    Repaired,
    Run,
    defense_class,
)
from neural_polarizer.defenses.npd.presets import VARIANTS
from neural_polarizer.model_files.load import load_model
from run_files import make_runs, run
from toys import tiny_images, tiny_model

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


CHANGES: dict[str, dict[str, Any]] = {
    **{name: changes for name, changes in METHODS.items() if name != "npd"},
    "ft-sam": {"schedule.epochs": 1},
    "fst": {"schedule.epochs": 1},
    "clp": {"deviations": 2.0},
    "rnp": {"unlearn.epochs": 1, "recover.epochs": 1},
    "sau": {"rounds": 1},
}


@pytest.mark.long
@pytest.mark.parametrize("method", CHANGES)
def test_purify_takes_every_baseline_by_name(method: str) -> None:
    model, clean = tiny_model(), tiny_images(16)
    for scale in (None, "laptop"):
        found = purify(model, clean, method, scale=scale, device="cpu", force=True, **CHANGES[method])
        assert isinstance(found, Repaired)
        assert (found.polarizer, found.site) == (None, None)
        assert found.model(clean.images / 255).shape == (16, 4)


def test_purify_takes_whole_fields_and_refuses_what_has_no_meaning() -> None:
    model, clean = tiny_model(), tiny_images(16)
    schedule = replace(FineTuning().schedule, epochs=1, batch_size=8)
    assert purify(model, clean, "ft", schedule=schedule, device="cpu", force=True).history == ()
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("ft", {"site": "after:features"}, "site makes no sense for ft"),
        ("nc", {"target": 1}, "nc takes no target"),
        ("ep", {"preset": "shipped"}, "preset"),
        ("npd", {"scale": "paper"}, "npd has presets, not scales"),
    )
    for method, options, match in cases:
        with pytest.raises(WrongUsageError, match=match):
            purify(model, clean, method, device="cpu", **options)
    with pytest.raises(BadInputError, match="a setting of FineTuning cannot be 'epochs'"):
        purify(model, clean, "ft", epochs=1, device="cpu")
    with pytest.raises(
        BadInputError, match=r"unknown method 'ftt': choose one of npd-ls, npd, .*, or give MODULE:CLASS"
    ):
        purify(model, clean, "ftt", device="cpu")


def test_the_registry_holds_every_method_and_cannot_be_changed() -> None:
    assert tuple(DEFENSES) == (DEFAULT, *VARIANTS, *BASELINES, "cnpd")
    assert all(DEFENSES[name] is NPD for name in VARIANTS)
    with pytest.raises(TypeError):
        DEFENSES["mine"] = FineTuning  # type: ignore[index]


@dataclass(frozen=True)
class Demanding(Defense):
    """A defense whose setting has no default."""

    must: int

    def _run(self, model: nn.Module, clean: ImageSet, run: Run) -> Outcome:
        raise NotImplementedError


def test_what_a_path_names_must_be_a_defense() -> None:
    assert defense_class("neural_polarizer.defenses.anp:ANP") is DEFENSES["anp"]
    for name, match in (
        ("no_such_module:Mine", "cannot load the method 'no_such_module:Mine': No module named"),
        ("neural_polarizer.defenses.anp:Mine", "has no attribute 'Mine'"),
        ("torch:Tensor", "'torch:Tensor' is not a defense: a dataclass derived from"),
        ("neural_polarizer.train.schedule:Schedule", "is not a defense"),
    ):
        with pytest.raises(BadInputError, match=match):
            defense_class(name)
    with pytest.raises(BadInputError, match="every setting of a defense needs a default"):
        purify(tiny_model(), tiny_images(8), f"{__name__}:Demanding", device="cpu")


def test_the_defense_of_the_docs_runs_from_a_file_of_ones_own(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "how-to" / "add-a-method.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my_defenses").mkdir()
    (tmp_path / "my_defenses" / "statistics_of.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    base = words("ft", runs, tmp_path / "out")
    start = len(base) - 1 - base[::-1].index("--method")
    path = "my_defenses.statistics_of:CleanStatistics"
    done = run(capsys, *base[:start], "--method", path, "--set", "passes=1", "--scale", "laptop")
    assert (done.code, done.err) == (0, "")
    record = record_in(tmp_path / "out")
    assert (record["method"], record["config"]) == (path, {"passes": 1})
    assert load_model(tmp_path / "out").record.site is None
