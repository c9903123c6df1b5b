"""Script accuracy, for the library `evaluate`."""

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
Script accuracy: the share of words read in the right script. The script of a text is the one that most of its letters
belong to, the earlier one at a tie. Words whose reference has no letter (numbers, signs) do not count.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): what was read.
    references (list of str): what stands there.
    photos (list of str, optional): the photograph that each word comes from, in the order of all batches; None
        stands for one of its own. Adds the ends of the 95% interval, bootstrapped by photograph.

Returns:
    Fractions from 0 to 1:
        script_accuracy: NaN if no reference has a letter.
    With photos, also NAME_low and NAME_high for each of them.

Examples:
    >>> metric = evaluate.load("script_accuracy")
    >>> metric.compute(predictions=["Shap", "দুকান"], references=["Shop", "दुकान"])["script_accuracy"]
    0.5
"""

_CITATION = """\
@misc{uax24,
  title = {Unicode Standard Annex \\#24: Unicode Script Property},
  author = {Whistler, Ken},
  url = {https://www.unicode.org/reports/tr24/}
}
"""


class ScriptAccuracy(evaluate.Metric):
    """Script accuracy; see the metric's card."""

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
        return measure("script_accuracy", predictions, references, photos)
