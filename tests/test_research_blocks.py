"""The Python blocks of the research pages run with the objects that the text around them speaks of."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import neural_polarizer as npz
from docs_blocks import steps_of
from toys import made, tiny_images, tiny_model

ROOT = Path(__file__).parents[1]
RESEARCH = ROOT / "docs" / "research"
CHECKED = {
    "attacks.md": 2,  # below, and tests/test_cli.py
    "defenses.md": 1,
    "export.md": 4,
    "mindspore.md": 2,  # MindSpore's own environment: the same calls are in tests/mindspore_npd
}
"""How many Python blocks the pages have, all of which some test runs."""
NOT_HERE = {"docs/how-to/mindspore.md"}
"""Whose blocks need that environment, too."""


def blocks(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", (RESEARCH / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def ran(block: str, **names: Any) -> dict[str, Any]:
    """What a block has defined, given the objects it takes for granted."""
    namespace = {"__name__": "page", **names}
    exec(compile(block, "page", "exec"), namespace)
    return namespace


def test_no_block_that_can_be_run_is_left_out() -> None:
    found = {page.name: len(blocks(page.name)) for page in RESEARCH.glob("*.md")}
    assert {page: count for page, count in found.items() if count} == CHECKED
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.parent != RESEARCH)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        runnable = re.findall(r"^[ \t]*```\w*\n[ \t]*(?:\$ |import |from )", text, re.MULTILINE)
        prompts = len(re.findall(r"^```\w*\n\$ ", text, re.MULTILINE))
        programs = sum(step.kind == "python" for step in steps_of(page))
        assert len(runnable) == prompts + programs or str(page.relative_to(ROOT)) in NOT_HERE, page


def test_the_defense_of_the_page_runs() -> None:
    (block,) = blocks("defenses.md")
    model = tiny_model()
    purified = npz.purify(model, tiny_images(16), ran(block)["Shrink"](share=0.5), force=True, device="cpu")
    before, after = (each.get_parameter("network.head.weight").abs() for each in (model, purified.model))
    assert float(after.detach().max()) == pytest.approx(float(before.detach().quantile(0.5)))
    assert purified.audit is not None
    assert purified.audit.summary == "Shrank the largest 50 % of the weights of network.head."


def test_an_implant_by_the_page_has_a_trigger() -> None:
    block, _ = blocks("attacks.md")
    clean = tiny_model()
    found = ran(block, clean_model=clean, train_images=tiny_images(128), test_images=tiny_images(12, seed=1))
    assert found["model"] is not clean
    assert found["triggered"].images.labels.tolist() == [3] * 9


@pytest.mark.slow
def test_exported_files_load_by_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision, timm = (pytest.importorskip(name) for name in ("torchvision", "timm"))
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    images = tiny_images(4, num_classes=10, size=32)
    pixels = images.images / 255

    def wrapped(network: nn.Module) -> nn.Module:
        return made(npz.Normalized(network, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))

    resnet, convnext = (
        wrapped(torchvision.models.resnet18(num_classes=10)),
        wrapped(timm.create_model("convnext_atto", num_classes=10)),
    )
    for name in ("exported.pt", "exported.onnx", "exported.pt2"):
        npz.export(resnet, name, images)
    npz.export(convnext, "exported.safetensors", images)
    state_dict, safetensors, onnx, program = blocks("export.md")
    with torch.no_grad():
        expected = resnet(pixels)
        torch.testing.assert_close(ran(state_dict, pixels=pixels)["logits"], expected, rtol=1e-4, atol=1e-4)
        found = ran(onnx, pixels=pixels.numpy())["logits"]
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ran(program, pixels=pixels)["logits"], expected, rtol=1e-4, atol=1e-4)
        told = ran(safetensors)
        mean, std = (torch.tensor(told[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        found = told["network"].eval()((pixels - mean) / std)
        torch.testing.assert_close(found, convnext(pixels), rtol=1e-4, atol=1e-4)
