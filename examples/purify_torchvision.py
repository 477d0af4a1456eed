"""Purify a torchvision model from Python.

python examples/purify_torchvision.py
"""

import torch
import torchvision

import neural_polarizer as npz
from neural_polarizer.train.fit import fit

ATTACK = npz.BadNets(target=0, size=4)


def suspicious(train: npz.ImageSet, epochs: int) -> torch.nn.Module:
    """A model with a backdoor; it stands for the one that you have downloaded."""
    images, labels = train.images.clone(), train.labels.clone()
    images[::10] = ATTACK.stamp(images[::10])
    labels[::10] = ATTACK.relabel(labels[::10], train.num_classes)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=train.num_classes)
    schedule = npz.Schedule(epochs=epochs, batch_size=32, lr=0.1, policy="one-cycle", crop_padding=0, flip=False)
    fit(model, npz.ImageSet(images, labels, train.classes, "poisoned"), schedule, seed=0, device="cpu")
    return model.eval()


def main(train: npz.ImageSet, test: npz.ImageSet, *, epochs: int = 4, method: str = "npd-ls") -> npz.Purified:
    """Purify the model with a tenth of the images, and measure it."""
    torch.manual_seed(0)
    model = suspicious(train, epochs)
    purified = npz.purify(model, train.select(torch.arange(0, len(train), 10) + 1), method, seed=0)
    for name, each in (("before", model), ("after", purified)):
        figures = npz.evaluate(each, test, ATTACK.triggered(test))
        print(f"{name}: accuracy {figures.acc:.1%}, trigger works on {figures.asr:.1%}")
    for note in purified.notes:
        print("warning:", note)
    return purified


if __name__ == "__main__":
    main(npz.read_images("digits:train"), npz.read_images("digits:test"))
