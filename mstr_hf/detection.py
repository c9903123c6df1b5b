"""Words on whole photographs: where they are, what each is cut out as, and in which order they are read.

Lines of text are found by PP-OCRv6 (Baidu, Apache-2.0), whose weights lie in the package `rapidocr`, and cut into words
at their gaps, since the readers of words read no spaces.
"""

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mstr_hf.models.image_processing_mstr import load_image, upright

RIGHT_TO_LEFT = ("Arab", "Hebr")

# Least gap between words, of the height of a line's ink, and how many times as wide as any gap between letters it is.
_WORD_GAP = 0.2
_GAP_RATIO = 1.5
# Ink in a column, of its height; what is less is noise.
_LEAST_INK = 0.02
# Longer side of a photograph in shorter ones, up to which it is searched: the detector, which resizes to the shorter
# one, runs out of memory, or fails, on slivers.
_MAX_RATIO = 20


class Detector:
    """Finds words on photographs.

    Raises:
        ImportError: If the extra `detect` is not installed.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ImportError(f"{error}: install the extra detect: pip install 'mstr_hf[detect]'") from error
        only_detect = {"Global.use_cls": False, "Global.use_rec": False, "Global.log_level": "error"}
        self._detect: Any = RapidOCR(params=only_detect)

    def find(self, photograph: Image.Image) -> list[np.ndarray]:
        """Finds the words of an RGB image.

        Returns:
            Quadrilaterals `[4, 2]` in pixels: upper left, upper right, lower right, lower left corner of each word.

        Raises:
            ValueError: If it cannot be searched.
        """
        if max(photograph.size) > _MAX_RATIO * min(photograph.size):
            size = "{} x {}".format(*photograph.size)
            raise ValueError(f"{size} pixels: give an image with no side over {_MAX_RATIO} times as long as the other")
        try:
            lines = self._detect(np.asarray(photograph)[..., ::-1]).boxes
        except Exception as error:  # the detector's own, which must not end a run over many photographs
            raise ValueError(f"words cannot be looked for ({' '.join(str(error).split())})") from error
        return [word for line in (() if lines is None else lines) for word in split_line(photograph, np.array(line))]


def open_photograph(path: str | os.PathLike[str]) -> Image.Image:
    """Opens an image file, turned upright, as RGB.

    Raises:
        ValueError: If it cannot be read; the message is one line that names it.
    """
    try:
        with Image.open(path) as image:
            # Pillow's own conversion of these would show nothing but black or white.
            special = image.has_transparency_data or image.mode[0] in "IF"
            return (load_image(os.fspath(path)) if special else upright(image)).convert("RGB")
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{os.fspath(path)}: cannot be read ({reason}), give a complete image file") from error


def cut_out(photograph: Image.Image, box: np.ndarray) -> Image.Image:
    """Cuts out a quadrilateral `[4, 2]` as an upright rectangle.

    Raises:
        ValueError: If no part of it is in the photograph, or it is far larger than that.
    """
    if (box.max(0) <= 0).any() or (box.min(0) >= photograph.size).any():
        raise ValueError(f"the box {box.round().tolist()} lies outside of the photograph")
    if np.ptp(box, axis=0).max() > 2 * max(photograph.size):
        raise ValueError(f"the box {box.round().tolist()} is larger than the photograph")
    upper_left, upper_right, lower_right, lower_left = box
    width = max(np.linalg.norm(upper_right - upper_left), np.linalg.norm(lower_right - lower_left))
    height = max(np.linalg.norm(lower_left - upper_left), np.linalg.norm(lower_right - upper_right))
    corners = np.concatenate([upper_left, lower_left, lower_right, upper_right])
    size = (max(1, round(float(width))), max(1, round(float(height))))
    return photograph.transform(size, Image.Transform.QUAD, corners.tolist(), Image.Resampling.BICUBIC)


def split_line(photograph: Image.Image, box: np.ndarray) -> list[np.ndarray]:
    """Cuts the box of a line `[4, 2]` into boxes of words at gaps without ink."""
    columns, height = _ink(np.asarray(cut_out(photograph, box).convert("L")))
    width = len(columns)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]]))).reshape(-1, 2)
    if not len(ends):
        return [box]
    # The middle of each gap between words; the outer margins stay with the first and the last word.
    gaps = ends[1:, 0] - ends[:-1, 1]
    least = _word_gap(np.sort(gaps), np.diff(ends)[:, 0], height)
    middles = (ends[:-1, 1] + ends[1:, 0]) / 2
    shares = [0.0, *(middles[gaps >= least] / width), 1.0]
    upper_left, upper_right, lower_right, lower_left = box
    return [
        np.stack(
            [
                upper_left + first * (upper_right - upper_left),
                upper_left + last * (upper_right - upper_left),
                lower_left + last * (lower_right - lower_left),
                lower_left + first * (lower_right - lower_left),
            ]
        )
        for first, last in pairwise(shares)
    ]


def _word_gap(gaps: np.ndarray, runs: np.ndarray, height: int) -> float:
    """Least gap between words, from all gaps in rising order and the widths of the ink between, in pixels."""
    candidates = gaps[gaps >= _WORD_GAP * height]
    if not len(candidates):
        return np.inf
    # Letters are never set so tight that their gaps are too small to count.
    before = np.maximum(np.concatenate([[0], gaps])[-len(candidates) - 1 : -1], 0.08 * height)
    ratios = candidates / before
    best = int(ratios.argmax())
    if len(gaps) > len(candidates) or best:
        return candidates[best] if ratios[best] >= _GAP_RATIO else np.inf
    # All gaps are wide: words whose letters hang together, or letters that are set wide.
    return candidates[0] if np.median(runs) > height else np.inf


def _ink(grey: np.ndarray) -> tuple[np.ndarray, int]:
    """Which columns of a grey image have ink, bool `[W]`, and the height of the ink in pixels."""
    dark = grey < _otsu(grey)
    # The frame is background, mostly.
    frame = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
    ink = ~dark if frame.mean() > 0.5 else dark
    rows = np.flatnonzero(ink.mean(1) > 0.02)
    return ink.mean(0) > _LEAST_INK, int(rows[-1] - rows[0] + 1) if len(rows) else 0


def _otsu(grey: np.ndarray) -> float:
    """Threshold between dark and light that leaves least variance within both (Otsu, 1979)."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(float)
    below, total = counts.cumsum(), counts.sum()
    sums = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    return float(np.nan_to_num(between, posinf=0).argmax()) + 1


