"""Find the fonts that draw a language correctly, and split them by family into training and held-out ones.

What a font covers is decided by shaping with HarfBuzz: its character map alone says nothing about conjuncts,
contextual forms or marks. ``mstr fonts`` lists what was found and what was refused.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uharfbuzz as hb
from tqdm import tqdm

from mstr_hf.charsets import DIACRITIC, Charset, load_charset
from mstr_hf.synthesis.cache import cache_folder, read_json, write_json

logger = logging.getLogger(__name__)

INSTALL_HINT = "install fonts for it (see README.md, Fonts) or name a folder that has some"
SYSTEM_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Other axes (casual, pixel shape, ...) change what a letter is more than how it is set.
AXES = ("wght", "wdth", "slnt", "opsz")
HELDOUT_SHARE = 0.10
SPLIT_SALT = 15
# A face may lack a rare letter: every word is checked again when it is drawn.
ENOUGH_LETTERS = 0.85
DOTTED_CIRCLE = 0x25CC
# Families of one kind that the report names.
LISTED = 20
# A file of an @fontsource package, and subsets that add only rare letters, emoji or slices of symbols.
WEB_FONT = r".+?-(?P<subset>[a-z]+(-ext)?|\d+)-(?P<style>\d+-(normal|italic))\.woff2"
IDLE_SUBSETS = r".*-ext|vietnamese|emoji|math|symbols|\d+"

# Names of whole families that shape and still draw wrong text, found by eye; ISO script codes, "" for all.
REFUSED_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"setofont", "", "covers many scripts without shaping tables"),
    (r"free(sans|serif|mono)", "Deva Beng Taml Telu Gujr Guru Knda Mlym Orya", "breaks conjuncts"),
    (r"awami nastaliq", "", "shaped by Graphite only"),
    (r"^alkatra$", "Deva", "rakar drawn on the next letter"),
    (r"^mitra$", "Beng", "vowel signs beside their letters"),
    (r"^haramain$", "Arab", "letters hidden in ornaments"),
    (r"^museum$", "", "blank letters"),
    (r"^kacstone$", "Arab", "Western digits drawn as Arabic ones"),
    (r"mry_kacstqurn", "", "wrong Urdu letters"),
    (r"badeen display", "", "digits are boxes"),
    (r" brk$", "Latn", "pixel and puzzle lettering, much of it illegible"),
    (r"^abecedario_", "Latn", "ruled and dotted lines through the letters"),
    (r"^(alfa-beta|ellhnikh|futharkadapted)$", "Latn", "Greek or runes in place of Latin"),
    (r"keyboard", "Latn", "key caps around the letters"),
    (r"emoji|dingbat|symbol|icons?\b|awesome|ornament|barcode|braille|webdings", "", "not letters"),
)
# Words that a face must shape without a visible virama (scripts with conjuncts) or a missing glyph.
PROBES: dict[str, tuple[str, ...]] = {
    "Latn": ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", "0123456789"),
    "Deva": ("क्षत्रिय", "विद्यार्थी", "ज्ञान", "प्रेम", "स्त्री", "कर्म", "ट्रक", "हृदय", "श्री"),
    "Beng": ("ক্ষমা", "বিজ্ঞান", "স্ত্রী", "প্রথম", "কর্ম", "বিদ্যা", "ব্রহ্ম", "উদ্ধার", "পশ্চিম"),
    "Taml": ("தமிழ்", "கொடுமை", "ஸ்ரீ", "நூறு", "பெண்", "மௌனம்"),
    "Telu": ("క్షమ", "స్త్రీ", "కృష్ణ", "విద్యార్థి", "ప్రేమ", "రాష్ట్రం", "అమ్మ", "జ్ఞానం"),
    "Knda": ("ಕ್ಷಮೆ", "ಸ್ತ್ರೀ", "ಕೃಷ್ಣ", "ವಿದ್ಯಾರ್ಥಿ", "ಪ್ರೇಮ", "ರಾಷ್ಟ್ರ", "ಅಮ್ಮ", "ಜ್ಞಾನ"),
    # what the reformed spelling joins too
    "Mlym": ("അമ്മ", "ക്ഷമ", "പ്രേമം", "വെള്ളം", "കൃത്യം"),
    "Gujr": ("ક્ષમા", "વિદ્યાર્થી", "જ્ઞાન", "પ્રેમ", "સ્ત્રી", "કૃષ્ણ", "શ્રી"),
    "Guru": ("ਪੰਜਾਬੀ", "ਪ੍ਰੇਮ", "ਸਿੱਖ", "ਪੜ੍ਹਾਈ"),
    "Orya": ("କ୍ଷମା", "ବିଦ୍ୟାର୍ଥୀ", "ଜ୍ଞାନ", "ପ୍ରେମ", "ସ୍ତ୍ରୀ", "କୃଷ୍ଣ"),
    "Arab": ("السلام", "لا", "محمّد", "مؤسسة", "بيئة", "كتابَ"),
}
# Names of licences by what a font says of its own.
LICENCES = {
    r"open ?font|\bofl\b": "OFL",
    r"general public|gnu freefont|\bl?gpl": "GPL",
    r"apache": "Apache",
    r"gust\b|latex project": "LPPL",
    r"liberation": "Liberation",
    r"bitstream|\bvera\b": "Bitstream Vera",
    r"paratype ltd grants": "ParaType",
    r"mit licen": "MIT",
    r"public domain|cc0|creative ?commons": "Creative Commons or public domain",
}
WEIGHT_WORDS = r"(?i)( (thin|(extra|ultra|semi|demi) ?(light|bold)|light|medium|bold|black|heavy))+$"
# Words in family names that do not make it another design.
VARIANT_WORDS = (
    r"\b(ui|std|pro|otf|ttf|nf|gx|vf|variable|condensed|semicondensed|extracondensed|expanded|narrow"
    r"|mono caps|slanted|inclined|upright|thin|light|extralight|book|medium|semibold|bold|extrabold|black"
    r"|heavy|italic|oblique|regular|small caps|sc"
    r"|devanagari|deva|hindi|marathi|nepali|bengali|bangla|assamese|tamil|telugu|gujarati|gurmukhi|punjabi|kannada"
    r"|malayalam|oriya|odia|arabic|urdu|hebrew|greek|latin|naskh)\b"
)
# Letters whose two cases are drawn alike in every text face, letters whose two cases never are, and the likeness from
# which these are taken for small capitals (of 220 families of Cyrillic and of Greek each, none lies from 0.7 to 0.84).
CASES = {
    "Latn": ("cosvwxz", "abdeghnqr", 0.65),
    "Cyrl": ("гжзкостхчшя", "абер", 0.75),
    "Grek": ("κοχ", "αγδεζηλμνπρσω", 0.75),
}
_ASCII_OR_NOT = re.compile(r"[\x00-\x7f]+|[^\x00-\x7f]+")


@dataclass(frozen=True)
class Face:
    """One face of a font file; equal to another if it is the same face of the same file.

    Attributes:
        path: TrueType or OpenType file.
        index: Number of the face in a collection.
        family: Typographic family name.
        style: Typographic style name, such as "Bold Italic".
        axes: Variation axes, tag -> (minimum, default, maximum); empty for a static face.
        licence: Short name of the licence that the font states, its first line if it is none of the known ones,
            "" if there is none.
        group: Name shared by all families that draw this language in the same design: the unit of the split.
        missing: Characters of the language's charset that the face has no glyph for.
    """

    path: str
    index: int
    family: str = field(compare=False)
    style: str = field(compare=False)
    axes: dict[str, tuple[float, float, float]] = field(compare=False)
    licence: str = field(compare=False)
    group: str = field(compare=False)
    missing: str = field(default="", compare=False)


@dataclass(frozen=True)
class FontIndex:
    """The usable faces of each language.

    Attributes:
        by_language: Faces of each language, in a fixed order.
        heldout: For each language, the groups that training never sees.
        refused: For each language, family name -> why it is not used though it has the letters.
    """

    by_language: dict[str, list[Face]]
    heldout: dict[str, frozenset[str]]
    refused: dict[str, dict[str, str]]

    def faces(self, lang: str, split: str = "train") -> list[Face]:
        """Faces of a language.

        Args:
            lang: Language code.
            split: "train" or "heldout".

        Raises:
            ValueError: If the split is unknown, or no installed font draws the language.
        """
        if split not in ("train", "heldout"):
            raise ValueError(f"unknown font split {split!r}: use 'train' or 'heldout'")
        faces = self.by_language.get(lang)
        if not faces:
            raise ValueError(f"no usable font for language {lang!r}: {INSTALL_HINT}")
        return [face for face in faces if (face.group in self.heldout[lang]) == (split == "heldout")]

    def families(self, lang: str, split: str = "train") -> list[list[Face]]:
        """Faces of a language by family, so that one with forty styles is drawn no more often than one with one.

        Args:
            lang: Language code.
            split: "train" or "heldout".

        Raises:
            ValueError: If the split is unknown, or has no font that draws the language.
        """
        families: dict[str, list[Face]] = {}
        for face in self.faces(lang, split):
            families.setdefault(face.family, []).append(face)
        if not families:
            raise ValueError(f"language {lang!r} has a single font design, so none for {split!r}: {INSTALL_HINT}")
        return [families[name] for name in sorted(families)]

    def report(self) -> str:
        """Families, faces, licences, rare characters and refusals of each language as text."""
        lines = []
        for lang, faces in self.by_language.items():
            families = {face.family for face in faces}
            lines.append(f"{lang}: {_count(faces)}")
            for split, name in (("train", "to train with"), ("heldout", "held out")):
                part = [face for face in faces if (face.group in self.heldout[lang]) == (split == "heldout")]
                lines.append(f"    {name}: {_count(part)}")
            lines.append("        " + ", ".join(sorted({face.family for face in part})))
            known = {*LICENCES.values(), ""}
            licences = Counter(face.licence if face.licence in known else "another" for face in faces)
            named = [f"{count} {name or 'not stated in the font'}" for name, count in licences.most_common()]
            lines.append(f"    licences of the faces: {', '.join(named)}")
            missing = Counter(c for _, missing in {(face.family, face.missing) for face in faces} for c in set(missing))
            rare = [f"{c} (U+{ord(c):04X})" for c, count in missing.most_common() if count > len(families) / 2]
            if rare:
                lines.append(f"    characters that half of the families or more lack: {', '.join(rare)}")
            reasons = defaultdict(list)
            for family, reason in sorted(self.refused[lang].items()):
                if family not in families:
                    reasons[reason].append(family)
            for reason, names in reasons.items():
                more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
                lines.append(f"    {len(names)} refused, {reason}: {', '.join(names[:LISTED])}{more}")
        return "\n".join(lines)


def _count(faces: Sequence[Face]) -> str:
    families, designs = {face.family for face in faces}, {face.group for face in faces}
    variable = sum(bool(face.axes) for face in faces)
    return f"{len(families)} families in {len(designs)} designs, {len(faces)} faces, {variable} of them variable"


def discover_fonts(languages: Sequence[str], folders: Sequence[str | Path] = ()) -> FontIndex:
    """Index the fonts of the system and of ``folders``.

    The first call shapes samples in every face and may take minutes; the result is cached by path, time and
    size of each file, so that later calls take a second.

    Args:
        languages: Language codes with a charset.
        folders: More folders, searched through and through. Web fonts in them (the woff2 files of npm's
            @fontsource packages, one for each script) are converted and joined once, into the cache.
    """
    paths = sorted({*_system_files(), *_folder_files(folders)})
    by_language: dict[str, list[Face]] = {}
    heldout: dict[str, frozenset[str]] = {}
    refused: dict[str, dict[str, str]] = {}
    for lang, records in _records([load_charset(lang) for lang in languages], paths).items():
        used = [record for record in records if not record["refusal"]]
        groups = _design_groups(used)
        by_language[lang] = [
            Face(
                path=record["path"],
                index=record["index"],
                family=record["family"],
                style=record["style"],
                axes={tag: (low, default, high) for tag, (low, default, high) in record["axes"].items()},
                licence=record["licence"],
                group=groups[_family_key(record["family"])],
                missing=record["missing"],
            )
            for record in used
        ]
        heldout[lang] = _heldout_groups(Counter(face.group for face in by_language[lang]))
        refused[lang] = {record["family"]: record["refusal"] for record in records if record["refusal"]}
    return FontIndex(by_language, heldout, refused)


@functools.lru_cache(maxsize=8192)
def hb_font(face: Face) -> hb.Font:
    """The HarfBuzz font of a face, opened once a process; its scale is the face's units per em.

    Callers that set a variation, boldness or slant set it at every use: the font is shared.
    """
    return hb.Font(hb.Face(hb.Blob.from_file_path(face.path), face.index))


@functools.lru_cache(maxsize=8192)
def _plain_font(face: Face) -> hb.Font:
    """The font of a face as nobody styles it: bold, HarfBuzz says of empty glyphs that they have a size."""
    return hb.Font(hb_font(face).face)


@functools.lru_cache(maxsize=100_000)
def covers(face: Face, text: str) -> bool:
    """Whether the face draws this very text: no missing glyph, no dotted circle put in by the shaper."""
    return shapes(_plain_font(face), text)


def shapes(font: hb.Font, text: str) -> bool:
    """Whether an open font draws the text; see :func:`covers`."""
    circle = font.get_nominal_glyph(DOTTED_CIRCLE) if chr(DOTTED_CIRCLE) not in text else None
    for run, glyphs in _shaped(font, text):
        for glyph, _ in glyphs:
            if glyph == 0 or glyph == circle:
                return False
        for character in set(run):
            if _is_blank(font, character) and _shows_blank(font, run, character, glyphs):
                return False
            local_digit = not character.isascii() and character.isdecimal()
            if local_digit and _borrows_digits(font, ord(character) - unicodedata.decimal(character)):
                return False
    return True


@functools.lru_cache(maxsize=500_000)
def _is_blank(font: hb.Font, character: str) -> bool:
    """Whether a font maps a character that ought to show to an empty glyph."""
    glyph = font.get_nominal_glyph(ord(character))
    return glyph is not None and character.isprintable() and character != " " and not _has_ink(font, glyph)


def _shows_blank(font: hb.Font, run: str, character: str, glyphs: list[tuple[int, int]]) -> bool:
    """Whether a character's empty glyph is still there after shaping, with no ink of its cluster beside it.

    An empty glyph that was put in by a substitution is no fault: some fonts draw the whole of a ligature with
    its first letter.
    """
    glyph = font.get_nominal_glyph(ord(character))
    inked = {cluster for other, cluster in glyphs if _has_ink(font, other)}
    return any(own == glyph and run[cluster] == character and cluster not in inked for own, cluster in glyphs)


@functools.lru_cache(maxsize=512)
def _borrows_digits(font: hb.Font, zero: int) -> bool:
    """Whether a font draws Latin digits for those of another script, as some Indic ones do.

    Args:
        font: The font.
        zero: Code point of the other script's zero.
    """
    glyph = font.get_nominal_glyph
    digits = [(glyph(zero + value), glyph(ord("0") + value)) for value in range(2, 9)]
    likeness = [_alike(font, own, latin) for own, latin in digits if own and latin]
    return bool(likeness) and bool(np.mean(likeness) > 0.8)


def _proportions(font: hb.Font, glyph: int) -> tuple[int, ...]:
    """Advance and box of a glyph in 1/250 em: enough to tell designs apart, coarse enough for rounding."""
    extents = font.get_glyph_extents(glyph) or hb.GlyphExtents(0, 0, 0, 0)
    box = (extents.width, extents.height, extents.x_bearing, extents.y_bearing)
    return tuple(round(250 * size / font.face.upem) for size in (font.get_glyph_h_advance(glyph), *box))


def _has_ink(font: hb.Font, glyph: int) -> bool:
    extents = font.get_glyph_extents(glyph)
    return bool(extents and extents.width and extents.height)


def _shaped(font: hb.Font, text: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Runs of the text, each with (glyph, index in the run) pairs.

    ASCII is shaped apart, as it takes the script of its surroundings otherwise.
    """
    for run in [text] if text.isascii() else _ASCII_OR_NOT.findall(text):
        buffer = hb.Buffer()
        buffer.add_str(run)
        buffer.guess_segment_properties()
        hb.shape(font, buffer)
        yield run, [(info.codepoint, info.cluster) for info in buffer.glyph_infos]


