"""Text as the models see it (NFKD, no spaces), as people see it (NFC), and its order on the page."""

import functools
import re
import unicodedata

# Default-ignorable code points: soft hyphen, grapheme joiner, bidi controls, zero-width spaces and joiners,
# word joiner, variation selectors, byte order mark, tags. Escaped because none of them can be seen.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e0fff"
)


@functools.cache
def _inkless(keep: str) -> re.Pattern[str]:
    kept = f"(?![{re.escape(keep)}])" if keep else ""
    return re.compile(f"{kept}[\\s{_INVISIBLE}]")


def normalise(text: str, keep: str = "") -> str:
    """Returns the form in which text is labelled, encoded and scored.

    The text is decomposed (NFKD), then stripped of all whitespace and of format characters that carry no ink.
    The function is idempotent.

    Args:
        text: Any text, in logical (storage) order.
        keep: Invisible characters to keep, for example the joiners U+200C and U+200D, which change the shapes
            of Indic letters.

    Returns:
        The normalised text, possibly empty.
    """
    # Decomposing first brings out spaces hidden in compatibility characters; decomposing again puts marks in
    # canonical order where a removed character stood between them.
    bare = _inkless(keep).sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKD", bare)


def display(text: str) -> str:
    """Returns the form that is shown to people (NFC)."""
    return unicodedata.normalize("NFC", text)


# Classes of characters for `visual_order`: r right-to-left, l left-to-right or number, n anything else.
_DIRECTION = {"R": "r", "AL": "r", "L": "l", "EN": "l", "AN": "l"}


def visual_order(text: str) -> list[int]:
    """Returns where each code point on the page stands in the text.

    A text with right-to-left letters runs from right to left, but for its left-to-right letters and numbers,
    which keep their order together with whatever stands between them. Any other text stands as it is.
    Reordering a text that is in visual order gives it in logical order again.

    Args:
        text: Text in logical order.

    Returns:
        A permutation `p`: the i-th code point from the left is `text[p[i]]`.
    """
    classes = "".join(_DIRECTION.get(unicodedata.bidirectional(character), "n") for character in text)
    order = list(range(len(text)))
    if "r" not in classes:
        return order
    order.reverse()
    for run in re.finditer(r"l(?:[ln]*l)?", classes[::-1]):
        order[run.start() : run.end()] = reversed(order[run.start() : run.end()])
    return order
