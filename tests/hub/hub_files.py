"""Networks of the hubs as files: state dicts, and folders as transformers writes them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neural_polarizer.model_files.load import LoadedModel
from neural_polarizer.models.normalize import PROFILES, Normalized
from toys import made

VIT = "timm:vit_tiny_patch16_224?depth=2&embed_dim=24&img_size=16&patch_size=4"
IMAGENET = PROFILES["imagenet"]
SMALL_VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
SMALL: dict[str, dict[str, Any]] = {
    "ViT": SMALL_VIT,
    "DeiT": SMALL_VIT,
    "Swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": 16,
        "patch_size": 2,
        "window_size": 4,
    },
    "ConvNext": {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2},
    "ResNet": {"embedding_size": 4, "hidden_sizes": [6, 8], "depths": [1, 2], "layer_type": "basic"},
    "Segformer": {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "sr_ratios": [1] * 4},
}
PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def classifier(transformers: Any, kind: str, **more: Any) -> Any:
    labels = {index: f"kind {index}" for index in range(3)}
    config = getattr(transformers, f"{kind}Config")(**{**SMALL[kind], "num_labels": 3, "id2label": labels, **more})
    return made(getattr(transformers, f"{kind}ForImageClassification")(config))


@contextmanager
def no_bars() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def stored(folder: Path, model: Any, **processor: Any) -> Path:
    """What ``save_pretrained`` writes."""
    folder.mkdir(exist_ok=True)
    with no_bars():
        model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(PIXELS)


PLAIN = {"do_normalize": False, "do_resize": False}


def written(folder: Path, network: nn.Module) -> Path:
    path = folder / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


def inner(loaded: LoadedModel) -> nn.Module:
    assert isinstance(loaded.model, Normalized)
    return loaded.model.network


def changed(folder: Path, name: str = "config.json", **entries: Any) -> Path:
    path = folder / name
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **entries}))
    return folder
