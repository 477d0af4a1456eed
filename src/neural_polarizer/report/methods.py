"""What each method does to a model, in the words of the report."""

from collections.abc import Mapping
from types import MappingProxyType

POLARIZER: Mapping[str, str] = MappingProxyType(
    {
        "npd": "a wrong class",
        "npd-tp": "the class that the attacker was said to want",
        "npd-tu": "the class that the attacker was said to want",
        "npd-up": "any class but the true one",
        "npd-uu": "any class but the true one",
    }
)
"""The methods that insert a layer, and what their perturbations aim at."""

BASELINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ft": ("A copy of the model was trained further on clean images, all its weights: plain fine-tuning (FT).",),
        "fp": (
            "Fine-pruning (FP): the inputs of the last linear layer that are quietest on clean images were cut, as "
            "many as accuracy on these images allowed, since a trigger may hide in neurons that nothing else uses.",
            "Then the weights that were left were trained further.",
        ),
        "nad": (
            "Neural attention distillation (NAD): a first copy of the model was trained further, as a teacher.",
            "Then a second one was trained to look at the same places of the images as the teacher, so that it "
            "unlearns to look at a trigger.",
        ),
        "nc": (
            "Neural Cleanse (NC): for each class, the smallest pattern was sought that leads all images to it.",
            "A class with a much smaller pattern than the rest is suspected; the model is then taught to ignore that "
            "pattern. If none stands out, the model stays as it was.",
        ),
        "anp": (
            "Adversarial neuron pruning (ANP): it was learned which channels of the batch norms can be given up if all "
            "of them are disturbed in the worst way, since those of a backdoor are disturbed most easily.",
            "These channels were switched off; no other weight was changed.",
        ),
        "i-bau": (
            "i-BAU: in turns, one perturbation was sought that misleads the model on all images at once, and the "
            "weights of a copy were changed so that it no longer does.",
        ),
        "ep": (
            "Entropy-based pruning (EP): channels whose inputs fall into two groups were switched off, since a group "
            "of its own may be that of the triggered images. No other weight was changed.",
        ),
    }
)
"""What the methods without a new layer do."""
