"""Calibration error, for the library `evaluate`."""

# `evaluate` reads the imports of this file alone: it fetches the files that they name and says which libraries are
# missing. So what metrics.py needs is imported here as well. It takes a comment behind an import for an address.
# ruff: noqa: F401
import datasets
import evaluate
import rapidfuzz
import regex

from .metrics import CALIBRATION_BINS, calibration, fractions
from .text import normalise

_DESCRIPTION = """\
Expected calibration error (ECE) of confidences: readings are put into bins of equal width by their confidence;
|mean confidence - share of right readings| of each bin is averaged over readings. Less is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): how sure the reader is of each reading, 0 to 1.
    references (list of int): 1 where the reading is right, else 0.
    photos (list of str, optional): the photograph that each reading comes from, in the order of all batches; None
        stands for one of its own. Adds the ends of the 95% interval, bootstrapped by photograph.
    num_bins (int): bins between 0 and 1; 15 as in Guo et al.

Returns:
    Fractions from 0 to 1:
        calibration: the ECE.
    With photos, also NAME_low and NAME_high for each of them.

Examples:
    >>> metric = evaluate.load("calibration")
    >>> metric.compute(predictions=[0.75, 0.75], references=[1, 0])["calibration"]
    0.25
"""

_CITATION = """\
@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {ICML},
  year = {2017}
}
@inproceedings{naeini2015obtaining,
  title = {Obtaining Well Calibrated Probabilities Using {Bayesian} Binning},
  author = {Naeini, Mahdi Pakdaman and Cooper, Gregory F. and Hauskrecht, Milos},
  booktitle = {AAAI},
  year = {2015}
}
"""


class CalibrationError(evaluate.Metric):
    """Calibration error; see the metric's card."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            inputs_description=_KWARGS_DESCRIPTION,
            citation=_CITATION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int8")}
            ),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[int],
        photos: list[str | None] | None = None,
        num_bins: int = CALIBRATION_BINS,
    ) -> dict[str, float]:
        return fractions("calibration", calibration(predictions, references, num_bins), photos)
