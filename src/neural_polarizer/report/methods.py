"""What each method does to a model, in the words of the report."""

from collections.abc import Mapping
from types import MappingProxyType

POLARIZER: Mapping[str, str] = MappingProxyType(
    {
        "npd-ls": "the classes that the evidence points to",
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
        "ft-sam": (
            "FT-SAM: a copy of the model was trained further on clean images, all its weights, so that it stays right "
            "where large weights are shaken most, since those of a backdoor are large.",
        ),
        "fst": (
            "Feature shift tuning (FST): the last linear layer of a copy of the model was drawn anew.",
            "Then all weights were trained further, with this layer kept away from what it was, so that features that "
            "only the old weights could read have to move.",
        ),
        "clp": (
            "Channel Lipschitzness pruning (CLP): channels that can enlarge their input far more than others of their "
            "layer were switched off, judged by the weights only. No other weight was changed.",
        ),
        "rnp": (
            "Reconstructive neuron pruning (RNP): a copy of the model was made to forget what clean images show.",
            "Then it was learned which of its channels can be given up as it regains its accuracy; these were switched "
            "off in the model itself, as many as accuracy allowed. No other weight was changed.",
        ),
        "sau": (
            "Shared adversarial unlearning (SAU): in turns, perturbations were sought that lead a copy of the model "
            "and the model itself to the same wrong classes, and the copy was taught not to follow them.",
        ),
    }
)
"""What the methods without a new layer do."""
