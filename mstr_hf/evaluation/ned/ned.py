"""Normalised edit distance, for the library `evaluate`."""

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
Normalised edit distance (NED): edit distance / length of the longer of reading and reference, in code points, averaged
over words. Less is better. The competitions of ICDAR (RCTW-17 on) report 1 - NED. Both sides are normalised (Unicode
NFKD; spaces and invisible format characters that carry no ink are dropped, ZWJ and ZWNJ kept).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): what was read.
    references (list of str): what stands there.
    photos (list of str, optional): the photograph that each word comes from, in the order of all batches; None
        stands for one of its own. Adds the ends of the 95% interval, bootstrapped by photograph.

Returns:
    Fractions from 0 to 1:
        ned: 0 where everything is right.
        one_minus_ned: 1 - ned.
    With photos, also NAME_low and NAME_high for each of them.

Examples:
    >>> metric = evaluate.load("ned")
    >>> metric.compute(predictions=["shap"], references=["shop"])["ned"]
    0.25
"""

_CITATION = """\
@inproceedings{shi2017rctw,
  title = {{ICDAR2017} Competition on Reading {Chinese} Text in the Wild ({RCTW-17})},
  author = {Shi, Baoguang and Yao, Cong and Liao, Minghui and Yang, Mingkun and Xu, Pei and Cui, Linyan and
            Belongie, Serge and Lu, Shijian and Bai, Xiang},
  booktitle = {ICDAR},
  year = {2017}
}
"""


class NED(evaluate.Metric):
    """Normalised edit distance; see the metric's card."""

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
        return measure("ned", predictions, references, photos)
