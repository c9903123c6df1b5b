"""Averages the weights of two Spotters of one training, and can put the result into a Refiner.

    python scripts/average_spotters.py runs/spotter/final runs/more/final --share 0.6 --output runs/averaged
    python scripts/average_spotters.py A B --share 0.6 --refiner runs/refiner/final --output runs/refiner-averaged

As in Model soups (Wortsman et al., 2022); the second Spotter has to be a continuation of the first. A Refiner that gets
an averaged Spotter was trained on another one: calibrate and evaluate it again.
"""

import argparse
from pathlib import Path

from mstr_hf.hub.publish import assemble
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="Spotter folder")
    parser.add_argument("second", help="folder of a Spotter that went on from the first")
    parser.add_argument("--share", type=float, default=0.5, help="share of the second, 0 to 1 (default: 0.5)")
    parser.add_argument("--refiner", help="Refiner folder that the average is put into")
    parser.add_argument("--output", required=True, help="folder to write")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        parser.error(f"--share {args.share}: give a number from 0 to 1")

    averaged = average(
        SpotterModel.from_pretrained(args.first), SpotterModel.from_pretrained(args.second), args.share
    )
    if args.refiner is None:
        averaged.save_pretrained(args.output)
        return
    refiner = RefinerModel.from_pretrained(args.refiner)
    if refiner.get_bank().digest() != averaged.get_bank().digest():
        parser.error(f"--refiner {args.refiner} has another bank than the Spotters")
    refiner.spotter.load_state_dict(averaged.state_dict())
    assemble(refiner, Path(args.output))


def average(first: SpotterModel, second: SpotterModel, share: float) -> SpotterModel:
    """Gives `first` the weighted mean of both models' weights and batch statistics, and returns it.

    Raises:
        ValueError: If the two have different banks.
    """
    if first.get_bank().digest() != second.get_bank().digest():
        raise ValueError("the Spotters have different banks: only stages of one training can be averaged")
    others = second.state_dict()
    first.load_state_dict(
        {
            name: tensor * (1 - share) + others[name] * share if tensor.is_floating_point() else tensor
            for name, tensor in first.state_dict().items()
            if name != "head.prototypes"
        },
        strict=False,
    )
    return first


if __name__ == "__main__":
    main()
