import math

import pytest
import torch
from torch.nn import functional as F

from mstr_hf.models.beam_search import Hypotheses
from mstr_hf.models.modeling_refiner import LEAST_PRIOR, _Hypothesis, _shares, _vote
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.models.views import LEAD, VIEWS, View, decided, look


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth images of 24 and 40 columns in a batch of 48."""
    torch.manual_seed(0)
    pixels = F.interpolate(torch.randn(2, 1, 8, 12), (32, 48), mode="bicubic")
    mask = torch.arange(48) < torch.tensor([[24], [40]])
    return pixels * mask[:, None, None], mask


def test_the_first_view_is_the_image_itself(batch):
    pixels, mask = VIEWS[0](*batch)
    assert torch.equal(mask, batch[1][:, :40]) and torch.allclose(pixels, batch[0][..., :40], atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_does_not_depend_on_the_rest_of_the_batch(batch, view):
    together, mask = view(*batch)
    assert together.shape[-1] == mask.shape[-1] and mask.shape[-1] % 4 == 0
    assert not together[~mask[:, None, None].expand_as(together)].any()
    for index, width in enumerate((24, 40)):
        alone, own = view(batch[0][index : index + 1, ..., :width], batch[1][index : index + 1, :width])
        seen = int(own.sum())
        assert mask[index].sum() == seen
        assert torch.allclose(alone[0, ..., :seen], together[index, ..., :seen], atol=1e-5)


def test_widths_follow_the_crop(batch):
    assert View(crop=0.125)(*batch)[1].sum(1).tolist() == [32, 53]  # (24, 40) enlarged by 32 / 24
    assert View(crop=-0.25)(*batch)[1].sum(1).tolist() == [16, 27]  # reduced by 32 / 48


def test_only_narrow_images_are_widened():
    pixels, mask = torch.zeros(2, 1, 32, 44), torch.arange(44) < torch.tensor([[40], [44]])
    assert View(widen=2)(pixels, mask)[1].sum(1).tolist() == [80, 44]  # 1.25 and 1.375 heights
    assert View(crop=0.1, widen=2)(pixels, mask)[1].sum(1).tolist() == [100, 55]


def test_a_crop_shows_the_middle_rows_enlarged_and_all_columns():
    pixels, mask = torch.full((1, 1, 32, 32), -1.0), torch.ones(1, 32, dtype=torch.bool)
    pixels[..., 8:24, :] = 1.0
    pixels[..., 30:] = -1.0  # what stands at the edge
    seen, own = View(crop=0.25)(pixels, mask)
    assert own.sum() == 64
    assert (seen[..., :59] == 1).float().mean() > 0.9 and (seen[..., 61:] == -1).all()
    assert View(crop=-0.5)(pixels, mask)[0].mean() == pytest.approx(2 * 0.25 * 30 / 32 - 1, abs=0.05)


def test_a_slope_is_turned_level():
    pixels, mask = torch.full((1, 1, 32, 64), -1.0), torch.ones(1, 64, dtype=torch.bool)
    for column in range(64):  # falls by 6.4 pixels from left to right
        pixels[..., round(14 + 0.1 * (column - 32)) : round(18 + 0.1 * (column - 32)), column] = 1.0
    level = View(slope=0.1)(pixels, mask)[0][0, 0]
    assert (level[15:17] > 0.4).float().mean() > 0.95 and (level[:11] == -1).all() and (level[21:] == -1).all()


def test_a_blurred_view_is_the_mean_of_neighbours_and_leaves_the_padding_out(batch):
    pixels, _ = View(blur=True)(*batch)
    image = batch[0][0, 0, :, :24]
    assert pixels[0, 0, 9, 9] == pytest.approx(image[8:11, 8:11].mean().item(), abs=1e-5)
    column = image[8:11, [22, 23, 23]].mean().item()  # beyond the edge lies the edge
    assert pixels[0, 0, 9, 23] == pytest.approx(column, abs=1e-5)


def test_a_single_column_can_be_viewed():
    for view in VIEWS:
        pixels, mask = view(torch.ones(1, 1, 32, 4), torch.tensor([[True, False, False, False]]))
        assert mask.sum() >= 4 and torch.isfinite(pixels).all()


LETTERS = "abcd"


@pytest.fixture(scope="module")
def letters() -> PrototypeBank:
    count = len(LETTERS)
    return PrototypeBank(torch.eye(count), LETTERS, [0] * count, ["Latn"] * count, [["en"]] * count)


def hypothesis(text: str, score: float, prior: float = 0.0) -> _Hypothesis:
    """A reading of one character of LETTERS."""
    ids = torch.tensor([[[1 + LETTERS.index(text), 0]]])
    log_probs = torch.tensor([[[score, 1.0]]]).clamp_min(1e-9).log()
    tops = torch.tensor([[[[1, 2], [0, 1]]]]), torch.tensor([[[[0.6, 0.3], [1.0, 0.0]]]]).log()
    found = Hypotheses(ids, log_probs, torch.tensor([[prior]]), *tops, torch.tensor([[True]]))
    return _Hypothesis(text, score, prior, (found, 0, 0))


def test_views_vote_with_their_scores(letters):
    ballot = [[hypothesis(*one)] for one in (("a", 0.5), ("b", 0.3), ("b", 0.4), ("c", 0.1))]
    voted = _vote(letters, ballot, 0, 1.0)
    assert (voted["text"], voted["script"], voted["alternatives"]) == ("b", "Latn", [])
    assert voted["score"] == pytest.approx(0.7 / 4)
    assert [character["char"] for character in voted["characters"]] == ["b"]
    assert voted["characters"][0]["score"] == pytest.approx(0.4)  # of the view that is surest of it
    assert _vote(letters, ballot[::2], 0, 1.0)["text"] == "a"
    assert _vote(letters, ballot[:1], 0, 2.0)["score"] == pytest.approx(0.5)  # no vote, so no other score


def test_alternatives_are_what_the_views_read_beside(letters):
    first = [hypothesis("a", 0.6), hypothesis("b", 0.2), hypothesis("c", 0.1)]
    second = [hypothesis("b", 0.4), hypothesis("a", 0.3), hypothesis("d", 0.1)]
    voted = _vote(letters, [first, second], 2, 2.0)
    assert voted["text"] == "a" and voted["score"] == pytest.approx(0.45**0.5)
    assert [other["text"] for other in voted["alternatives"]] == ["b", "c"]
    assert [other["score"] for other in voted["alternatives"]] == pytest.approx([0.3**0.5, 0.05**0.5])
    assert voted["characters"][0]["alternatives"] == [{"char": "b", "score": pytest.approx(0.3)}]


def test_a_language_model_moves_what_the_views_have_given(letters):
    view = [hypothesis("a", 0.5, -2.0), hypothesis("b", 0.25, -0.5), hypothesis("c", 0.05, -4.0)]
    weights = {"a": 0.5 * math.exp(-2.0), "b": 0.25 * math.exp(-0.5), "c": 0.05 * math.exp(-4.0)}
    expected = {text: 0.8 * weight / sum(weights.values()) for text, weight in weights.items()}
    assert _shares([view]) == pytest.approx(expected)
    voted = _vote(letters, [view], 2, 1.0)
    assert voted["text"] == "b" and voted["score"] == pytest.approx(expected["b"])
    assert [other["text"] for other in voted["alternatives"]] == ["a", "c"]


def test_a_language_model_holds_only_so_much_against_a_reading(letters):
    view = [hypothesis("a", 0.5, -15.0), hypothesis("b", 0.01, -8.0)]
    weights = {"a": 0.5 * math.exp(LEAST_PRIOR), "b": 0.01 * math.exp(-8.0)}
    assert _shares([view]) == pytest.approx({t: 0.51 * w / sum(weights.values()) for t, w in weights.items()})
    assert _vote(letters, [view], 0, 1.0)["text"] == "a"


def test_scores_too_small_for_a_float_are_votes_too(letters):
    assert _shares([[hypothesis("a", 0.0, -3.0), hypothesis("b", 0.0)]]) == {"a": 0.0, "b": 0.0}


def test_a_vote_is_decided_by_a_lead():
    assert not decided([]) and not decided([LEAD]) and decided([LEAD + 0.01])
    assert not decided([0.6, 0.9]) and decided([0.1, 0.9, 0.05])


def test_decided_words_are_not_viewed_again(tiny_refiner, monkeypatch):
    # Of three words the first is sure at once; the others are seen in all other views, each in all three together.
    scores = {0: [0.9], 1: [0.3, 0.4, 0.5, 0.6], 2: [0.2, 0.3, 0.1, 0.0]}
    seen, given = [], {index: iter(values) for index, values in scores.items()}

    def refine(bank, spotted, chosen, row_mask, num_alternatives):
        seen.append(len(chosen))
        return [[hypothesis("a", next(given[index]))] for index in ([0, 1, 2], [1] * 3, [2] * 3)[len(seen) - 1]]

    monkeypatch.setattr(tiny_refiner, "_refine", refine)
    read = tiny_refiner.recognise(torch.randn(3, 1, 32, 48), gate_threshold=2.0, num_views=4)
    # Never more images at once than there were.
    assert seen == [3, 3, 3]
    assert [word["score"] for word in read] == pytest.approx([0.9, 0.45, 0.15])


def test_views_at_once_are_those_one_by_one():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 1, 32, 64, generator=generator)
    mask = torch.arange(64) < torch.tensor([[64], [24]])
    together, masks = look(VIEWS, pixels, mask)
    for place, view in enumerate(VIEWS):
        own, own_mask = view(pixels, mask)
        rows = slice(2 * place, 2 * place + 2)
        width = own.shape[-1]
        assert torch.equal(together[rows, ..., :width], own) and torch.equal(masks[rows, :width], own_mask)
        assert not together[rows, ..., width:].any() and not masks[rows, width:].any()
