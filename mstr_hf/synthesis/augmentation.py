"""Turn ink into a photograph of a word: background, neighbours, geometry, light, optics, sensor, compression.

Everything works on one grey channel, which is what the image processor feeds the models. All randomness comes from
the generator that is passed in, so an image is a function of its seed.
"""

from __future__ import annotations

import cv2
import numpy as np

# Grey levels between paper and ink that still make a word; the image processor stretches what there is.
MIN_CONTRAST = 28.0
# Distance of ink from paper in standard deviations within them, below which nobody reads the word.
MIN_SEPARATION = 0.8
# Of the effects that `compose` draws one from, 0 to 1: from here on there is none.
PLAIN = 0.37


def paper(rng: np.random.Generator, height: int, width: int, level: float) -> np.ndarray:
    """A background of about the given grey level: flat, gradient, mottled, striped or with panels; float `[H, W]`."""
    image = np.full((height, width), level, np.float32)
    kind = rng.random()
    if kind < 0.35:
        return image
    if kind < 0.58:
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(5, 60)
        return image + np.float32(strength) * _ramp(height, width, angle, height, width)
    if kind < 0.8:
        for cell in (2, 6, 16):
            small = rng.normal(0, rng.uniform(0, 14), (max(2, height // cell), max(2, width // cell)))
            image += cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        return image
    if kind < 0.86:  # shutters, corrugated iron, painted stripes
        period = height * rng.uniform(0.08, 0.4)
        angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)]) + rng.normal(0, 0.03)
        waves = np.sin(_ramp(height, width, angle, period, period) * 2 * np.pi)
        return image + np.float32(rng.uniform(5, 45)) * np.clip(waves * rng.uniform(1, 4), -1, 1)
    for _ in range(rng.integers(1, 4)):
        x0, x1 = np.sort(rng.integers(-width // 4, width + width // 4, 2))
        y0, y1 = np.sort(rng.integers(-height // 4, height + height // 4, 2))
        cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), float(level + rng.normal(0, 35)), -1)
    return image


def _ramp(height: int, width: int, angle: float, rise: float, run: float) -> np.ndarray:
    """A plane through the centre that climbs by 1 in `run` columns or `rise` rows, turned; float32 `[H, W]`."""
    ys, xs = np.ogrid[0:height, 0:width]
    ramp = np.cos(angle) * (xs - width / 2) / run + np.sin(angle) * (ys - height / 2) / rise
    return np.asarray(ramp, np.float32)


def frame(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Draws the rim of a sign just inside the crop, or some of its sides: no bracket, bar or letter."""
    height, width = image.shape
    left, top, right, bottom = (round(min(height, width) * rng.uniform(-0.12, 0.1)) for _ in range(4))
    level = float(np.clip(image.mean() + rng.choice([-1, 1]) * rng.uniform(30, 140), 0, 255))
    thickness = max(1, round(height * rng.uniform(0.015, 0.06)))
    corners = (left, top), (width - 1 - right, height - 1 - bottom)
    return cv2.rectangle(image, *corners, level, thickness)


def _levels(rng: np.random.Generator) -> tuple[float, float]:
    """Grey levels of paper and ink; signs are about as often light on dark as dark on light."""
    while True:
        back, ink = rng.uniform(10, 250, 2)
        if abs(back - ink) >= MIN_CONTRAST + (90 if rng.random() < 0.65 else 0):
            return float(back), float(ink)


def compose(rng: np.random.Generator, mask: np.ndarray, neighbours: np.ndarray | None = None) -> np.ndarray:
    """Paint coverage onto paper with optional rim, outline, shadow, depth, glow and neighbouring ink.

    Args:
        rng: Source of randomness.
        mask: Coverage of the word, uint8 `[H, W]`.
        neighbours: Coverage of other text that the crop happens to show, same shape.

    Returns:
        Grey image, float32 `[H, W]`, about 0 to 255.
    """
    height, width = mask.shape
    back, ink = _levels(rng)
    image = paper(rng, height, width, back)
    if rng.random() < 0.08:
        image = frame(rng, image)
    alpha = mask.astype(np.float32) / 255
    if neighbours is not None:
        image += (neighbours.astype(np.float32) / 255) * (ink - image)
    effect = rng.random()
    if effect < 0.12:
        reach = max(1, round(height * rng.uniform(0.02, 0.07)))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        # Away from the ink towards the side that has room, so that the letters stay apart from their rim.
        outline = ink + (1 if ink < 128 else -1) * rng.uniform(50, 200)
        image += cv2.dilate(alpha, kernel) * (float(np.clip(outline, 0, 255)) - image)
    elif effect < 0.22:
        reach = height * 0.1
        move = np.array([[1, 0, rng.uniform(-reach, reach)], [0, 1, rng.uniform(0, reach)]], np.float32)
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (width, height)), (0, 0), rng.uniform(0.4, 2.5))
        image += shadow * rng.uniform(0.3, 0.9) * (min(back, ink) * rng.uniform(0.1, 0.8) - image)
    elif effect < 0.28:
        # Letters with depth: the swept shape in another shade, in the light or in the dark.
        angle, depth = rng.uniform(0, 2 * np.pi), height * rng.uniform(0.04, 0.16)
        end = round(depth * np.cos(angle)), round(depth * np.sin(angle))
        reach = max(map(abs, end))
        kernel = cv2.line(np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8), (reach, reach),
                          (reach + end[0], reach + end[1]), 1)  # fmt: skip
        brighter = ink < 35 or (ink < 220 and rng.random() < 0.5)  # where there is room
        side = ink + (1 if brighter else -1) * rng.uniform(35, 130)
        image += cv2.dilate(alpha, kernel) * (float(np.clip(side, 0, 255)) - image)
    elif effect < 0.34:
        # Lit letters: light around them, whether they are lit themselves or stand before it.
        light = ink if ink > back else back + rng.uniform(0, 60)
        reach = max(1, round(height * rng.uniform(0.01, 0.08)))
        glow = cv2.dilate(alpha, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        glow = cv2.GaussianBlur(glow, (0, 0), height * rng.uniform(0.03, 0.15))
        strength = rng.uniform(0.2, 0.7) if ink > back else rng.uniform(0.4, 1.0)
        image += strength * glow * (min(255.0, light) - image)
    elif effect < PLAIN:
        # Hollow letters: only the rim is painted.
        reach = max(1, round(height * 0.025))
        rim = alpha - cv2.erode(alpha, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        if rim.sum() > 0.5 * alpha.sum():
            alpha = rim
    fill = np.array(ink, np.float32)
    colour = rng.random()
    if colour < 0.18:
        fill = np.linspace(ink, ink + rng.uniform(-50, 50), height, dtype=np.float32)[:, None]
    elif colour < 0.28 and effect >= PLAIN:  # else a letter might have the shade of what is around it
        fill = colours(rng, alpha, back, ink)
    return image + alpha * (fill - image)


def colours(rng: np.random.Generator, alpha: np.ndarray, back: float, ink: float) -> np.ndarray:
    """Grey levels of ink that differ from letter to letter or, as where letters join, from place to place.

    Args:
        rng: Source of randomness.
        alpha: Coverage, float32 `[H, W]`, 0 to 1.
        back: Grey level of the paper.
        ink: Grey level of the ink, on the side of which all shades lie.

    Returns:
        float32, `[H, W]` or what broadcasts to it; the ink's level alone where there is no room for others.
    """
    height, width = alpha.shape
    side = 1 if ink > back else -1
    far = 255.0 if side > 0 else 0.0
    if abs(far - back) < 90:  # no room for several shades
        return np.array(ink, np.float32)
    low, high = sorted((back + side * 45, far))
    if rng.random() < 0.6:
        _, letters = cv2.connectedComponents((alpha > 0.3).astype(np.uint8))
        shades = rng.uniform(low, high, letters.max() + 1).astype(np.float32)
        return np.where(letters > 0, shades[letters], np.float32(ink))
    bounds = np.cumsum(rng.uniform(0.4, 1.4, 1 + int(width / (0.4 * height))) * height)
    shades = rng.uniform(low, high, len(bounds) + 1).astype(np.float32)
    return shades[np.searchsorted(bounds, np.arange(width))][None]


def random_homography(rng: np.random.Generator, height: int, width: int, severity: float) -> np.ndarray:
    """Small rotation, shear and perspective about the centre; `[3, 3]`."""
    angle = rng.normal(0, 2.2 * severity) * min(1.0, 4 * height / width)
    shear = rng.normal(0, 0.08 * severity)
    cx, cy = width / 2, height / 2
    rotation = cv2.getRotationMatrix2D((cx, cy), angle, 1.0)
    matrix = np.vstack([rotation, [0, 0, 1]])
    matrix = np.array([[1, shear, -shear * cy], [0, 1, 0], [0, 0, 1]]) @ matrix
    tilt = np.array([[1, 0, 0], [0, 1, 0], [rng.normal(0, 0.05 * severity) / width, rng.normal(0, 0.05) / height, 1]])
    there, back = np.array([[[1, 0, x], [0, 1, y], [0, 0, 1]] for x, y in ((cx, cy), (-cx, -cy))])
    return there @ tilt @ back @ matrix


def bend(rng: np.random.Generator, mask: np.ndarray, amplitude: float) -> np.ndarray:
    """Shift columns along an arc or a wave of the given amplitude in pixels; the mask must have that much margin."""
    height, width = mask.shape
    xs = np.linspace(-1, 1, width, dtype=np.float32)
    curve = amplitude * (xs**2 - 0.5) if rng.random() < 0.7 else amplitude * np.sin(xs * np.pi) * 0.6
    map_y = np.arange(height, dtype=np.float32)[:, None] + curve[None]
    map_x = np.broadcast_to(np.arange(width, dtype=np.float32)[None], map_y.shape)
    return cv2.remap(mask, np.ascontiguousarray(map_x), map_y, cv2.INTER_LINEAR)


def repaint(rng: np.random.Generator, mask: np.ndarray, size: float) -> np.ndarray:
    """Redraws the strokes as a painter or a router would: corners rounded, weight changed, and often contrast.

    Stands in for the many sign faces that no font package has; the scripts with few fonts need it most. A brush
    that is broad one way makes the upright strokes heavier than the level ones, or the other way round.

    Args:
        rng: Source of randomness.
        mask: Coverage, uint8 `[H, W]`, with some margin.
        size: Size of the type in pixels.

    Returns:
        Coverage, uint8 `[H, W]`; the mask itself where too much of the ink would go, or holes would close.
    """
    soft = cv2.GaussianBlur(mask, (0, 0), size * rng.uniform(0.015, 0.05)).astype(np.float32)
    painted = np.clip((soft - 255 * rng.uniform(0.25, 0.6)) * 4 + 128, 0, 255).astype(np.uint8)
    box = painted[painted.max(1) > 128][:, painted.max(0) > 128]
    if rng.random() < 0.5 and box.size and (box > 128).mean() < 0.4:  # of bold letters only blots would be left
        brush = np.ones((1, 1 + round(size * rng.uniform(0.02, 0.1))), np.uint8)
        painted = cv2.dilate(painted, brush if rng.random() < 0.6 else brush.T)
    ratio = painted.sum() / max(1, mask.sum())
    return painted if 0.75 < ratio < 1.5 else mask


def reproportion(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Makes some heights of the line larger at the cost of others: faces differ in how high their zones are.

    Args:
        rng: Source of randomness.
        mask: Coverage, uint8 `[H, W]`; its inked rows stay those they are.
    """
    rows = np.flatnonzero(mask.max(1))
    if len(rows) < 4:
        return mask
    top, bottom = float(rows[0]), float(rows[-1] + 1)
    # Where the bounds of the zones go, and where they were.
    bounds = np.concatenate([[0.0], np.cumsum(np.exp(rng.normal(0, 0.3, 4)))])
    moved = top + (bottom - top) * bounds / bounds[-1]
    places = np.interp(np.arange(len(mask)), [0, *moved, len(mask)], [0, *np.linspace(top, bottom, 5), len(mask)])
    map_y = np.repeat(places.astype(np.float32)[:, None], mask.shape[1], 1)
    map_x = np.broadcast_to(np.arange(mask.shape[1], dtype=np.float32), map_y.shape)
    return cv2.remap(mask, np.ascontiguousarray(map_x), map_y, cv2.INTER_LINEAR)


def ripple(rng: np.random.Generator, mask: np.ndarray, size: float) -> np.ndarray:
    """Moves every part of the letters a little, smoothly: lettering by hand (elastic distortion, Simard et al., 2003).

    Args:
        rng: Source of randomness.
        mask: Coverage, uint8 `[H, W]`.
        size: Size of the type in pixels; distortions are a few hundredths of it.
    """
    height, width = mask.shape
    cell = size * rng.uniform(0.3, 0.8)
    cells = (2, max(2, int(height / cell)), max(2, int(width / cell)))
    moves = rng.normal(0, size * rng.uniform(0.01, 0.04), cells).astype(np.float32)
    move_x, move_y = (cv2.resize(move, (width, height), interpolation=cv2.INTER_CUBIC) for move in moves)
    map_x = np.arange(width, dtype=np.float32)[None] + move_x
    map_y = np.arange(height, dtype=np.float32)[:, None] + move_y
    return cv2.remap(mask, map_x, map_y, cv2.INTER_LINEAR)


def degrade(rng: np.random.Generator, image: np.ndarray, severity: float) -> np.ndarray:
    """Photographic damage under one severity budget.

    Args:
        rng: Source of randomness.
        image: Grey image, float32 `[H, W]`.
        severity: 0 (clean) to 1 (barely legible); scales both how many and how strong the operations are.

    Returns:
        Grey image, uint8 `[H, W]`.
    """
    height, width = image.shape

    def happens(probability: float) -> bool:
        return rng.random() < probability * (0.3 + severity)

    if happens(0.3):  # uneven light: a shadow edge or a lamp
        ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
        angle = rng.uniform(0, 2 * np.pi)
        field = np.cos(angle) * (xs / width - rng.uniform(0, 1)) + np.sin(angle) * (ys / height - rng.uniform(0, 1))
        sharpness = rng.uniform(1, 4) if rng.random() < 0.7 else 30.0
        image = image * (1 - rng.uniform(0.1, 0.55) / (1 + np.exp(-sharpness * 2 * field)))
    if happens(0.1):  # glare
        ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
        radius = height * rng.uniform(0.2, 0.7)
        spot = np.exp(-((xs - rng.uniform(0, width)) ** 2 + (ys - rng.uniform(0, height)) ** 2) / (2 * radius**2))
        image = image + spot * rng.uniform(40, 160)
    if happens(0.08):  # something in front: a wire, a pole, a leaf
        thickness = max(1, round(height * rng.uniform(0.02, 0.07)))
        ends = rng.uniform(0, 1, 4) * np.array([width, height, width, height])
        start, end = (int(ends[0]), int(ends[1])), (int(ends[2]), int(ends[3]))
        image = cv2.line(image.copy(), start, end, float(rng.uniform(0, 255)), thickness, cv2.LINE_AA)
    if happens(0.45):  # defocus
        image = cv2.GaussianBlur(image, (0, 0), height * rng.uniform(0.008, 0.012 + 0.065 * severity))
    if happens(0.15):  # motion
        length = max(2, round(height * rng.uniform(0.04, 0.06 + 0.16 * severity)))
        kernel = np.zeros((length, length), np.float32)
        cv2.line(kernel, (0, int(rng.integers(length))), (length - 1, int(rng.integers(length))), 1.0, 1)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    if happens(0.5):  # far away: fewer pixels than models of height 48 see
        target = rng.uniform(max(9.0, 26 - 16 * severity), 44)
        factor = min(1.0, target / height)
        small = (max(4, round(width * factor)), max(4, round(height * factor)))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    if happens(0.3):  # sensor noise, alone or in blotches
        noise = rng.normal(0, rng.uniform(1, 3 + 14 * severity), image.shape).astype(np.float32)
        if rng.random() < 0.3:
            noise = cv2.GaussianBlur(noise, (0, 0), 0.8) * 1.6
        image = image + noise
    if happens(0.5):  # exposure and tone
        image = 255 * np.clip(image / 255, 0, 1) ** rng.uniform(0.6, 1.7)
        image = (image - 128) * rng.uniform(0.6, 1.2) + 128 + rng.uniform(-25, 25)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if happens(0.6):
        quality = int(rng.integers(max(15, 70 - int(50 * severity)), 96))
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    if happens(0.08):  # a sharpening phone
        soft = cv2.GaussianBlur(pixels, (0, 0), 1.0)
        pixels = cv2.addWeighted(pixels, 1.8, soft, -0.8, 0)
    return pixels


def legible(image: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the ink can still be told from what lies around it: by grey level, and by more than noise and texture.

    Args:
        image: The finished image, uint8 `[h, w]`.
        mask: Coverage before degradation, uint8 `[H, W]`; resized to the image.
    """
    ink = (cv2.resize(mask, image.shape[::-1], interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
    if not 0 < cv2.countNonZero(ink) < ink.size:
        return False
    (letters, letters_spread), (paper, paper_spread) = (
        map(float, np.ravel(cv2.meanStdDev(image, mask=part))) for part in (ink, 1 - ink)
    )
    contrast = abs(letters - paper)
    spread = ((letters_spread**2 + paper_spread**2) / 2) ** 0.5
    return bool(contrast >= MIN_CONTRAST * 0.4 and contrast >= MIN_SEPARATION * spread)
