"""Inception-V3 for images of 32 pixels."""

from typing import Any

from torch import nn


def small_inception_v3(torchvision: Any, num_classes: int) -> nn.Module:
    """Inception-V3 as torchvision has it, with a stem that keeps the resolution.

    Source: spec section 5. The first convolution has stride 1 and is padded, so is the second, and both max poolings
    are gone; there is no auxiliary head and no change of normalisation inside. The names of the tensors are
    torchvision's. 32x32 images give maps of 32x32 up to ``Conv2d_3b_1x1``, 30x30 from ``Conv2d_4a_3x3`` on, 14x14
    from ``Mixed_6a`` and 6x6 from ``Mixed_7a`` on.

    Shape: float ``(n, 3, h, w)``, normalised, h and w at least 9, to logits ``(n, num_classes)``.

    Args:
        torchvision: the package; it is optional, so the caller imports it.
        num_classes: K.
    """
    network: nn.Module = torchvision.models.get_model(
        "inception_v3",
        weights=None,
        num_classes=num_classes,
        aux_logits=False,
        transform_input=False,
        init_weights=True,
    )
    first, second = network.get_submodule("Conv2d_1a_3x3.conv"), network.get_submodule("Conv2d_2a_3x3.conv")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    first.stride = (1, 1)
    first.padding = second.padding = (1, 1)
    network.maxpool1, network.maxpool2 = nn.Identity(), nn.Identity()
    return network
