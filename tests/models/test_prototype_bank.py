import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mstr_hf.charsets import load_charsets
from mstr_hf.models.prototype_bank import BANK_FILE, BankError, PrototypeBank
from mstr_hf.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary(load_charsets(["en", "hi", "bn", "ta", "te", "ar"]))


@pytest.fixture
def bank() -> PrototypeBank:
    rows = VOCABULARY.rows
    return PrototypeBank(
        F.normalize(torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(0)), dim=-1),
        [row.character for row in rows],
        [row.subtype for row in rows],
        [row.script for row in rows],
        [row.languages for row in rows],
        VOCABULARY.joiners,
        "0123456789ab",
    )


def facts(bank: PrototypeBank) -> tuple:
    """All of a bank but the prototypes."""
    languages = [list(row) for row in bank.languages]
    lists = [list(bank.characters), list(bank.subtypes), list(bank.scripts), languages]
    return *lists, bank.joiners, bank.mclip_revision


def test_file_round_trip_is_exact(bank, tmp_path):
    bank.save_pretrained(tmp_path / "new" / "folder")
    loaded = PrototypeBank.from_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(loaded.prototypes, bank.prototypes) and loaded.prototypes.dtype == torch.float32
    assert facts(loaded) == facts(bank)
    assert loaded.digest() == bank.digest()


def test_metadata_round_trip_through_json(bank):
    metadata = json.loads(json.dumps(bank.metadata()))
    assert facts(PrototypeBank.from_metadata(metadata, bank.prototypes)) == facts(bank)


@pytest.mark.parametrize("lang", ["ru", "kn", "mr"])
def test_a_language_that_was_added_stays_the_last(bank, lang):
    rows = build_vocabulary(load_charsets([*bank.all_languages, lang])).rows
    own = [row for row in rows if lang in row.languages]
    extended = bank.extend(
        torch.randn(len(own), 8),
        [row.character for row in own],
        [row.subtype for row in own],
        [row.script for row in own],
        [(lang,) for _ in own],
    )
    loaded = PrototypeBank.from_metadata(json.loads(json.dumps(extended.metadata())), extended.prototypes)
    assert loaded.all_languages == extended.all_languages == [*bank.all_languages, lang]
    assert facts(loaded) == facts(extended)


def test_charset_digest_is_the_vocabularys(bank):
    assert bank.charset_digest == VOCABULARY.digest
    assert bank.all_languages == list(VOCABULARY.languages)
    assert [bank.row(row.character) for row in VOCABULARY.rows] == list(range(len(bank)))


def test_digest_sees_values_characters_and_subtypes(bank):
    digests = {bank.digest()}
    bank.prototypes[3, 1] = torch.nextafter(bank.prototypes[3, 1], torch.tensor(9.0))
    digests.add(bank.digest())
    bank.subtypes[5] = 3
    digests.add(bank.digest())
    bank.characters[6], bank.characters[7] = bank.characters[7], bank.characters[6]
    digests.add(bank.digest())
    assert len(digests) == 4
    # languages and scripts may grow: they are no part of what a row is
    bank.languages[0] = ("en", "fr")
    assert bank.digest() in digests


def test_changed_file_is_refused(bank, tmp_path):
    bank.save_pretrained(tmp_path)
    path = tmp_path / BANK_FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(BankError, match=rf"{BANK_FILE} does not match its digest: .*build it again"):
        PrototypeBank.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 700, -1])
def test_cut_off_file_is_refused(bank, tmp_path, size):
    bank.save_pretrained(tmp_path)
    path = tmp_path / BANK_FILE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BankError, match=rf"{BANK_FILE} .*build it again") as error:
        PrototypeBank.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_file_that_is_no_bank_is_refused(bank, tmp_path):
    bank.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / BANK_FILE), tmp_path / BANK_FILE)
    with pytest.raises(BankError, match="has no bank metadata: build it with"):
        PrototypeBank.from_pretrained(tmp_path)


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=BANK_FILE):
        PrototypeBank.from_pretrained(tmp_path)


def test_two_rows_of_one_character_are_refused():
    with pytest.raises(BankError, match=r"'b' \(U\+0062\) has two rows"):
        PrototypeBank(torch.eye(3), "abb", [0] * 3, ["Latn"] * 3, [["en"]] * 3)


def test_parts_of_different_length_are_refused():
    with pytest.raises(BankError, match="differ in length"):
        PrototypeBank(torch.eye(3), "abc", [0] * 2, ["Latn"] * 3, [["en"]] * 3)


def test_extension_keeps_old_rows_bit_identical(bank):
    old, before = bank.prototypes.clone(), facts(bank)
    rows = 5 * torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    extended = bank.extend(rows, ["ಕ", "A", "ಾ"], [0, 0, 1], ["Knda", "Latn", "Knda"], [["kn"], ["fr"], ["kn"]])
    size = len(bank)
    assert len(extended) == size + 2
    assert torch.equal(extended.prototypes[:size], old)
    assert torch.equal(extended.prototypes[size:], F.normalize(rows[[0, 2]], dim=-1))
    assert extended.characters[size:] == ["ಕ", "ಾ"] and extended.subtypes[size:] == [0, 1]
    assert extended.scripts[size:] == ["Knda", "Knda"] and extended.languages[size:] == [["kn"], ["kn"]]
    assert extended.digest(size) == bank.digest() != extended.digest()
    assert extended.languages[bank.row("A")] == ["en", "fr"]
    assert extended.all_languages == ["en", "hi", "bn", "ta", "te", "ar", "fr", "kn"]
    assert (extended.joiners, extended.mclip_revision) == (bank.joiners, bank.mclip_revision)
    # the bank itself is as it was
    assert facts(bank) == before and torch.equal(bank.prototypes, old)


def test_extension_of_another_width_is_refused(bank):
    with pytest.raises(BankError, match="new rows have 7 columns, the bank 8"):
        bank.extend(torch.ones(1, 7), ["ಕ"], [0], ["Knda"], [["kn"]])


def test_language_mask(bank):
    assert bank.language_mask(["hi", "ar"]).tolist() == VOCABULARY.language_mask(["hi", "ar"])
    assert bank.language_mask(bank.all_languages).all()
    with pytest.raises(ValueError, match="no languages: name some, or leave languages out for all"):
        bank.language_mask([])
    with pytest.raises(ValueError, match="unknown language kn, xx: this bank has en, hi, bn, ta, te, ar"):
        bank.language_mask(["xx", "hi", "kn"])
