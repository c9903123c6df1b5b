"""Word recognition rate, for the library `evaluate`."""

# `evaluate` reads the imports of this file alone: it fetches the files that they name and says which libraries are
# missing. So what metrics.py needs is imported here as well. It takes a comment behind an import for an address.
# ruff: noqa: F401
import datasets
import evaluate
import rapidfuzz
import regex

from .metrics import measure
from .text import normalise

_DESCRIPTION = """\
Word recognition rate (WRR, word accuracy): the share of words that are read without any mistake. Both sides are
normalised (Unicode NFKD; spaces and invisible format characters that carry no ink are dropped, ZWJ and ZWNJ kept).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): what was read.
    references (list of str): what stands there.
    photos (list of str, optional): the photograph that each word comes from, in the order of all batches; None
        stands for one of its own. Adds the ends of the 95% interval, bootstrapped by photograph.

Returns:
    Fractions from 0 to 1:
        wrr: exact, case and punctuation included.
        wrr_case_insensitive: after Unicode case folding.
        wrr_alphanumeric: in lower case, and only a-z and 0-9 count, as in the English benchmarks.
        wrr_without_joiners: exact, with ZWJ and ZWNJ dropped on both sides.
    With photos, also NAME_low and NAME_high for each of them.

Examples:
    >>> metric = evaluate.load("wrr")
    >>> metric.compute(predictions=["Cafe", "दुकान"], references=["café", "दुकान"])["wrr"]
    0.5
"""

_CITATION = """\
@inproceedings{wang2011end,
  title = {End-to-End Scene Text Recognition},
  author = {Wang, Kai and Babenko, Boris and Belongie, Serge},
  booktitle = {ICCV},
  year = {2011}
}
"""


class WRR(evaluate.Metric):
    """Word recognition rate; see the metric's card."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            inputs_description=_KWARGS_DESCRIPTION,
            citation=_CITATION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        photos: list[str | None] | None = None,
    ) -> dict[str, float]:
        return measure("wrr", predictions, references, photos)
