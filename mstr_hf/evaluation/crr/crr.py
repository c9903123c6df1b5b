"""Character recognition rate, for the library `evaluate`."""

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
Character recognition rate (CRR): max(0, 1 - sum of edit distances / sum of reference lengths). Both sides are
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
        crr: over code points.
        crr_per_word: max(0, 1 - edit distance / reference length) of each word, averaged.
        crr_graphemes: as crr, over extended grapheme clusters (UAX #29).
        crr_without_joiners: as crr, with ZWJ and ZWNJ dropped on both sides.
    With photos, also NAME_low and NAME_high for each of them.

Examples:
    >>> metric = evaluate.load("crr")
    >>> metric.compute(predictions=["हिन्दि"], references=["हिन्दी"])["crr_graphemes"]
    0.5
"""

_CITATION = """\
@article{levenshtein1966binary,
  title = {Binary codes capable of correcting deletions, insertions, and reversals},
  author = {Levenshtein, Vladimir I.},
  journal = {Soviet Physics Doklady},
  volume = {10},
  number = {8},
  year = {1966}
}
"""


class CRR(evaluate.Metric):
    """Character recognition rate; see the metric's card."""

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
        return measure("crr", predictions, references, photos)
