"""Other views of a word image: what the model is unsure of is read from several, and the readings vote.

Voting over views at test time is as old as the field (ten crops in Krizhevsky et al., 2012); here only words that need
it pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

# Widths in heights below which an image is narrow.
NARROW = 1.3


@dataclass(frozen=True)
class View:
    """How to look at an image.

    Attributes:
        widen: Factor of the width of images that are narrower than `NARROW` heights: most of them show signs seen from
            the side.
        blur: Whether each pixel is the mean of its 3 x 3 neighbourhood, which takes away noise and the marks of JPEG.
        slope: Pixels by which the line of reading falls for each pixel along it, and which turning takes away.
        crop: Share of the height that is cut off above and below, which enlarges the rest; at the sides, where a comma
            may be, nothing is. Below 0 the image is reduced instead.
    """

    widen: float = 1.0
    blur: bool = False
    slope: float = 0.0
    crop: float = 0.0

    def __call__(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images in this view, at the same height.

        Args:
            pixel_values: Images, `[B, C, H, W]`.
            pixel_mask: True on columns of the image, `[B, W]`; at least one in each row, all at its beginning.

        Returns:
            Images `[B, C, H, V]`, V a multiple of 8, 0 in the padding, and mask `[B, V]`.
        """
        height, padded = pixel_values.shape[2:]
        width = pixel_mask.sum(1).to(torch.float32)
        scale = 1 - 2 * self.crop
        stretch = torch.where(width < NARROW * height, self.widen, 1.0)
        seen = (width / scale * stretch).round().clamp_min(4)
        columns = torch.arange(8 * math.ceil(seen.max().item() / 8), device=width.device)
        # Where each pixel of the view lies in the image: as far from the middle, in other steps.
        x = (columns + 0.5 - seen[:, None] / 2) * scale / stretch[:, None]
        y = (torch.arange(height, device=width.device) + 0.5 - height / 2) * scale
        y = height / 2 + y[:, None] + self.slope * x[:, None]
        # What lies outside looks like the nearest edge: of the image, not of its padding.
        x = torch.minimum((width[:, None] / 2 + x).clamp_min(0.5), width[:, None] - 0.5)[:, None].expand_as(y)
        grid = torch.stack([2 * x / padded - 1, 2 * y / height - 1], -1)
        pixels = F.grid_sample(pixel_values.float(), grid, "bilinear", "border", align_corners=False)
        if self.blur:
            pixels = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), "replicate"), 3, stride=1)
        mask = columns < seen[:, None]
        return (pixels * mask[:, None, None]).to(pixel_values.dtype), mask


# The first alone, then all others; chosen, like the lead, on photographs set apart for such choices, and on synthetic
# words in fonts kept for evaluation.
VIEWS = (
    View(),
    View(widen=2, crop=0.11),
    View(widen=2, crop=0.08, slope=-0.05, blur=True),
    View(widen=2, crop=-0.08),
)
# Other views of a word are read unless a reading's score in the first one exceeds that of any other by this.
LEAD = 0.4


def look(
    views: Sequence[View], pixel_values: torch.Tensor, pixel_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in several views: all of them in the first, then all in the next, at one width.

    Args:
        views: The views, K.
        pixel_values: Images, `[B, C, H, W]`.
        pixel_mask: True on columns of the image, `[B, W]`.

    Returns:
        Images `[K * B, C, H, V]` and mask `[K * B, V]`, as :class:`View` gives them.
    """
    seen = [view(pixel_values, pixel_mask) for view in views]
    width = max(mask.shape[1] for _, mask in seen)
    pixels, masks = (
        torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in parts]) for parts in zip(*seen, strict=True)
    )
    return pixels, masks


def decided(shares: Iterable[float]) -> bool:
    """Whether a word needs no other view: the best reading leads by more than `LEAD`."""
    first, second = sorted([*shares, 0.0, 0.0], reverse=True)[:2]
    return first - second > LEAD
