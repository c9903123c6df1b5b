"""The language model: which character may follow others in a word, whatever the image shows.

Character n-grams with the smoothing of Witten and Bell (1991), interpolated, in the form of back-off tables. Of 750,000
words in six languages they know more than a network of their size learns in hours, and they are made in a minute.
Characters are rows of the prototype bank, all languages are in one table, and case does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_refiner import RefinerLanguageConfig

END, NOTHING, SIGN = 0, -1, -2
"""Classes of the end of a word, of what is passed over, and of what stands between words; letters are 1 + row."""

# A probability is stored in steps of 1/STEPS nats, as a byte; ABSENT is that of what is only the beginning of n-grams.
STEPS, ABSENT = 15.0, 255
# Of subtypes: digits, punctuation and symbols stand between words.
LETTERS = 2
# Log-probability of a letter that no word has, and of a digit, punctuation mark or symbol wherever it stands: were they
# free, what cannot be read would become a number.
UNKNOWN, ANY_SIGN = -8.0, -2.0
# Log-probability, beside those of its letter and of the end before it, of a word that begins right after another: what
# is cut out of a photograph may hold two, and their space is not read. Chosen on photographs set apart for such choices
# and on synthetic words.
NEW_WORD = -5.0
PRIME = 0x9E3779B97F4A7C15 - (1 << 64)


class LanguageModel(nn.Module):
    """Log-probabilities of characters after others.

    A word ends where digits, punctuation or symbols stand, each of which is as likely as any other, wherever it stands,
    and where a letter is likelier to begin a new word. Joiners are passed over, and so are rows that the table was not
    made for.

    Args:
        config: Order and size of the table.
    """

    keys: torch.Tensor
    log_probs: torch.Tensor
    backoffs: torch.Tensor

    def __init__(self, config: RefinerLanguageConfig):
        super().__init__()
        self.config = config
        self.order = config.order
        # Hashes of n-grams, the newest character first, in rising order. What they find, in bytes: the log-probability
        # of an n-gram's last character, and that of having to do with a shorter context than the n-gram.
        self.register_buffer("keys", torch.zeros(config.num_ngrams, dtype=torch.int32))
        self.register_buffer("log_probs", torch.zeros(config.num_ngrams, dtype=torch.uint8))
        self.register_buffer("backoffs", torch.zeros(config.num_ngrams, dtype=torch.uint8))

    def contexts(self, count: int) -> torch.Tensor:
        """Contexts of `count` words at their beginning, `[count, order - 1]`, the newest character first."""
        contexts = torch.full((count, self.order - 1), NOTHING, device=self.keys.device)
        contexts[:, 0] = END
        return contexts

    def forward(self, contexts: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of characters.

        Args:
            contexts: What stands before, `[B, order - 1]` (see :meth:`contexts` and :meth:`append`).
            classes: Characters by their class (see `character_classes`), `[B, M]`.

        Returns:
            `[B, M]`; 0 for what is passed over, and for the end where no word is.
        """
        return torch.maximum(self._going_on(contexts, classes), self._anew(contexts, classes))

    def _anew(self, contexts: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """As `forward`, if a new word begins with each character; -inf where none can."""
        end = torch.full_like(contexts[:, :1], END)  # and the context of a word's beginning
        value = NEW_WORD + self._going_on(contexts, end) + self._going_on(end, classes)
        return value.masked_fill((classes <= END) | (contexts[:, :1] == END), -torch.inf)

    def _going_on(self, contexts: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """As `forward`, if each character belongs to the word before it; contexts may be shorter."""
        asked = classes.clamp_min(END)  # before a sign, a word ends
        found, values = self._look_up(asked, contexts, self.log_probs)
        found = found & (values < ABSENT)
        # The longest n-gram that is known counts.
        known = found.flip(-1).to(torch.uint8).argmax(-1)
        length = torch.where(found.any(-1), found.shape[-1] - known, 0)
        value = values.gather(-1, (length - 1).clamp_min(0)[..., None])[..., 0]
        value = torch.where(length > 0, value / -STEPS, UNKNOWN)
        # Longer contexts that are known without this character are paid for.
        there, prices = self._look_up(contexts[:, :1], contexts[:, 1:], self.backoffs)
        prices = (
            (prices / -STEPS * there)[:, 0].flip(-1).cumsum(-1).flip(-1)
        )  # of all contexts of so many characters and more
        prices = torch.cat([prices, prices.new_zeros(len(prices), 1)], 1)
        value = value + prices.gather(1, (length - 1).clamp_min(0).flatten(1))
        nothing = (classes == NOTHING) | ((asked == END) & (contexts[:, :1] == END))
        return value.masked_fill(nothing, 0.0) + ANY_SIGN * (classes == SIGN)

    def append(self, contexts: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Contexts after one more character each, whose class is `[B]`."""
        asked = classes[:, None]
        anew = self._anew(contexts, asked) > self._going_on(contexts, asked)
        contexts = torch.where(anew, self.contexts(len(contexts)), contexts)
        longer = torch.cat([classes[:, None], contexts[:, :-1]], 1)
        between = torch.full_like(contexts, NOTHING)
        between[:, 0] = END
        longer = torch.where(((classes == END) | (classes == SIGN))[:, None], between, longer)
        return torch.where((classes == NOTHING)[:, None], contexts, longer)

    def _look_up(
        self, newest: torch.Tensor, contexts: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of n-grams of 1, 2, ... characters that end in `newest`, `[B, M]`: whether they are there, their bytes."""
        steps = [newest] + [column[:, None].expand_as(newest) for column in contexts.unbind(1)]
        keys, valid = [], []
        state = torch.zeros_like(newest)
        there = torch.ones_like(newest, dtype=torch.bool)
        for step in steps:
            state = mix(state, step)
            there = there & (step != NOTHING)
            keys.append(key(state))
            valid.append(there)
        wanted = torch.stack(keys, -1).to(torch.int32)
        places = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        found = (self.keys[places] == wanted) & torch.stack(valid, -1)
        return found, table[places].to(torch.float32)


def mix(state: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The hash, int64, of n-grams with one more character, from that of the newer ones."""
    state = (state ^ (ids + 2)) * PRIME
    return state ^ (state >> 29)


def key(state: torch.Tensor) -> torch.Tensor:
    """What the table is sorted by: 32 bits of a hash."""
    return state >> 17 << 32 >> 32


def character_classes(characters: Sequence[str], subtypes: Sequence[int], joiners: str) -> list[int]:
    """The class of the end and of each bank row, as the model takes them.

    Letters and marks are classes of their own, 1 + row, a capital that of its small letter; the end is `END`, digits,
    punctuation and symbols are `SIGN`, joiners `NOTHING`.
    """
    rows = {character: row for row, character in enumerate(characters)}
    classes = [END]
    for row, (character, subtype) in enumerate(zip(characters, subtypes, strict=True)):
        if character in joiners:
            classes.append(NOTHING)
        elif subtype >= LETTERS:
            classes.append(SIGN)
        else:
            classes.append(1 + rows.get(character.lower(), row))
    return classes
