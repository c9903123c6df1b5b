"""The prototype bank: one frozen unit row for every character, and what is known of that character."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers.utils import cached_file

BANK_FILE = "prototype_bank.safetensors"


class BankError(ValueError):
    """A bank that does not fit; the message names what differs and the mend."""


def rows_digest(rows: Iterable[tuple[str, int]]) -> str:
    """Returns the SHA-256, in hexadecimal, of `(character, subtype)` rows in their order."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


@dataclass
class PrototypeBank:
    """Characters and their prototypes.

    Attributes:
        prototypes: float32 `[N, D]`, unit rows.
        characters: N distinct characters, one code point each.
        subtypes: 0 letter, 1 diacritic, 2 digit, 3 punctuation or symbol, for each row.
        scripts: ISO 15924 code for each row; `Zyyy` for what belongs to no script.
        languages: Languages that use the character, for each row.
        joiners: Zero-width joiners that normalisation keeps.
        mclip_revision: What made the rows.
    """

    prototypes: torch.Tensor
    characters: Sequence[str]
    subtypes: Sequence[int]
    scripts: Sequence[str]
    languages: Sequence[Sequence[str]]
    joiners: str = ""
    mclip_revision: str = ""
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = {len(self.prototypes), len(self.characters), len(self.subtypes), len(self.scripts), len(self.languages)}
        if len(sizes) != 1:
            raise BankError(f"the bank's parts differ in length ({sorted(sizes)}): every row needs every field")
        self._index = {character: row for row, character in enumerate(self.characters)}
        if len(self._index) != len(self.characters):
            twice = next(c for row, c in enumerate(self.characters) if self._index[c] != row)
            raise BankError(f"character {twice!r} (U+{ord(twice):04X}) has two rows in the bank: keep one")

    def __len__(self) -> int:
        return len(self.characters)

    def row(self, character: str) -> int:
        """Row of a character; KeyError where there is none."""
        return self._index[character]

    @property
    def all_languages(self) -> list[str]:
        """Every language of the bank, in the order in which they were added."""
        # Signs that all languages share list them in that order; what a newer language shares with the first comes
        # before what is the second's alone.
        widest = max(self.languages, key=len, default=())
        return list(dict.fromkeys([*widest, *(lang for users in self.languages for lang in users)]))

    @property
    def charset_digest(self) -> str:
        """Digest of characters and subtypes; equals the vocabulary's."""
        return self.digest_of_characters(len(self))

    def digest_of_characters(self, num_rows: int) -> str:
        """Digest of the characters and subtypes of the first rows."""
        return rows_digest(zip(self.characters[:num_rows], self.subtypes[:num_rows], strict=True))

    def digest(self, num_rows: int | None = None) -> str:
        """SHA-256 over the first rows: characters, subtypes and float32 prototypes."""
        count = len(self) if num_rows is None else num_rows
        names = self.digest_of_characters(count)
        values = self.prototypes[:count].detach().cpu().float().contiguous().numpy().tobytes()
        return hashlib.sha256(names.encode() + values).hexdigest()

    def language_mask(self, languages: Iterable[str]) -> torch.Tensor:
        """Rows that some of the languages use, bool `[N]`.

        Raises:
            ValueError: If a language is not in the bank, or there is none.
        """
        wanted = set(languages)
        if not wanted:
            raise ValueError("no languages: name some, or leave languages out for all")
        if unknown := wanted - set(self.all_languages):
            raise ValueError(
                f"unknown language {', '.join(sorted(unknown))}: this bank has {', '.join(self.all_languages)}"
            )
        return torch.tensor([not wanted.isdisjoint(users) for users in self.languages])

    def extend(
        self,
        prototypes: torch.Tensor,
        characters: Sequence[str],
        subtypes: Sequence[int],
        scripts: Sequence[str],
        languages: Sequence[Sequence[str]],
    ) -> PrototypeBank:
        """A bank with rows added at the end; the old prototypes stay bit-identical.

        A character that has a row already keeps it and gains the languages.

        Args:
            prototypes: New rows `[M, D]`; normalised here.
            characters: Their characters; the other lists go with them.
        """
        if prototypes.shape[1] != self.prototypes.shape[1]:
            raise BankError(f"new rows have {prototypes.shape[1]} columns, the bank {self.prototypes.shape[1]}")
        users = [list(row) for row in self.languages]
        fresh = []
        for position, character in enumerate(characters):
            if character in self._index:
                row = users[self._index[character]]
                row.extend(lang for lang in languages[position] if lang not in row)
            else:
                fresh.append(position)
        return PrototypeBank(
            torch.cat([self.prototypes, F.normalize(prototypes[fresh].float(), dim=-1)]),
            [*self.characters, *(characters[i] for i in fresh)],
            [*self.subtypes, *(subtypes[i] for i in fresh)],
            [*self.scripts, *(scripts[i] for i in fresh)],
            [*users, *(list(languages[i]) for i in fresh)],
            self.joiners,
            self.mclip_revision,
        )

    def metadata(self) -> dict[str, Any]:
        """Everything but the prototypes, as compact JSON: what a model's config keeps."""
        scripts: dict[str, str] = {}
        # In their order, by which their tokens and the rows of their charsets are found again.
        users = dict.fromkeys(self.all_languages, "")
        for character, script, row_languages in zip(self.characters, self.scripts, self.languages, strict=True):
            scripts[script] = scripts.get(script, "") + character
            for lang in row_languages:
                users[lang] += character
        return {
            "characters": "".join(self.characters),
            "subtypes": "".join(map(str, self.subtypes)),
            "scripts": scripts,
            # Pairs, as a config sorts the keys of its dictionaries and the order of languages gives the ids.
            "languages": [[lang, characters] for lang, characters in users.items()],
            "joiners": self.joiners,
            "mclip_revision": self.mclip_revision,
        }

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], prototypes: torch.Tensor) -> PrototypeBank:
        """The inverse of :meth:`metadata`."""
        scripts = metadata["scripts"].items()
        script_of = {character: script for script, characters in scripts for character in characters}
        users: dict[str, list[str]] = {character: [] for character in metadata["characters"]}
        for lang, characters in metadata["languages"]:
            for character in characters:
                users[character].append(lang)
        characters = list(metadata["characters"])
        return cls(
            prototypes,
            characters,
            [int(digit) for digit in metadata["subtypes"]],
            [script_of[character] for character in characters],
            [users[character] for character in characters],
            metadata["joiners"],
            metadata["mclip_revision"],
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `prototype_bank.safetensors` into the folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(
            {"prototypes": self.prototypes.detach().cpu().float().contiguous()},
            Path(folder) / BANK_FILE,
            # One entry: safetensors writes several in no fixed order, and equal banks are to be equal files.
            metadata={"bank": json.dumps({**self.metadata(), "digest": self.digest()})},
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **hub_options: Any) -> PrototypeBank:
        """Reads a bank from a folder or a Hub repository.

        Args:
            name_or_path: Folder or repository id.
            **hub_options: `revision`, `cache_dir`, `local_files_only`, `token`, as for models.

        Raises:
            OSError: If there is no such file.
            BankError: If the file is cut off, or its contents do not match its digest.
        """
        path = cached_file(str(name_or_path), BANK_FILE, **hub_options)
        try:
            with safe_open(path, framework="pt") as file:
                stored = file.metadata() or {}
                prototypes = file.get_tensor("prototypes")
        except SafetensorError as error:
            raise BankError(f"{path} was changed or cut off ({error}): fetch or build it again") from None
        if "bank" not in stored:
            raise BankError(f"{path} has no bank metadata: build it with scripts/build_prototype_bank.py")
        metadata = json.loads(stored["bank"])
        digest = metadata.pop("digest", None)
        bank = cls.from_metadata(metadata, prototypes)
        if bank.digest() != digest:
            raise BankError(f"{path} does not match its digest: it was changed or cut off; fetch or build it again")
        return bank