def _glyphs(font: hb.Font, text: str) -> list[int]:
    return [glyph for _, glyphs in _shaped(font, text) for glyph, _ in glyphs]


# -------------------- finding the files


def _system_files() -> Iterator[str]:
    """Font files that fontconfig knows, or those in the usual folders where there is no fontconfig."""
    if shutil.which("fc-list"):
        paths = subprocess.check_output(["fc-list", "--format", "%{file}\n"], text=True).splitlines()
    else:
        paths = [str(path) for folder in SYSTEM_FOLDERS for path in Path(folder).expanduser().rglob("*")]
    yield from (path for path in paths if path.lower().endswith(SUFFIXES))


def _folder_files(folders: Sequence[str | Path]) -> Iterator[str]:
    """Font files in folders, web fonts replaced by their conversion."""
    web: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"font folder {folder} does not exist")
        for path in sorted(Path(folder).rglob("*")):
            suffix = path.suffix.lower()
            if suffix in SUFFIXES:
                yield str(path)
            elif suffix == ".woff2":
                match = re.fullmatch(WEB_FONT, path.name)
                if match and not re.fullmatch(IDLE_SUBSETS, match["subset"]):
                    web[str(path.parent), match["style"]].append(path)
    for (_, style), files in tqdm(web.items(), "converting web fonts", delay=2, disable=None, leave=False):
        converted = _convert_web_font(files, style)
        if converted:
            yield str(converted)


