"""Densities in the hands of torch's own tools: copies, processes, threads, compilers, averages and mixed precision."""

import copy
import io
import math
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fields import wild
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

from anode import InputError, Solver
from cnf import Flow, MaximumLikelihood, density_model

DENSITIES = {
    "flow": {"whiten": True},
    "given": {"context": 1},
    "lifted": {"extra": 1, "posterior": "learned"},
    "mixture": {"extra": 2, "augmentation": "categorical"},
}


@pytest.fixture(params=DENSITIES)
def density(request):
    """A model, points and their contexts."""
    x = torch.randn(50, 2)
    c = torch.randn(50, 1) if request.param == "given" else None
    return wild(density_model((2,), x, hidden=(8, 8), **DENSITIES[request.param])), x[:5], c if c is None else c[:5]


def log_prob(model, x, c):
    torch.manual_seed(0)
    return model.log_prob(x, c)


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def from_state_dict(model):
    other = density_model(**model.arguments)
    other.load_state_dict(model.state_dict())
    return other


def from_meta(model):
    with torch.device("meta"):
        other = density_model(**model.arguments)
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save, from_state_dict, from_meta,
     lambda model: copy.deepcopy(model).double().float(), lambda model: AveragedModel(model).module,
     lambda model: copy.deepcopy(model).share_memory()],
    ids=["deepcopy", "pickle", "torch.save", "state_dict", "meta", "double and back", "average", "shared memory"],
)  # fmt: skip
def test_copies_have_the_same_density(density, copied):
    model, x, c = density
    expected = log_prob(model, x, c)
    assert torch.equal(log_prob(copied(model), x, c), expected)
    MaximumLikelihood(model)(x, c).backward()
    assert torch.equal(log_prob(model, x, c), expected)


def test_threads_see_one_density():
    model, x = wild(density_model((2,), hidden=(8, 8))), torch.randn(40, 2)
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda row: model.log_prob(row[None]).item(), x))
    alone = [model.log_prob(row[None]).item() for row in x]
    assert rows == alone


def test_compiled_log_densities_are_the_same():
    model, x = wild(density_model((2,), hidden=(8, 8))), torch.randn(5, 2)
    compiled = torch.compile(model.log_prob, backend="eager")
    torch.testing.assert_close(compiled(x), model.log_prob(x), rtol=1e-6, atol=1e-6)


class Draws(IterableDataset):
    """Samples of a density, one after the other."""

    def __init__(self, model):
        self.model = model

    def __iter__(self):
        return (self.model.sample(1)[0] for _ in range(5))


def test_workers_of_a_loader_draw_different_samples():
    x = torch.cat(list(DataLoader(Draws(density_model((2,), hidden=(8,))), 5, num_workers=2)))
    assert x.shape == (10, 2)
    assert len(x.unique(dim=0)) == 10


def of_one_point(arguments):
    model, x = arguments
    torch.set_num_threads(1)
    with torch.no_grad():
        return model.log_prob([x]).item()


def test_forked_processes_evaluate_one_point_each_after_a_backward_pass():
    model = wild(density_model((2,), hidden=(8,)))
    MaximumLikelihood(model)(torch.randn(9, 2)).backward()
    points = torch.randn(4, 2).tolist()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(of_one_point, [(model, point) for point in points])
    assert found == [of_one_point((model, point)) for point in points]


def test_autocast_leaves_log_densities_exact_and_training_fast(density):
    model, x, c = density
    exact, before = log_prob(model, x, c), MaximumLikelihood(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_prob(model, x, c), exact)
        torch.manual_seed(0)
        rough = before(x, c)
    torch.manual_seed(0)
    fine = before(x, c)
    assert rough != fine
    torch.testing.assert_close(rough, fine, rtol=0.2, atol=0.2)


def test_autocast_leaves_samples_and_paths_exact(density):
    model, x, c = density
    uses = [lambda: model.sample(len(x), c), lambda: model.sample_paths(len(x), [0, 1], c)]
    if isinstance(model, Flow):
        uses += [lambda: model.encode(x, c), lambda: model.decode(x, c), lambda: model.trajectory(x, [0, 1], c)]
    if model.has_rsample:
        uses += [lambda: model.rsample(len(x), c), lambda: model.rsample_and_log_prob(len(x), c)[1]]
    for use in uses:
        torch.manual_seed(0)
        exact = use()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(use(), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_refused(density, dtype):
    model, x, c = density
    model.to(dtype)
    uses = [model.log_prob, lambda x, c: model.elbo(x, c), lambda x, c: model.sample(5, c), MaximumLikelihood(model)]
    for use in uses:
        with pytest.raises(InputError, match=f"the model is in {dtype}, too coarse.*float\\(\\)"):
            use(x, c)


def test_far_points_have_finite_log_densities_and_gradients():
    model = wild(density_model((2,), torch.randn(100, 2), hidden=(8, 8)))
    for size in (1e3, 1e6, 1e12, 1e18):
        x = torch.full((1, 2), size, requires_grad=True)
        value = model.log_prob(x)
        assert torch.isfinite(value).all()
        assert torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all()
        assert value.item() < -size
    assert model.log_prob(torch.full((1, 2), 1e25)).item() == -math.inf


def test_units_of_any_size_move_the_log_density_by_their_logarithm():
    """Samples of size 1e-22 have a density of 1e44: the NLL is negative, and right."""
    x = torch.randn(500, 2)
    expected = density_model(2, x).log_prob(x)
    for unit in (1e-22, 1e15):
        found = density_model(2, unit * x).log_prob(unit * x)
        torch.testing.assert_close(found, expected - 2 * math.log(unit), rtol=1e-4, atol=1e-3)


def test_two_peaks_in_one_dimension():
    """Flow matching comes within 0.05 nats of the entropy of N(-2, 0.5^2) / 2 + N(2, 0.5^2) / 2."""
    from cnf import FlowMatching

    def draw(n):
        return 0.5 * torch.randn(n, 1) + 4 * torch.randint(2, (n, 1)) - 2

    torch.manual_seed(0)
    model = density_model(1, draw(2000), hidden=(64, 64), solver=Solver(rtol=1e-4, atol=1e-4))
    objective = FlowMatching(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        objective(draw(512)).backward()
        optimizer.step()
        schedule.step()
    axis = torch.arange(-8, 8, 0.02)[:, None]
    with torch.no_grad():
        log_p = model.log_prob(axis).double()
        assert log_p.exp().sum().item() * 0.02 == pytest.approx(1, abs=2e-3)
        nll = -model.log_prob(draw(4000)).mean().item()
    entropy = math.log(2) + 0.5 * math.log(2 * math.pi * math.e * 0.25)  # the peaks hardly overlap
    assert nll == pytest.approx(entropy, abs=0.05)
