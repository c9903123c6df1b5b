import pytest
import torch
from torch import nn

from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.training.optimizer import LEAST_SIDE, Muon, orthogonalise, parameter_groups


def test_parameter_groups():
    torch.manual_seed(3)
    model = SpotterModel(SpotterConfig())
    model.backbone.stem.requires_grad_(False)
    groups = parameter_groups(model, 0.3, {"backbone.": 0.1, "backbone.layers.": 7.0, "head.projection.": 2.0})
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len({(group["rate"], group["weight_decay"], group["orthogonal"]) for group in groups}) == len(groups)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert {names[p] for p in listed} == {n for n in names.values() if not n.startswith("backbone.stem.")}
    assert len(listed) == len(set(listed))
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0), name
            # the first prefix that fits counts
            rate = 0.1 if name.startswith("backbone.") else 2.0 if name.startswith("head.projection.") else 1.0
            assert group["rate"] == rate, name
    assert {group["rate"] for group in parameter_groups(model, 0.3)} == {1.0}


def test_matrices_and_convolutions_are_orthogonalised_and_tables_are_not():
    for model in (SpotterModel(SpotterConfig()), MCLIPModel(MCLIPConfig())):
        names = {parameter: name for name, parameter in model.named_parameters()}
        found = {
            names[parameter]: group["orthogonal"]
            for group in parameter_groups(model, 0.0)
            for parameter in group["params"]
        }
        tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
        assert not any(found[f"{name}.weight"] for name in tables)
        sizes = {names[parameter]: parameter.numel() for parameter in names}
        orthogonal = [name for name, yes in found.items() if yes]
        assert all(model.get_parameter(name).flatten(1).shape[1] >= LEAST_SIDE for name in orthogonal)
        tabled = sum(sizes[f"{name}.weight"] for name in tables)
        assert sum(sizes[name] for name in orthogonal) > 0.95 * (sum(sizes.values()) - tabled)
        assert not any(yes for name, yes in found.items() if name.endswith("bias"))


@pytest.mark.parametrize("shape", [(24, 24), (16, 80), (80, 16)])
def test_orthogonalise_keeps_directions_and_evens_out_sizes(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert values.max() > 1.5 * values.min()
    found = orthogonalise(matrix)
    turned = left.T @ found @ right.T
    assert ((turned.diagonal() > 0.6) & (turned.diagonal() < 1.3)).all()
    assert (turned - turned.diagonal().diag()).abs().max() < 1e-3


def steps(optimizer, parameters, gradients):
    for gradient in gradients:
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.grad = part.clone()
        optimizer.step()


def test_a_matrix_moves_as_under_pytorchs_own_muon():
    torch.manual_seed(1)
    ours, theirs = (nn.Parameter(tensor) for tensor in torch.randn(32, 48).expand(2, 32, 48).clone())
    before = ours.detach().clone()
    gradients = [[torch.randn(32, 48)] for _ in range(5)]
    options = {"lr": 0.01, "momentum": 0.95}
    group = {"params": [ours], "weight_decay": 0.1, "orthogonal": True}
    steps(Muon([group], **options, dtype=torch.bfloat16), [ours], gradients)
    # PyTorch's momentum is a sum of gradients, not a mean, which orthogonalising makes the same.
    peer = torch.optim.Muon([theirs], **options, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    steps(peer, [theirs], gradients)
    assert (ours - before).norm() > 0.1
    assert (ours - theirs).norm() < 0.02 * (ours - before).norm()


def test_a_convolution_moves_like_the_matrix_that_it_is():
    torch.manual_seed(2)
    start = torch.randn(16, 4, 3, 3)
    gradients = [torch.randn(16, 4, 3, 3) for _ in range(3)]
    found = []
    for shape, layout in (
        ((16, 36), torch.contiguous_format),
        ((16, 4, 3, 3), torch.contiguous_format),
        ((16, 4, 3, 3), torch.channels_last),
    ):
        parameter = nn.Parameter(start.clone().reshape(shape).contiguous(memory_format=layout))
        optimizer = Muon([{"params": [parameter], "orthogonal": True}], lr=0.1)
        steps(optimizer, [parameter], [[gradient.reshape(shape)] for gradient in gradients])
        found.append(parameter.detach().reshape(start.shape))
    assert torch.allclose(found[0], found[1], atol=1e-6) and torch.allclose(found[0], found[2], atol=1e-6)
    moved = (found[0] - start).square().mean().sqrt()
    assert 0.02 < moved < 0.08  # three steps of 0.2 learning rates, which agree in part


def test_the_rest_moves_as_under_adamw():
    torch.manual_seed(3)
    ours, theirs = ([nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3, 4))] for _ in range(2))
    gradients = [[torch.randn(5), torch.randn(3, 4)] for _ in range(10)]
    gradients[4][0][:] = 0.0
    steps(Muon([{"params": ours, "weight_decay": 0.1, "orthogonal": False}], lr=0.01), ours, gradients)
    steps(torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1), theirs, gradients)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_parameters_without_a_gradient_stay():
    still, moving = nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(16, 16))
    optimizer = Muon([{"params": [still, moving], "weight_decay": 0.5, "orthogonal": True}], lr=0.1)
    moving.grad = torch.eye(16)
    optimizer.step()
    assert torch.equal(still, torch.ones(16, 16)) and not torch.equal(moving, torch.ones(16, 16))


def test_goes_on_from_the_state_of_adamw():
    torch.manual_seed(4)
    parameter = nn.Parameter(torch.randn(16, 16))
    before = torch.optim.AdamW([parameter], lr=0.01)
    steps(before, [parameter], [[torch.randn(16, 16)]])
    optimizer = Muon([{"params": [parameter], "orthogonal": True}], lr=0.01)
    optimizer.load_state_dict({**before.state_dict(), "param_groups": optimizer.state_dict()["param_groups"]})
    start = parameter.detach().clone()
    steps(optimizer, [parameter], [[torch.randn(16, 16)]])
    assert 0.001 < (parameter - start).square().mean().sqrt() < 0.003