def _convert_web_font(files: list[Path], style: str) -> Path | None:
    """Join the subsets of one web font into one TrueType file in the cache.

    HarfBuzz silently finds no glyph in woff2, and the subset of a script has no Latin digits or punctuation.

    Returns:
        The file, or None where the subsets cannot be joined.
    """
    stamp = "".join(f"{path}{path.stat().st_mtime_ns}{path.stat().st_size}" for path in files)
    name = f"{files[0].parent.parent.name}-{style}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    target = cache_folder("fonts") / f"{name}.ttf"
    failed = target.with_suffix(".failed")
    if target.exists():
        return target
    if failed.exists():
        return None
    # fontTools takes long to import and is not needed once the cache is filled
    from fontTools.merge import Merger, Options
    from fontTools.ttLib import TTFont

    logging.getLogger("fontTools").setLevel(logging.ERROR)
    parts = []
    try:
        for number, path in enumerate(files):
            font = TTFont(path)
            font.flavor = None
            for table in ("fpgm", "prep", "cvt ", "hdmx", "VDMX", "LTSH", "gasp", "DSIG", "vmtx", "vhea"):
                if table in font:
                    del font[table]
            parts.append(target.with_suffix(f".{os.getpid()}.{number}"))
            font.save(parts[-1])
        if len(parts) > 1:
            merged = Merger(Options()).merge([str(part) for part in parts])
            merged.save(parts[0])
        parts[0].replace(target)
        return target
    except (OSError, ImportError, MemoryError):  # no fault of the font: it is tried again
        raise
    except Exception as error:  # fontTools raises whatever it meets in a malformed table
        logger.warning("font %s cannot be converted and is left out: %s", files[0], error)
        failed.touch()
        return None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


