"""Tokenizer of prompts and words: one id a character, the same in both."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, BLANK, UNK = SPECIAL = ("<pad>", "<s>", "</s>", "<blank>", "<unk>")


def _backend(tokens: Sequence[str]) -> Tokenizer:
    """Builds the `tokenizers` model underneath: token i has id i.

    Only a prompt has spaces (normalised words have none): a space beside it tells a part of a prompt from a
    word that happens to be spelled like one, such as `<type=1>`.
    """
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # "<lang=hi> <type=1> <char=X>" -> "<lang=hi> <type=1>", "X"
            pre_tokenizers.Split(Regex(r" <char=(?=\S>$)|(?<= <char=\S)>$"), "removed"),
            # The matches are kept, what lies between them (spaces) is dropped.
            pre_tokenizers.Split(Regex(r"<lang=[^\s>]+>(?= )|(?<= )<type=\d>|\S"), "removed", invert=True),
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


class MSTRTokenizer(PreTrainedTokenizerFast):
    """Encodes prompts for mCLIP and words for the Refiner, and decodes the ids of Spotter and Refiner.

    A word becomes one id a code point; it has to be normalised before (`normalise`), as the processor does.
    A prompt `<lang=hi> <type=1> <char=X>` becomes three ids, the last of which is the id of X in words. No
    special tokens are added, and a word that is spelled like one (`<s>`) is read as its characters.
    """

    @classmethod
    def from_tokens(cls, tokens: Sequence[str]) -> "MSTRTokenizer":
        """Builds a tokenizer in which token i has id i; `tokens` includes those of `SPECIAL`."""
        return cls(
            tokenizer_object=_backend(tokens),
            pad_token=PAD,
            bos_token=BOS,
            eos_token=EOS,
            unk_token=UNK,
            extra_special_tokens=[BLANK],
            split_special_tokens=True,
        )

    def prompt(self, lang: str, subtype: int, character: str) -> str:
        """Returns the prompt for a character in a language.

        Args:
            lang: Language code, for example `hi`.
            subtype: 0 letter, 1 diacritic, 2 digit, 3 punctuation or symbol.
            character: A single code point in normal form.

        Raises:
            ValueError: If the tokenizer does not know one of them, or it is no single code point.
        """
        if len(character) != 1:
            raise ValueError(f"{character!r} is not a single code point: prompt for each one apart")
        known = self.get_vocab()
        for token in (f"<lang={lang}>", f"<type={subtype}>", character):
            if token not in known:
                raise ValueError(
                    f"no token '{token}' in this tokenizer: use languages and characters of its charsets"
                )
        return f"<lang={lang}> <type={subtype}> <char={character}>"
