"""New rows of a prototype bank: the characters of one more language, in the space of the rows that are there.

There are three ways to a row. The Spotter's own eyes need nothing else: a row is fitted to what the Spotter sees where
the character stands in rendered words, and against what it sees elsewhere in them and in words of the old languages.
The image tower of an mCLIP in the bank's space gives the mean of what it sees in renderings of the character. Its text
tower has the row of the character's prompt, if it was tuned on the character.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from mstr_hf.charsets import Charset, load_charsets
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.models.prototype_bank import PrototypeBank, rows_digest
from mstr_hf.models.text import visual_order
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.synthetic_words import SyntheticWord
from mstr_hf.vocabulary import OFFSET, Vocabulary, build_vocabulary

from .mclip import text_rows
from .words import frame_labels

BATCH_SIZE = 32
# Of the fit to the Spotter's frames: one gap in five, as most frames are gaps.
GAP_STRIDE = 5
STEPS = 1000
FRAMES = 4096
LEARNING_RATE = 3e-3
# The bank's own mCLIP gives 1, one that was trained apart from it about 0.
SAME_SPACE = 0.9


def extended_vocabulary(bank: PrototypeBank, charset: Charset) -> Vocabulary:
    """The vocabulary of a bank's languages and one more; the ids of the bank's characters stay as they are.

    Raises:
        ValueError: If the bank has the language already, or was made from other charsets.
    """
    languages = bank.all_languages
    if charset.lang in languages:
        raise ValueError(f"the bank has language {charset.lang} already: tune on it with scripts/train_spotter.py")
    vocabulary = build_vocabulary([*load_charsets(languages), charset])
    if rows_digest((row.character, row.subtype) for row in vocabulary.rows[: len(bank)]) != bank.charset_digest:
        raise ValueError(
            "the bank's rows are not those of its languages' charsets: restore the charsets, or build the bank again; "
            "a bank with characters from labels (extend_prototype_bank.py) takes no language: add it before them"
        )
    return vocabulary


def extend_bank(bank: PrototypeBank, vocabulary: Vocabulary, rows: torch.Tensor, made_by: str) -> PrototypeBank:
    """The bank with the rows of a vocabulary's last language; the old prototypes stay bit-identical.

    Args:
        bank: The bank.
        vocabulary: What `extended_vocabulary` made of it.
        rows: Prototypes of the characters that the bank lacks, `[M, D]`, in the order of the vocabulary.
        made_by: Where they come from, for the bank's metadata.
    """
    lang = vocabulary.languages[-1]
    used = [index for index, row in enumerate(vocabulary.rows) if lang in row.languages]
    extended = bank.extend(
        torch.cat([bank.prototypes, rows.to(bank.prototypes)])[used],
        [vocabulary.rows[index].character for index in used],
        [vocabulary.rows[index].subtype for index in used],
        [vocabulary.rows[index].script for index in used],
        [[lang] for _ in used],
    )
    # A character that another script uses too belongs to none any more; the language's joiners are kept in labels.
    return dataclasses.replace(
        extended,
        scripts=[row.script for row in vocabulary.rows],
        joiners=vocabulary.joiners,
        mclip_revision=f"{bank.mclip_revision}; {lang}: {made_by}",
    )


def spotter_rows(
    spotter: SpotterModel, processor: MSTRProcessor, vocabulary: Vocabulary, words: Sequence[SyntheticWord]
) -> tuple[torch.Tensor, list[int]]:
    """Rows of the characters that a Spotter's bank lacks, fitted to its frames where they stand in words.

    They are trained as the Spotter itself was, by cross-entropy over the cosines to all rows and blank at its own
    scale, while everything but the new rows stays as it is. Words of the old languages among the others keep the new
    rows away from what those look like.

    Args:
        spotter: The Spotter, with the bank that is to be extended, in eval mode.
        processor: What prepares its images.
        vocabulary: What `extended_vocabulary` made of the bank.
        words: Rendered words of the new language and of the old ones.

    Returns:
        Unit rows `[M, D]`, zero where the words have no such character, and how often each was seen.
    """
    frames, blanks, targets = _labelled_frames(spotter, processor, vocabulary, words)
    first, total = len(spotter.get_bank()), len(vocabulary.rows)
    counts = torch.bincount(targets, minlength=total + 1)[first:total]
    seen = counts.nonzero()[:, 0]
    rows = torch.zeros(total - first, frames.shape[1])
    if not len(seen):
        return rows, counts.tolist()
    # Classes are the old rows, the new ones that were seen, and blank.
    places = torch.full((total + 1,), -1)
    places[:first] = torch.arange(first)
    places[first + seen] = first + torch.arange(len(seen))
    places[total] = first + len(seen)
    targets = places[targets]
    old, scale = spotter.head.prototypes.cpu(), spotter.head.scale.detach().cpu()
    means = torch.stack([frames[targets == first + place].mean(0) for place in range(len(seen))])
    new = F.normalize(means, dim=-1).requires_grad_()
    optimizer = torch.optim.Adam([new], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = torch.randint(len(frames), (FRAMES,), generator=generator)
        cosines = frames[batch] @ torch.cat([old, F.normalize(new, dim=-1)]).t()
        loss = F.cross_entropy(scale * torch.cat([cosines, blanks[batch, None]], -1), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows[seen] = F.normalize(new.detach(), dim=-1)
    return rows, counts.tolist()


@torch.no_grad()
def _labelled_frames(
    spotter: SpotterModel, processor: MSTRProcessor, vocabulary: Vocabulary, words: Sequence[SyntheticWord]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames where characters stand, and some of the gaps between.

    Returns:
        Embeddings `[F, D]`, their cosines to blank `[F]`, and the row of each, `[F]`: one more than the last row for
        blank.
    """
    size = spotter.config.projection_dim
    frames, blanks, targets = [torch.zeros(0, size)], [torch.zeros(0)], []
    placed = [(word, word.centres) for word in words if word.centres is not None]
    placed.sort(key=lambda item: item[0].image.shape[1] / item[0].image.shape[0])
    for start in range(0, len(placed), BATCH_SIZE):
        part = placed[start : start + BATCH_SIZE]
        output = spotter(**processor(images=[word.image for word, _ in part], return_tensors="pt").to(spotter.device))
        embeddings, blank = output.embeddings.cpu(), output.blank_similarity.cpu()
        lengths = output.frame_mask.sum(1).tolist()
        for number, ((word, centres), count) in enumerate(zip(part, lengths, strict=True)):
            ids = vocabulary.encode(word.text)
            placing = frame_labels([ids[place] for place in visual_order(word.text)], centres * count, count)
            gaps = np.flatnonzero(placing == 0).tolist()[::GAP_STRIDE]
            used, rows = list(gaps), [len(vocabulary.rows)] * len(gaps)
            for frame in np.flatnonzero(placing >= OFFSET).tolist():
                # A character shows in one of the frames about its centre: in the one that is least a gap.
                near = range(max(0, frame - 1), min(count, frame + 2))
                used.append(min(near, key=lambda place: blank[number, place].item()))
                rows.append(int(placing[frame]) - OFFSET)
            frames.append(embeddings[number, used])
            blanks.append(blank[number, used])
            targets += rows
    return torch.cat(frames), torch.cat(blanks), torch.tensor(targets, dtype=torch.long)