# -------------------- what a file is good for


def _records(charsets: Sequence[Charset], paths: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """For each language, one record a face that has its letters, from the cache where the file has not changed."""
    # the rules are this very file, so that no cache outlives a change of them
    rules = Path(__file__).read_text(encoding="utf-8")
    digests = {
        charset.lang: hashlib.sha256((rules + repr(charset)).encode()).hexdigest()[:12] for charset in charsets
    }
    caches = {lang: cache_folder("fonts") / f"index-{lang}-{digest}.json" for lang, digest in digests.items()}
    known: dict[str, dict[str, Any]] = {lang: read_json(cache) or {} for lang, cache in caches.items()}
    records = {lang: dict(files) for lang, files in known.items()}
    for path in tqdm(paths, "looking into fonts", delay=2, disable=None, leave=False):
        stat = os.stat(path)
        stamp = [stat.st_mtime_ns, stat.st_size]
        new = [charset for charset in charsets if known[charset.lang].get(path, [None])[0] != stamp]
        for lang, found in _scan_file(path, new).items() if new else ():
            records[lang][path] = [stamp, found]
    for lang, files in records.items():
        if files != known[lang]:
            write_json(caches[lang], files)
    return {lang: [record for path in paths for record in files[path][1]] for lang, files in records.items()}


def _scan_file(path: str, charsets: Sequence[Charset]) -> dict[str, list[dict[str, Any]]]:
    """For each language, records of the faces in a file that have its letters."""
    blob = hb.Blob.from_file_path(path)
    found: dict[str, list[dict[str, Any]]] = {charset.lang: [] for charset in charsets}
    for index in range(max(1, hb.Face(blob, 0).count)):
        face = hb.Face(blob, index)
        unicodes = set(face.unicodes)
        for charset in charsets:
            if sum(ord(letter) in unicodes for letter in charset.letters) >= ENOUGH_LETTERS * len(charset.letters):
                found[charset.lang].append({"path": path, "index": index, **_record(face, unicodes, charset, path)})
    return found


def _record(face: hb.Face, unicodes: set[int], charset: Charset, path: str) -> dict[str, Any]:
    font = hb.Font(face)
    # web fonts name each weight a family of its own
    family = re.sub(WEIGHT_WORDS, "", _name(face, 16, 1)) or Path(path).stem
    return {
        "family": family,
        "style": _name(face, 17, 2),
        "axes": {
            axis.tag: [axis.min_value, axis.default_value, axis.max_value]
            for axis in (face.axis_infos if face.has_var_data else [])
            if axis.tag in AXES
        },
        "licence": _licence(" ".join(_name(face, name) for name in (13, 14))),
        "missing": "".join(
            character
            for character, subtype in charset.entries
            # accented letters are drawn as one
            if ord(character) not in unicodes and not (charset.script == "Latn" and subtype == DIACRITIC)
        ),
        "signature": _signature(font, charset),
        "refusal": _refusal(font, family, charset),
    }


def _name(face: hb.Face, *name_ids: int) -> str:
    """The first of these names that the face has, in English where it can be had."""
    for name_id in name_ids:
        name = face.get_name(name_id, "en") or face.get_name(name_id)
        if name:
            return name.strip()
    return ""


def _licence(text: str) -> str:
    """Short name of a licence, or the first line of its text."""
    for pattern, name in LICENCES.items():
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return (text.strip().splitlines() or [""])[0][:120]


def _refusal(font: hb.Font, family: str, charset: Charset) -> str:
    """Why a face that has the letters of a charset is not used for it; "" if it is."""
    for pattern, scripts, reason in REFUSED_FAMILIES:
        if re.search(pattern, family, re.IGNORECASE) and (not scripts or charset.script in scripts.split()):
            return reason
    if sum(shapes(font, letter) for letter in charset.letters) < ENOUGH_LETTERS * len(charset.letters):
        return "letters without outlines"
    virama = font.get_nominal_glyph(ord(charset.virama)) if charset.virama else None
    # The pulli of Tamil is written; the other viramas vanish into a conjunct.
    hidden = virama if charset.script != "Taml" else None
    for word in PROBES.get(charset.script, charset.examples):
        if not shapes(font, word):
            return "a sample word lacks glyphs or is torn apart"
        if hidden and hidden in _glyphs(font, word):
            return "conjuncts fall apart"
    if charset.script == "Arab" and len(set(_glyphs(font, "ببب"))) < 3:
        return "letters are not joined"
    if charset.script in CASES:
        same, different, limit = CASES[charset.script]
        if _cases_alike(font, same) < 0.3:
            return "pictures in place of letters"
        if _cases_alike(font, different) > limit:
            return "both cases drawn alike"
    return ""


def _cases_alike(font: hb.Font, letters: str) -> float:
    """Mean likeness of lower and upper case over some letters."""
    pairs = [(font.get_nominal_glyph(ord(c)), font.get_nominal_glyph(ord(c.upper()))) for c in letters]
    # A letter that the font lacks is like no other.
    return float(np.mean([_alike(font, low, high) if low and high else 0.0 for low, high in pairs]))


def _alike(font: hb.Font, first: int, second: int) -> float:
    """Correlation of two glyphs stretched to the same box: 1 for the same shape, about 0 for unrelated."""
    one, two = _stretched(font, first), _stretched(font, second)
    return float((one * two).sum() / max(1e-6, np.sqrt((one**2).sum() * (two**2).sum())))


def _stretched(font: hb.Font, glyph: int, size: int = 8) -> np.ndarray:
    """The glyph drawn to fill a small square, less its mean; float `[size, size]`."""
    extents = font.get_glyph_extents(glyph)
    if not extents or not extents.width or not extents.height:
        return np.zeros((size, size))
    draw = hb.RasterDraw()
    x_scale, y_scale = size / abs(extents.width), size / abs(extents.height)
    bottom = min(extents.y_bearing, extents.y_bearing + extents.height)
    draw.transform = (x_scale, 0, 0, y_scale, -extents.x_bearing * x_scale, -bottom * y_scale)
    draw.extents = hb.RasterExtents(0, 0, size, size)
    draw.draw_glyph(font, glyph)
    image = draw.render()
    pixels = np.frombuffer(image.buffer, np.uint8).reshape(size, image.extents.stride)[:, :size]
    return pixels - pixels.mean()


# -------------------- designs and the split


def _signature(font: hb.Font, charset: Charset) -> str:
    """Proportions of some letters, the same for a design under another name or in another file format."""
    glyphs = [font.get_nominal_glyph(ord(letter)) for letter in charset.letters[3:60:4]]
    numbers = [_proportions(font, glyph) for glyph in glyphs if glyph]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]


