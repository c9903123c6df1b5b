import copy

import pytest
import torch

from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import TOKEN_OFFSET
from mstr_hf.training.distillation import Distillation
from mstr_hf.training.trainer import Batch, own_loss


@pytest.fixture
def pair(tiny_refiner) -> tuple[RefinerModel, RefinerModel]:
    """A Refiner and its teacher, equal at first, both with known batch statistics."""
    student = copy.deepcopy(tiny_refiner)
    student.config.freeze_spotter = False
    return student.requires_grad_(True).eval(), copy.deepcopy(tiny_refiner)


@pytest.fixture
def batch(tiny_refiner) -> Batch:
    """Three words of two and three characters."""
    generator = torch.Generator().manual_seed(0)
    labels = TOKEN_OFFSET + torch.randint(0, len(tiny_refiner.get_bank()), (3, 3), generator=generator)
    labels[0, 2] = -100
    mask = torch.arange(64) < torch.tensor([[64], [40], [64]])
    return {"pixel_values": torch.randn(3, 1, 32, 64, generator=generator), "pixel_mask": mask, "labels": labels}


def moved(model: RefinerModel, part: str) -> RefinerModel:
    """Weights of a part go somewhere else."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def test_a_student_that_has_not_moved_pays_nothing(pair, batch):
    student, teacher = pair
    loss = Distillation(student, teacher)(student, batch)
    assert loss.item() == pytest.approx(own_loss(student, batch).item(), abs=1e-4)


@pytest.mark.parametrize("part", ["encoder.spotter.head.projection", "embedding_projection"])
def test_what_goes_from_the_teacher_is_drawn_back(pair, batch, part):
    student, teacher = pair
    distillation = Distillation(moved(student, part), teacher)
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimizer = torch.optim.Adam([p for name, p in student.named_parameters() if name.startswith(part)], 1e-2)
    distances = []
    for _ in range(30):
        distance = distillation(student, batch) - own_loss(student, batch)
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert distances[0] > 0.01 and distances[-1] < 0.3 * distances[0]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())


def test_words_that_the_teacher_cannot_know_are_learned_from_labels_alone(pair, batch):
    student, teacher = pair
    bank = student.get_bank()
    rows = torch.nn.functional.normalize(torch.randn(1, bank.prototypes.shape[1]), dim=-1)
    student.set_bank(bank.extend(rows, ["ಕ"], [0], ["Knda"], [["kn"]]))
    moved(student, "encoder.spotter.head.projection")
    distillation = Distillation(student, teacher)
    known, new = batch["labels"].clone(), batch["labels"].clone()
    new[:, 0] = TOKEN_OFFSET + len(bank)
    new[0, 0] = known[0, 0]
    every = distillation(student, batch) - own_loss(student, batch)
    first = {name: tensor[:1] for name, tensor in batch.items()}
    alone = distillation(student, first) - own_loss(student, first)
    some = batch | {"labels": new}
    part = distillation(student, some) - own_loss(student, some)
    assert part.item() == pytest.approx(alone.item(), abs=1e-4) and abs(every.item() - part.item()) > 1e-3
    none = batch | {"labels": new[1:], "pixel_values": batch["pixel_values"][1:], "pixel_mask": batch["pixel_mask"][1:]}
    assert distillation(student, none).item() == own_loss(student, none).item()
