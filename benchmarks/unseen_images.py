"""Published models purified with images that they were not trained on (docs/research/log.md).

    python benchmarks/unseen_images.py --data DATA --models FOLDER [--only NAME ...] [--n-clean 500] [--seed 0]

DATA and FOLDER as for published/published.toml, whose clean images are training images of the models. Here the
defender's come from a random half of the test set; ACC / ASR / RA before and after are measured on the other half.
"""

import argparse
from pathlib import Path

import torch

import neural_polarizer as npz
from neural_polarizer.bench.suite import load_suite
from neural_polarizer.data.poison import triggered_test
from neural_polarizer.data.subset import clean_subset
from neural_polarizer.metrics import Metrics

SUITE = Path(__file__).parent / "published" / "published.toml"


def told(figures: Metrics) -> str:
    return " / ".join("-" if each is None else f"{100 * each:.1f}" for each in (figures.acc, figures.asr, figures.ra))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names in published/manifest.toml")
    parser.add_argument("--n-clean", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    given = load_suite(str(SUITE)).given
    for name in options.only or given:
        victim = given[name]
        model, trigger = victim.load(options.models).model, victim.stamp(options.models)
        images = npz.read_images(options.data / victim.data / "test.parquet")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
        pool, test = (images.select(half) for half in order.chunk(2))
        triggered = None if trigger is None else triggered_test(test, trigger)
        purified = npz.purify(
            model, pool.select(clean_subset(pool, options.n_clean, seed=options.seed)), seed=options.seed
        )
        before, after = (npz.evaluate(each, test, triggered) for each in (model, purified))
        print(f"{name}: {told(before)} to {told(after)}", *purified.notes, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