def _family_key(family: str) -> str:
    """The family's name without the words that tell variants of one design apart."""
    return re.sub(VARIANT_WORDS, "", family.lower()).replace(" ", "").replace("-", "") or family.lower()


def _design_groups(records: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Joins families that share a name or an outline: family key -> name of the group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    keys = set()
    for record in records:
        key = _family_key(record["family"])
        keys.add(key)
        # the smaller name stays the root, so that the name of a group does not depend on the order
        first, second = sorted((root(key), root("~" + record["signature"])))
        parent[second] = first
    return {key: root(key) for key in keys}


def _heldout_groups(counts: Counter[str]) -> frozenset[str]:
    """Groups that training never sees: about a tenth, by the hash of the name, and at least one.

    Args:
        counts: Number of faces of each group. A group with many faces stays in training, if there is another: to
            give it away would cost more than it tells.
    """
    ranks = {
        group: int(hashlib.sha256(f"{SPLIT_SALT}{group}".encode()).hexdigest()[:8], 16) / 2**32 for group in counts
    }
    spared = [group for group, count in counts.items() if count <= 0.2 * counts.total()]
    if heldout := frozenset(group for group in spared if ranks[group] < HELDOUT_SHARE):
        return heldout
    if len(counts) < 2:
        return frozenset()
    # With few groups all of them are large: the smallest is given away.
    return frozenset([min(spared or counts, key=lambda group: (0 if spared else counts[group], ranks[group]))])
