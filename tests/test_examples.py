"""The examples do what they say, on data small enough for that."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

import neural_polarizer as npz
from neural_polarizer.data.parquet import write_images
from run_files import coloured, run

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module, under the name that the command line knows it by."""
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def shades(count: int, seed: int) -> npz.ImageSet:
    """Ten classes of flat, slightly noisy images, from dark to bright."""
    labels = torch.arange(count) % 10
    noise = torch.randint(8, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    images = (labels[:, None, None, None] * 24 + noise).to(torch.uint8)
    return npz.ImageSet(images, labels, tuple("0123456789"), "shades")


def test_examples_fit_on_a_page() -> None:
    files = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".toml"))
    assert len(files) == 5
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) >= 60] == []


@pytest.mark.long
def test_purify_torchvision(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = coloured(320, 0, (32, 32)), coloured(60, 1, (32, 32))
    purified = example("purify_torchvision", monkeypatch).main(train, test, epochs=6, method="npd")
    assert purified.polarizer is not None
    before, after = capsys.readouterr().out.splitlines()[:2]
    assert before.startswith("before: accuracy ")
    assert "trigger works on" in after


@pytest.mark.long
def test_audit_without_trigger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_images(tmp_path / "clean.parquet", shades(100, 1))
    module = example("audit_without_trigger", monkeypatch)
    verdict = module.main(shades(320, 0), tmp_path / "out", epochs=8, clean=str(tmp_path / "clean.parquet"))
    assert verdict["verdict"] in {"backdoor", "cannot say", "none seen"}
    assert len(verdict["what_now"]) == 3
    assert (tmp_path / "out" / "audit" / "report.html").exists()


def test_new_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("new_attack", monkeypatch)
    triggered = module.main(coloured(12, 0))
    assert len(triggered.images) == 8  # of three classes, one is the attacker's
    assert bool((triggered.images.images[:, :, 0] == 255).all())
    assert bool((triggered.images.images[:, :, 1, 1] != 255).any())
    assert triggered.images.labels.tolist() == [0] * 8


def test_new_defense(monkeypatch: pytest.MonkeyPatch) -> None:
    example("new_defense", monkeypatch)
    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
    model = torch.nn.Sequential(convolution, norm, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    clean = coloured(30, 0)
    purified = npz.purify(model.eval(), clean, "new_defense:CleanStatistics", force=True, passes=3)
    after = purified.model.state_dict()
    assert int(after["1.num_batches_tracked"]) == 3
    assert not torch.equal(after["1.running_mean"], norm.state_dict()["running_mean"])
    assert torch.equal(after["0.weight"], convolution.weight)


@pytest.mark.long
def test_mini_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARIZER_HOME", str(tmp_path / "home"))
    suite, out = EXAMPLES / "mini_benchmark.toml", tmp_path / "results"
    done = run(capsys, "bench", "run", suite, "--engine", "inline", "--device", "cpu", "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "0 failed" in done.out
    site = run(capsys, "bench", "report", suite, "--results", out, "--out", tmp_path / "site")
    assert f"site: {tmp_path / 'site' / 'index.html'}" in site.out
