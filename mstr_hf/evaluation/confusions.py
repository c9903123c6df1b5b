"""What is taken for what: scripts, and characters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rapidfuzz.distance import Levenshtein

from mstr_hf.models.text import display, normalise

from .metrics import JOINERS, graphemes, script

# Of a word that is misread as something else altogether, an alignment says nothing.
_MAX_DISTANCE = 0.5


@dataclass
class Confusion:
    """A character that is taken for another.

    Attributes:
        true: The character that stands there, one code point; empty where one is read that does not.
        read: The character that is read; empty where it is left out.
        count: How often.
        words: Places of the words where it happens.
    """

    true: str
    read: str
    count: int = 0
    words: list[int] = field(default_factory=list)


def script_confusions(predictions: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Counts which script is read as which.

    Returns:
        The scripts, most frequent in the references first, and for each script of the references a row of counts by
        script of the predictions.
    """
    counts = Counter(
        (script(normalise(reference)), script(normalise(prediction)))
        for prediction, reference in zip(predictions, references, strict=True)
    )
    frequency: Counter[str] = Counter()
    for (true, read), count in counts.items():
        frequency.update({true: count, read: 0})
    names = [name for name, _ in frequency.most_common()]
    return names, [[counts[true, read] for read in names] for true in names]


def character_confusions(predictions: Sequence[str], references: Sequence[str]) -> list[Confusion]:
    """Counts which character is read as which, over words that are mostly right; the most frequent first."""
    found: dict[tuple[str, str], Confusion] = {}
    for place, texts in enumerate(zip(predictions, references, strict=True)):
        prediction, reference = (normalise(text, JOINERS) for text in texts)
        if prediction == reference or Levenshtein.normalized_distance(prediction, reference) > _MAX_DISTANCE:
            continue
        for edit in Levenshtein.editops(reference, prediction):
            true = "" if edit.tag == "insert" else reference[edit.src_pos]
            read = "" if edit.tag == "delete" else prediction[edit.dest_pos]
            confusion = found.setdefault((true, read), Confusion(true, read))
            confusion.count += 1
            if place not in confusion.words:
                confusion.words.append(place)
    return sorted(found.values(), key=lambda confusion: -confusion.count)


def differences(text: str, other: str) -> list[tuple[str, bool]]:
    """Splits a text, as it is shown, into pieces that the other has too (False) or has not (True).

    The pieces are whole grapheme clusters, because nothing less can be set apart on a page.
    """
    clusters, others = graphemes(display(text)), graphemes(display(other))
    pieces = []
    for code in Levenshtein.opcodes(clusters, others):
        if piece := "".join(clusters[code.src_start : code.src_end]):
            pieces.append((piece, code.tag != "equal"))
    return pieces
