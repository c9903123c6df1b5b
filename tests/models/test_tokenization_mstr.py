import json
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mstr_hf.charsets import load_charsets
from mstr_hf.models.tokenization_mstr import MSTRTokenizer
from mstr_hf.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary(load_charsets(["en", "hi", "bn", "ta", "te", "ar"]))
TOKENIZER = VOCABULARY.tokenizer()
# Words that look like the tokenizer's own tokens.
LOOKALIKES = [
    "<s>",
    "</s>",
    "<pad>",
    "<unk>a",
    "<lang=hi>",
    "a<type=1>",
    "<char=a>",
    "<lang=hi><type=1><char=क>",
    "<",
    ">=",
]
WORDS = st.one_of(
    st.text(alphabet=st.sampled_from([row.character for row in VOCABULARY.rows]), max_size=12),
    st.lists(st.sampled_from([*LOOKALIKES, "=", "char", "क\u094d"]), max_size=6).map("".join),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("character", ["क", "\u093e", "7", ">", "<", "=", "\u200d", "\\", "ـ"])
def test_prompt_is_three_tokens(character):
    prompt = TOKENIZER.prompt("hi", 1, character)
    assert prompt == f"<lang=hi> <type=1> <char={character}>"
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER(prompt)["input_ids"]) == [
        "<lang=hi>",
        "<type=1>",
        character,
    ]


@pytest.mark.parametrize("arguments", [("xx", 0, "a"), ("en", 4, "a"), ("en", 0, "漢")])
def test_prompt_refuses_what_it_does_not_know(arguments):
    with pytest.raises(ValueError, match="no token '"):
        TOKENIZER.prompt(*arguments)


@pytest.mark.parametrize("character", ["", "ab", "<s>"])
def test_prompt_is_for_one_code_point(character):
    with pytest.raises(ValueError, match="not a single code point"):
        TOKENIZER.prompt("en", 0, character)


@given(WORDS)
@example("<s>")
@example("<lang=hi><type=1><char=क>")
def test_words_round_trip(word):
    ids = TOKENIZER(word)["input_ids"]
    assert ids == VOCABULARY.encode(word)
    assert TOKENIZER.decode(ids) == TOKENIZER.decode(ids, skip_special_tokens=True) == word


def test_backend_does_not_normalise_again():
    assert TOKENIZER("é")["input_ids"] == [TOKENIZER.unk_token_id]


def test_special_tokens():
    names = ("pad", "bos", "eos", "unk")
    assert [getattr(TOKENIZER, f"{name}_token_id") for name in names] == [0, 1, 2, 4]
    ids = [1, 3, *VOCABULARY.encode("सड\u093cक"), 2, 0]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "सड\u093cक"


def test_batch_is_padded():
    batch = TOKENIZER(["ab", "c"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist()[1][1:] == [0]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_saved_tokenizer_is_the_same(folder):
    assert "auto_map" not in json.loads((folder / "tokenizer_config.json").read_text())
    loaded = MSTRTokenizer.from_pretrained(folder)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    for text in [*LOOKALIKES, TOKENIZER.prompt("ar", 0, "ع")]:
        assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]


def test_auto_class_gives_the_package_class(folder):
    assert type(AutoTokenizer.from_pretrained(folder)) is MSTRTokenizer


def test_reads_as_plain_tokenizer_without_the_package(folder):
    texts = [*LOOKALIKES, *(prompt for _, _, prompt in VOCABULARY.prompts())]
    code = (
        "import json, sys; from transformers import AutoTokenizer;"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "ids = t(json.load(sys.stdin))['input_ids'];"
        "print(json.dumps([type(t).__module__.split('.')[0], ids, [t.decode(i) for i in ids]]))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    module, ids, decoded = json.loads(done.stdout)
    assert module == "transformers"
    assert ids == TOKENIZER(texts)["input_ids"]
    assert decoded == [TOKENIZER.decode(i) for i in ids]