@torch.no_grad()
def image_rows(
    mclip: MCLIPModel, vocabulary: Vocabulary, first: int, characters: CharacterSynthesiser, crops: int, seed: int
) -> tuple[torch.Tensor, list[int]]:
    """Rows from an mCLIP's image tower: the mean embedding of a character's renderings.

    Args:
        mclip: The mCLIP that made the bank, in eval mode.
        vocabulary: What `extended_vocabulary` made of the bank.
        first: Rows that the bank has.
        characters: Draws the characters of the vocabulary.
        crops: Renderings of each character.
        seed: Seed of the renderings.

    Returns:
        Unit rows `[M, D]`, zero where no font draws the character, and the number of renderings of each.
    """
    drawable = dict(pair for pair in characters.drawable if pair[0] >= first)
    sums = torch.zeros(len(vocabulary.rows) - first, mclip.config.projection_dim)
    for row, lang in drawable.items():
        images = np.stack([characters.crop(row, lang, seed, index).image for index in range(crops)])
        pixels = torch.from_numpy(images)[:, None].float() / 127.5 - 1
        sums[row - first] = mclip.get_image_features(pixels.to(mclip.device)).mean(0).cpu()
    return F.normalize(sums, dim=-1), [crops * (first + index in drawable) for index in range(len(sums))]


@torch.no_grad()
def prompt_rows(mclip: MCLIPModel, vocabulary: Vocabulary, first: int) -> torch.Tensor:
    """Rows `[M, D]` from the text tower of an mCLIP that was tuned on the characters that the bank lacks.

    Raises:
        ValueError: If it was not.
    """
    known = mclip.config.vocab_size - OFFSET
    if known < len(vocabulary.rows):
        raise ValueError(
            f"this mCLIP was tuned on {known} characters, not on the {len(vocabulary.rows)} of the new vocabulary: "
            "take rows from its image tower (--rows image)"
        )
    return text_rows(mclip, vocabulary)[first:].cpu()


@torch.no_grad()
def check_space(mclip: MCLIPModel, vocabulary: Vocabulary, bank: PrototypeBank) -> None:
    """Refuses an mCLIP whose space is not the bank's: what it says of a new character would mean nothing there.

    Args:
        mclip: The mCLIP.
        vocabulary: Its own (see `mclip.vocabulary_of`).
        bank: The bank.

    Raises:
        ValueError: If its rows of the bank's characters are others than the bank's.
    """
    places = {row.character: place for place, row in enumerate(vocabulary.rows)}
    common = [(places[character], row) for row, character in enumerate(bank.characters) if character in places]
    size = bank.prototypes.shape[1]
    if mclip.config.projection_dim != size or not common:
        raise ValueError(
            f"this mCLIP has {mclip.config.projection_dim} dimensions and {len(common)} of the bank's characters, the "
            f"bank {size} and {len(bank)}: name one that made the bank, or learned its space (scripts/train_mclip.py "
            "--bank)"
        )
    own, given = map(list, zip(*common, strict=True))
    rows = text_rows(mclip, vocabulary).cpu()[own]
    cosine = F.cosine_similarity(rows, bank.prototypes[given], dim=-1).mean().item()
    if cosine < SAME_SPACE:
        raise ValueError(
            f"this mCLIP has another space than the bank (mean cosine of their rows {cosine:.2f}, wanted at least "
            f"{SAME_SPACE}): name the one that made it, let one learn it (scripts/train_mclip.py --bank), or leave "
            "--mclip out"
        )
