import pytest

from mstr_hf.charsets import load_charsets
from mstr_hf.synthesis.fonts import FontIndex
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.synthesis.words import WordsError, load_words
from mstr_hf.vocabulary import Vocabulary, build_vocabulary


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return build_vocabulary(load_charsets(["en", "ar"]))


@pytest.fixture(scope="session")
def synthesiser(fonts: FontIndex, vocabulary: Vocabulary) -> WordSynthesiser:
    try:
        sources = {lang: load_words(lang) for lang in vocabulary.languages}
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    return WordSynthesiser(fonts, sources, severity=0.3, joiners=vocabulary.joiners)
