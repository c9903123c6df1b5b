"""Characters that look alike in many fonts: a fixed list, so that retrieval can count them apart.

The pairs are the Unicode confusables (Unicode Technical Standard 39, as in confusable_homoglyphs 3.3.1: one is listed
as confusable with the other, or both with a third) among the characters of the charsets, and the two cases of a
letter. The list is not to be fitted to any model's errors.
"""

from __future__ import annotations

CONFUSABLES = (
    "\"\u201c", "\"\u201d", "%\u066a", "'`", "'\u2018", "'\u2019", "'\u2032", "-\u2013", "/\u2044", "0O", "0\u09e6",
    "1I", "1l", "1|", "8\u09ea", "9\u09ed", ":\u0903", "Il", "I|", "O\u09e6", "`\u2018", "`\u2019", "`\u2032", "l|",
    "o\u0966", "o\u0be6", "o\u0c02", "o\u0c66", "x\u00d7", "\u00b7\u2022", "\u0301\u064e", "\u0303\u0653",
    "\u0901\u0981", "\u0902\u0bcd", "\u093c\u09bc", "\u0966\u0be6", "\u0966\u0c02", "\u0966\u0c66", "\u0983\u0c03",
    "\u09e0\u09e1", "\u0b85\u0bee", "\u0b88\u0bb0", "\u0b88\u0bbe", "\u0b89\u0be8", "\u0b8e\u0bed", "\u0b90\u0b9c",
    "\u0b95\u0be7", "\u0b9a\u0bea", "\u0ba9\u0bc8", "\u0bb0\u0bbe", "\u0bb3\u0bd7", "\u0be6\u0c02", "\u0be6\u0c66",
    "\u0c02\u0c66", "\u2018\u2019", "\u2018\u2032", "\u2019\u2032", "\u201c\u201d",
)


def look_alike(first: str, second: str) -> bool:
    """Whether two characters are on the list, in either order."""
    return first + second in _PAIRS or (first != second and first.swapcase() == second)


_PAIRS = frozenset(pair[::step] for pair in CONFUSABLES for step in (1, -1))
