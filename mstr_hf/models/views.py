"""Other views of a word image: what the model is unsure of is read from several, and the readings vote.

Voting over views at test time is as old as the field (ten crops in Krizhevsky et al., 2012); here only words that need
it pay for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class View:
    """How to look at an image.

    Attributes:
        crop: Share of the height that is cut off on every side.
        stretch: Factor of the width.
    """

    crop: float = 0.0
    stretch: float = 1.0

    def __call__(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The images in this view, at the same height.

        Args:
            pixel_values: Images, `[B, C, H, W]`.
            pixel_mask: True on columns of the image, `[B, W]`; at least one in each row, all at its beginning.

        Returns:
            Images `[B, C, H, V]`, V a multiple of 4, 0 in the padding, and mask `[B, V]`.
        """
        height, padded = pixel_values.shape[2:]
        width = pixel_mask.sum(1).to(torch.float32)
        scale = 1 - 2 * self.crop
        seen = ((width / height - 2 * self.crop) / scale * self.stretch * height).round().clamp_min(4)
        columns = torch.arange(4 * math.ceil(seen.max().item() / 4), device=width.device)
        # Where each pixel of the view lies in the image: as far from the middle, in other steps.
        x = width[:, None] / 2 + (columns + 0.5 - seen[:, None] / 2) * scale / self.stretch
        y = height / 2 + (torch.arange(height, device=width.device) + 0.5 - height / 2) * scale
        # What lies outside looks like the nearest edge: of the image, not of its padding.
        x = torch.minimum(x.clamp_min(0.5), width[:, None] - 0.5)
        shape = (len(x), height, len(columns))
        grid = torch.stack(
            [(2 * x / padded - 1)[:, None].expand(shape), (2 * y / height - 1)[None, :, None].expand(shape)], -1
        )
        pixels = F.grid_sample(pixel_values.float(), grid, "bilinear", "border", align_corners=False)
        mask = columns < seen[:, None]
        return (pixels * mask[:, None, None]).to(pixel_values.dtype), mask


# In the order in which they are used; chosen for what they gained on photographs set apart for such choices.
VIEWS = (View(), View(crop=0.08), View(stretch=0.85), View(crop=0.04, stretch=1.15))