def reading_order(boxes: Sequence[np.ndarray], scripts: Sequence[str]) -> list[tuple[int, int]]:
    """Orders words as they are read: lines from above, each in the direction of most of its words.

    Args:
        boxes: Quadrilaterals `[4, 2]`.
        scripts: ISO 15924 code of each word.

    Returns:
        For each word in order its line, counted from 0, and its place among `boxes`.
    """
    middles = [box.mean(0) for box in boxes]
    heights = [float(np.ptp(box[:, 1])) for box in boxes]
    lines: list[list[int]] = []
    for index in sorted(range(len(boxes)), key=lambda index: middles[index][1]):
        # Against the line's last word, so that a line may slope.
        near = [
            line
            for line in lines
            if abs(middles[line[-1]][1] - middles[index][1]) < 0.5 * min(heights[line[-1]], heights[index])
        ]
        if near:
            near[-1].append(index)
        else:
            lines.append([index])
    order = []
    for number, line in enumerate(lines):
        leftwards = sum(1 if scripts[index] in RIGHT_TO_LEFT else -1 for index in line if scripts[index] != "Zyyy") > 0
        line.sort(key=lambda index: middles[index][0], reverse=leftwards)
        order += [(number, index) for index in line]
    return order


def read_boxes(file: str | os.PathLike[str]) -> dict[Path, list[np.ndarray]]:
    """Reads boxes of words from a file.

    Args:
        file: One JSON object a line: `path`, relative to the file, and `boxes`, each `[left, top, right, bottom]` or
            four corners `[x, y]` from the upper left one clockwise.

    Returns:
        Quadrilaterals `[4, 2]` by the photograph's resolved path.

    Raises:
        ValueError: If a line is something else; the message names it.
        OSError: If the file cannot be read.
    """
    boxes: dict[Path, list[np.ndarray]] = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            try:
                record = json.loads(line)
                found = [_box(box) for box in record["boxes"]]
                boxes.setdefault((Path(file).parent / record["path"]).resolve(), []).extend(found)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{os.fspath(file)}, line {number}: {error!r}: give {{"path": ..., "boxes": [[left, top, right, '
                    "bottom], ...]} or four corners a box"
                ) from error
    return boxes


def _box(numbers: Any) -> np.ndarray:
    box = np.array(numbers, float)
    if box.shape == (4,):
        left, top, right, bottom = box
        if left >= right or top >= bottom:
            raise ValueError(f"no box, as left is not before right and top not above bottom: {numbers}")
        box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if box.shape != (4, 2) or not np.isfinite(box).all() or np.ptp(box, axis=0).min() < 1:
        raise ValueError(f"no box: {numbers}")
    return box


def draw(photograph: Image.Image, boxes: Sequence[np.ndarray]) -> Image.Image:
    """Draws boxes into a copy of a photograph, numbered from 1."""
    drawn = photograph.copy()
    pen = ImageDraw.Draw(drawn)
    line = max(2, max(drawn.size) // 500)
    for number, box in enumerate(boxes, 1):
        pen.polygon([tuple(corner) for corner in box.tolist()], outline="red", width=line)
        x, y = box[0].tolist()
        label = pen.textbbox((x, y), str(number), font_size=8 * line, anchor="lb")
        pen.rectangle(label, fill="red")
        pen.text((x, y), str(number), fill="white", font_size=8 * line, anchor="lb")
    return drawn
