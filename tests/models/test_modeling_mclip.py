import math
import os
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.modeling_mclip import MCLIPModel, contrastive_loss

SHAPE = {
    "vocab_size": 40,
    "num_rows": 12,
    "projection_dim": 16,
    "image_channels": (4, 8),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def make_model(**settings) -> MCLIPModel:
    torch.manual_seed(0)
    return MCLIPModel(MCLIPConfig(**SHAPE, **settings))


def make_batch(rows: list[int]) -> dict[str, torch.Tensor]:
    """Random crops of some characters with their prompts: language, subtype, character."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.tensor(rows)
    return {
        "pixel_values": torch.randn(len(rows), 1, 32, 48, generator=generator),
        "input_ids": torch.stack([torch.full_like(rows, 3), 5 + rows % 4, 20 + rows], 1),
        "rows": rows,
        "subtypes": rows % 4,
        "margins": 0.1 + 0.1 * (rows % 3),
    }


def naive_loss(similarity: list[list[float]], rows: list[int]) -> float:
    """The contrastive loss from its definition, one number at a time."""
    size = len(rows)
    total = 0.0
    for i in range(size):
        positives = [j for j in range(size) if rows[j] == rows[i]]
        along_row = sum(math.exp(similarity[i][j]) for j in range(size))
        along_column = sum(math.exp(similarity[j][i]) for j in range(size))
        for j in positives:
            total -= math.log(math.exp(similarity[i][j]) / along_row) / len(positives)
            total -= math.log(math.exp(similarity[j][i]) / along_column) / len(positives)
    return total / size / 2


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [7, 7, 2, 7, 2], [5, 5, 5, 5, 5], [0, 1, 1, 4, 9]])
def test_contrastive_loss_by_hand(rows):
    similarity = 3 * torch.randn(5, 5, generator=torch.Generator().manual_seed(sum(rows)))
    loss = contrastive_loss(similarity, torch.tensor(rows))
    assert loss.item() == pytest.approx(naive_loss(similarity.tolist(), rows), rel=1e-5)


def test_contrastive_loss_of_distinct_characters_is_clips():
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    target = torch.arange(6)
    clip = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.t(), target)) / 2
    assert torch.allclose(contrastive_loss(similarity, target), clip)


def test_same_character_is_no_negative():
    # Two crops of one character that both fit both prompts are as good as it gets.
    same = torch.tensor([[50.0, 50.0, 0.0], [50.0, 50.0, 0.0], [0.0, 0.0, 50.0]])
    best = contrastive_loss(same, torch.tensor([1, 1, 2])).item()
    assert best == pytest.approx(2 / 3 * math.log(2), abs=1e-5)
    assert contrastive_loss(same, torch.tensor([1, 3, 2])).item() == pytest.approx(best, abs=1e-5)
    apart = same + torch.tensor([[0.0, -20.0, 0.0], [-20.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert contrastive_loss(apart, torch.tensor([1, 1, 2])).item() > 6


def test_embeddings_are_unit_rows_and_padding_of_prompts_changes_nothing():
    model = make_model().eval()
    batch = make_batch([0, 1, 2])
    output = model(batch["pixel_values"], batch["input_ids"])
    assert output.loss is None
    for embeds in (output.image_embeds, output.text_embeds):
        assert torch.allclose(embeds.norm(dim=-1), torch.ones(3))
    padded = F.pad(batch["input_ids"], (0, 2), value=7)
    mask = (torch.arange(5) < 3).long().expand(3, -1)
    assert torch.allclose(model.get_text_features(padded, mask), output.text_embeds, atol=1e-6)
    assert not torch.allclose(model.get_text_features(padded), output.text_embeds, atol=1e-2)


def test_logit_scale_is_clamped():
    model = make_model(logit_scale_max=20.0).eval()
    batch = make_batch([0, 1, 2, 1])
    losses = []
    for scale in (10.0, 20.0, 500.0):
        model.logit_scale.data.fill_(math.log(scale))
        losses.append(model(**batch).loss.item())
    assert losses[1] == pytest.approx(losses[2]) and losses[0] != pytest.approx(losses[1])


# Six pairs for two processes; character 4 is on both.
ROWS = [4, 4, 9, 4, 2, 9]


def train_step(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    # Batch statistics are each process's own, so that only without them do two processes equal one.
    model = DistributedDataParallel(make_model(arcface_weight=0.5, subtype_weight=0.5).eval())
    output = model(**{name: tensor[3 * rank : 3 * rank + 3] for name, tensor in make_batch(ROWS).items()})
    output.loss.backward()
    grads = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    torch.save({"contrastive": output.contrastive_loss, "grads": grads}, folder / f"{rank}.pt")
    distributed.barrier()
    # Not an ordinary end: Gloo, as it is destroyed under the interpreter's lock, may wait for a thread that waits for
    # the lock (seen with torch 2.13 on a busy machine).
    os._exit(0)


def test_two_processes_equal_one_with_both_batches(tmp_path, run_in_two_processes):
    run_in_two_processes(__file__, tmp_path)
    model = make_model(arcface_weight=0.5, subtype_weight=0.5).eval()
    output = model(**make_batch(ROWS))
    output.loss.backward()
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(result["contrastive"], output.contrastive_loss, atol=1e-6)
        for name, parameter in model.named_parameters():
            assert parameter.grad.abs().max() > 0, name
            assert torch.allclose(result["grads"][name], parameter.grad, rtol=1e-4, atol=1e-6), name
    # The halves on their own are another loss: what is asserted above needs the gathering.
    halves = [contrastive_loss_of(model, slice(start, start + 3)) for start in (0, 3)]
    assert abs(sum(halves) / 2 - output.contrastive_loss.item()) > 0.1


def contrastive_loss_of(model: MCLIPModel, part: slice) -> float:
    return model(**{name: tensor[part] for name, tensor in make_batch(ROWS).items()}).contrastive_loss.item()


def test_arcface_loss_by_hand():
    model = make_model(arcface_weight=0.7, arcface_scale=12.0).eval()
    batch = make_batch([4, 1, 4, 11])
    output = model(**batch)
    centres = F.normalize(model.arcface_centres, dim=-1)
    expected = 0.0
    for embed, row, margin in zip(output.image_embeds, batch["rows"], batch["margins"], strict=True):
        cosines = (centres @ embed).tolist()
        cosines[row] = math.cos(math.acos(cosines[row]) + margin.item())
        exponents = [math.exp(12 * cosine) for cosine in cosines]
        expected -= math.log(exponents[row] / sum(exponents)) / 4
    assert output.arcface_loss.item() == pytest.approx(expected, rel=1e-4)
    assert output.loss.item() == pytest.approx(output.contrastive_loss.item() + 0.7 * expected, rel=1e-4)


def test_arcface_margin_is_the_languages():
    model = make_model(arcface_weight=1.0, arcface_margins={"hi": 0.5, "bn": 0.4}).eval()
    assert [model.margin(lang) for lang in ("hi", "bn", "en")] == [0.5, 0.4, 0.2]
    batch = make_batch([0, 1, 2])
    losses = []
    for lang in ("en", "bn", "hi"):
        batch["margins"] = torch.full((3,), model.margin(lang))
        losses.append(model(**batch).arcface_loss.item())
    assert losses == sorted(losses) and losses[0] < losses[2]
    batch["margins"] = None
    assert model(**batch).arcface_loss.item() == losses[0]


def test_arcface_at_the_ends_of_the_circle_has_finite_gradients():
    model = make_model(arcface_weight=1.0).eval()
    batch = make_batch([0, 1])
    embeds = model.get_image_features(batch["pixel_values"]).detach()
    model.arcface_centres.data[:2] = torch.stack([embeds[0], -embeds[1]])
    output = model(**batch)
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_autocast():
    model = make_model(arcface_weight=1.0, subtype_weight=1.0).eval()
    batch = make_batch([0, 1, 2, 1])
    full = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    for name in ("contrastive_loss", "arcface_loss", "subtype_loss"):
        assert output[name].item() == pytest.approx(full[name].item(), rel=0.05), name
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_subtype_loss():
    model = make_model(subtype_weight=0.3).eval()
    batch = make_batch([0, 1, 2, 7])
    output = model(**batch)
    expected = F.cross_entropy(model.subtype_head(output.image_embeds), batch["subtypes"])
    assert output.arcface_loss is None
    assert torch.allclose(output.subtype_loss, expected)
    assert torch.allclose(output.loss, output.contrastive_loss + 0.3 * expected)


def test_losses_fall_together():
    model = make_model(arcface_weight=0.1, subtype_weight=0.5).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = make_batch([0, 1, 2, 3, 3, 2, 8, 8])
    first = model(**batch)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    last = model(**batch)
    for name in ("contrastive_loss", "arcface_loss", "subtype_loss"):
        assert last[name] < 0.7 * first[name], name


def test_save_and_load_is_bit_equal(tmp_path):
    model = make_model(arcface_weight=1.0, subtype_weight=1.0, arcface_margins={"hi": 0.3})
    batch = make_batch([0, 1, 2, 3])
    model.train()(**batch)  # moves the batch statistics
    model.eval().save_pretrained(tmp_path)
    loaded = MCLIPModel.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.margin("hi") == 0.3
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(StrictDataclassError, match="hidden_size 16 is not a multiple of num_attention_heads 3"):
        MCLIPConfig(**{**SHAPE, "num_attention_heads": 3})


if __name__ == "__main__":
    train_step(Path(sys.argv[1]))


def test_known_prototypes_stand_in_for_the_text_side():
    model = make_model().eval()
    batch = make_batch([0, 1, 2, 3])
    output = model(**batch)
    prototypes = F.normalize(torch.randn(4, output.text_embeds.shape[1]), dim=-1)
    prototypes[3] = 0  # a new character
    learned = model(**batch, prototypes=prototypes)
    targets = torch.cat([prototypes[:3], output.text_embeds[3:]])
    scale = model.logit_scale.exp()
    expected = contrastive_loss(scale * output.image_embeds @ targets.t(), batch["rows"])
    assert learned.contrastive_loss.item() == pytest.approx(expected.item(), rel=1e-4)
    cosines = (output.text_embeds[:3] * prototypes[:3]).sum(1)
    assert learned.bank_loss.item() == pytest.approx(1 - cosines.mean().item(), rel=1e-4)
    assert model(**batch, prototypes=torch.zeros_like(prototypes)).bank_loss.item() == 0
