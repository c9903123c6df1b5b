import cv2
import numpy as np
import pytest

from mstr_hf.synthesis.augmentation import (
    bend,
    colours,
    compose,
    degrade,
    frame,
    legible,
    paper,
    random_homography,
    repaint,
    reproportion,
    ripple,
)

HEIGHT, WIDTH = 48, 160


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    """Coverage of a word with margins."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.putText(mask, "Words", (20, 34), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 5, cv2.LINE_AA)
    return mask


def photograph(mask: np.ndarray, seed: int, severity: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return degrade(rng, compose(rng, mask), severity)


def test_an_image_is_a_function_of_its_seed(mask):
    first = [photograph(mask, seed, 0.8) for seed in range(30)]
    again = [photograph(mask, seed, 0.8) for seed in range(30)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) == 30


def test_images_are_grey_and_no_larger_than_the_ink(mask):
    for seed in range(60):
        image = photograph(mask, seed, 1.0)
        assert image.dtype == np.uint8 and image.ndim == 2
        height, width = image.shape
        assert 9 <= height <= HEIGHT and 0.8 < (width / height) / (WIDTH / HEIGHT) < 1.25


def test_arguments_are_left_alone(mask):
    ink, neighbours = mask.copy(), np.flipud(mask).copy()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image = compose(rng, ink, neighbours)
        before = image.copy()
        degrade(rng, image, 1.0)
        assert np.array_equal(image, before)
    assert np.array_equal(ink, mask) and np.array_equal(neighbours, np.flipud(mask))


def test_words_can_be_seen(mask):
    images = [compose(np.random.default_rng(seed), mask) for seed in range(150)]
    assert np.mean([legible(np.clip(image, 0, 255).astype(np.uint8), mask) for image in images]) > 0.9
    gaps = [abs(float(image[mask > 127].mean() - image[mask == 0].mean())) for image in images]
    assert np.median(gaps) > 60
    # dark on light and light on dark are about as frequent
    darker = [image[mask > 127].mean() < image[mask == 0].mean() for image in images]
    assert 0.3 < np.mean(darker) < 0.7


def test_neighbours_are_painted(mask):
    neighbours = np.zeros_like(mask)
    neighbours[-4:] = 255
    changed = [
        np.abs(compose(np.random.default_rng(s), mask, neighbours) - compose(np.random.default_rng(s), mask))
        for s in range(20)
    ]
    assert all(change[-4:].mean() > 10 for change in changed)
    assert np.median([change[:-6].mean() for change in changed]) < 1


def test_paper_has_its_level_and_many_kinds():
    kinds = set()
    for seed in range(80):
        sheet = paper(np.random.default_rng(seed), 40, 90, 120.0)
        assert sheet.shape == (40, 90)
        assert abs(np.median(sheet) - 120) < 110
        kinds.add((sheet.std() == 0, len(np.unique(sheet)) < 6))
    assert kinds == {(True, True), (False, True), (False, False)}


def test_damage_grows_with_severity(mask):
    def mean_damage(severity: float) -> float:
        rng = np.random.default_rng(0)
        clean = np.where(mask > 127, 40.0, 200.0).astype(np.float32)
        images = [cv2.resize(degrade(rng, clean, severity), (WIDTH, HEIGHT)) for _ in range(80)]
        return float(np.mean([np.abs(image - clean).mean() for image in images]))

    slight, middle, heavy = map(mean_damage, (0.0, 0.5, 1.0))
    assert 0 < slight < 0.7 * middle < 0.9 * heavy < 60


def test_legible_means_ink_apart_from_paper_and_from_noise():
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 255
    image = np.where(mask > 0, 30, 190).astype(np.uint8)
    assert legible(image, mask) and legible(255 - image, mask)
    assert legible(cv2.resize(image, (20, 10), interpolation=cv2.INTER_AREA), mask)
    faded = np.where(mask > 0, 110, 128).astype(np.uint8)
    assert legible(faded, mask)
    noise = np.random.default_rng(0).normal(0, 60, image.shape)
    assert not legible(np.clip(faded + noise, 0, 255).astype(np.uint8), mask)
    assert legible(np.clip(image + noise, 0, 255).astype(np.uint8), mask)
    assert not legible(np.full_like(image, 90), mask)
    assert not legible(image, np.zeros_like(mask)) and not legible(image, np.full_like(mask, 255))


def test_repainting_changes_weight_and_corners_within_bounds(mask):
    drawn = [repaint(np.random.default_rng(seed), mask, 30.0) for seed in range(60)]
    ratios = [painted.sum() / mask.sum() for painted in drawn]
    assert all(painted.shape == mask.shape and painted.dtype == np.uint8 for painted in drawn)
    assert min(ratios) > 0.75 and max(ratios) < 1.5
    assert min(ratios) < 0.95 and max(ratios) > 1.1
    assert all(np.corrcoef(painted.ravel(), mask.ravel())[0, 1] > 0.75 for painted in drawn)
    # a hairline that the brush would lose stays as it is
    line = np.zeros_like(mask)
    line[20, 20:140] = 255
    assert all(repaint(np.random.default_rng(seed), line, 40.0).any() for seed in range(30))


def test_zones_of_a_line_grow_and_shrink_within_it(mask):
    inked = np.flatnonzero(mask.max(1))
    shares = []
    for seed in range(20):
        drawn = reproportion(np.random.default_rng(seed), mask)
        assert drawn.shape == mask.shape and drawn.dtype == np.uint8
        rows = np.flatnonzero(drawn.max(1) > 40)
        assert abs(rows[0] - inked[0]) <= 1 and abs(rows[-1] - inked[-1]) <= 1
        # strokes stay in their columns
        assert not drawn[:, mask.max(0) == 0].any()
        middle = (inked[0] + inked[-1]) // 2
        shares.append(drawn[:middle].sum() / drawn.sum() - mask[:middle].sum() / mask.sum())
    assert min(shares) < -0.01 and max(shares) > 0.01
    empty = np.zeros_like(mask)
    assert np.array_equal(reproportion(np.random.default_rng(0), empty), empty)


def test_rippling_moves_ink_a_little(mask):
    for seed in range(20):
        moved = ripple(np.random.default_rng(seed), mask, 30.0)
        assert moved.shape == mask.shape and moved.dtype == np.uint8
        assert 0.85 < moved.sum() / mask.sum() < 1.15
        assert not np.array_equal(moved, mask)
        # no ink farther than a few strokes from where ink was
        near = cv2.dilate(mask, np.ones((9, 9), np.uint8))
        assert moved[near == 0].sum() < 0.01 * moved.sum()


def test_homographies_are_small_and_about_the_centre():
    corners = np.float32([[[0, 0], [WIDTH, 0], [0, HEIGHT], [WIDTH, HEIGHT], [WIDTH / 2, HEIGHT / 2]]])
    moves = []
    for seed in range(100):
        matrix = random_homography(np.random.default_rng(seed), HEIGHT, WIDTH, 0.8)
        assert matrix.shape == (3, 3)
        assert np.array_equal(matrix, random_homography(np.random.default_rng(seed), HEIGHT, WIDTH, 0.8))
        moved = np.linalg.norm(cv2.perspectiveTransform(corners, matrix) - corners, axis=-1)[0]
        assert moved[4] < 0.5
        moves.append(moved[:4].max())
    assert 1 < np.median(moves) < 0.3 * HEIGHT and max(moves) < HEIGHT


def test_bending_moves_columns_up_and_down_only():
    mask = np.zeros((80, 120), np.uint8)
    mask[36:44, 10:110] = 255
    for seed in range(20):
        bent = bend(np.random.default_rng(seed), mask, 12.0)
        assert bent.shape == mask.shape and bent.dtype == np.uint8
        ink = bent.astype(float).sum(0)
        assert np.allclose(ink[10:110], 8 * 255, rtol=0.1) and not ink[:10].any() and not ink[110:].any()
        rows = (bent * np.arange(80.0)[:, None]).sum(0)[10:110] / ink[10:110]
        assert 6 < rows.max() - rows.min() < 26 and np.abs(rows - 39.5).max() < 13


@pytest.mark.parametrize(("back", "ink"), [(20.0, 200.0), (230.0, 90.0)])
def test_letters_of_several_colours_stay_apart_from_the_paper(back, ink):
    alpha = np.zeros((40, 160), np.float32)
    for left in range(10, 150, 20):
        alpha[7:33, left - 1 : left + 13] = 0.2  # soft edges
        alpha[8:32, left : left + 12] = 1
    counts = []
    for seed in range(20):
        fill = colours(np.random.default_rng(seed), alpha, back, ink)
        shades = np.broadcast_to(fill, alpha.shape)
        assert np.all((shades[alpha > 0] - back) * np.sign(ink - back) >= 45)
        counts.append(len(np.unique(shades[alpha == 1])))
    assert min(counts) > 1 and max(counts) == 7  # a shade for each letter


def test_paper_without_room_for_shades_gets_one():
    fill = colours(np.random.default_rng(0), np.ones((8, 8), np.float32), 80.0, 20.0)
    assert fill.shape == () and fill == 20


def test_the_rim_of_a_sign_leaves_its_middle_free():
    for width in (200, 10):
        drawn = 0
        for seed in range(50):
            image = frame(np.random.default_rng(seed), np.full((60, width), 100, np.float32))
            inset = 60 // 5 if width == 200 else 4
            assert np.all(image[inset : 60 - inset, inset : width - inset] == 100)
            drawn += bool(np.any(np.abs(image - 100) >= 30))
        assert drawn > 40
