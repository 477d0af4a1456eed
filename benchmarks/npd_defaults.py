"""What each of our defaults is worth: NPD with the shipped settings, and with one of them as in the paper.

    python benchmarks/npd_defaults.py --victim runs/gtsrb-blended --data DATA/gtsrb
    python benchmarks/npd_defaults.py --victim runs/demo/attack --data digits

The victim is the folder of a ``polarizer attack``; DATA/gtsrb holds ``train.parquet`` and ``test.parquet``. Each
variant is a folder below ``--out``; finished ones are not computed again. 5 % clean images, seed 0 unless told
otherwise.
Expected time on 2 cores without matrix units: 2 to 4 min a variant on GTSRB, 1 min on the digits.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from npd_table import purify_victim

from neural_polarizer.defenses.npd.presets import PAPER_SITE, preset

VARIANTS: dict[str, dict[str, Any]] = {
    "shipped": {},
    "before-the-stage": {"site": "before:layer4"},
    "last-feature-map": {"site": "after:layer4"},
    "paper-site": {"site": PAPER_SITE},
    "stronger": {"radii": (5.0,), "steps": 4},
    "sign-steps": {"step_rule": "sign"},
    "lr-0.01": {"lr": 0.01},
    "lr-0.05": {"lr": 0.05},
    "constant-lr": {"lr_policy": "constant"},
    "plain-init": {"init": "default"},
    "batch-128": {"batch_size": 128},
    "weights-0.4": {"asr_weight": 0.4, "bce_weight": 0.4},
    "bce-weight-0.1": {"bce_weight": 0.1},
    "6-epochs": {"epochs": 6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/npd_defaults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("variants", nargs="*", help=f"some of {', '.join(VARIANTS)}; default: all")
    options = parser.parse_args()
    specs = [f"{options.data}:{split}" for split in ("train", "test")]
    if options.data != "digits":
        specs = [str(Path(options.data) / f"{split}.parquet") for split in ("train", "test")]
    print("| variant | ACC before | after | ASR before | after | RA after | seconds |\n|---|---|---|---|---|---|---|")
    for name in options.variants or VARIANTS:
        result = purify_victim(
            options.victim,
            specs,
            replace(preset("npd"), **VARIANTS[name]),
            options.out / options.victim.name / f"{name}-{options.seed}",
            method="npd",
            seed=options.seed,
        )
        before, after = result["before"], result["after"]
        rates = [before["acc"], after["acc"], before["asr"], after["asr"], after["ra"]]
        spent = sum(value for phase, value in result["seconds"].items() if phase not in ("load", "evaluate", "total"))
        print(f"| {name} | " + " | ".join(f"{100 * rate:.2f}" for rate in rates) + f" | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
