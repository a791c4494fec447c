"""The autoregressive model of discrete variables against enumeration and frequencies."""

import itertools
import math

import pytest
import torch
from refusals import refused
from torch import nn

from cnf.tables.categories import Categories

SIZES = (2, 3, 4)


def random_model(sizes=SIZES, given=0, std=1.0):
    """A model with random weights, in float64."""
    model = Categories(sizes, given, hidden=16).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def all_states(sizes=SIZES):
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def frequencies(states, sizes):
    """Return the shares of all states among samples, in the order of all_states."""
    return (states[:, None] == all_states(sizes)).all(2).double().mean(0)


def noise(n, sizes=SIZES):
    return torch.stack([torch.randint(size, (n,)) for size in sizes], 1)


def marginals_log_prob(train, states, sizes):
    """Return the log-probabilities of states by smoothed frequencies of each variable."""
    counts = [torch.bincount(train[:, v], minlength=size) + 1 / size for v, size in enumerate(sizes)]
    return sum((count / count.sum()).log()[states[:, v]] for v, count in enumerate(counts))


@pytest.mark.parametrize("sizes", [SIZES, (3,), (1, 2), (2, 1, 1)])
@pytest.mark.parametrize("given", [0, 2])
def test_probabilities_sum_to_one(sizes, given):
    model, states = random_model(sizes, given), all_states(sizes)
    for c in torch.randn(3, given).double():
        log_prob = model.log_prob(states, c.expand(len(states), -1) if given else None)
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_every_conditional_sees_all_states_before_it_and_none_after():
    model = random_model((2, 3, 2, 2), given=1)
    states, c = all_states((2, 3, 2, 2)), torch.randn(24, 1).double()
    p = model.log_prob(states, c[:1].expand(24, 1)).exp().view(2, 3, 2, 2)
    first, second = p.sum((1, 2, 3)), p.sum((2, 3))
    changed = random_model((2, 3, 2, 2), given=1)
    changed.load_state_dict(model.state_dict())
    changed.bias[5:] += 1  # of the last two variables
    q = changed.log_prob(states, c[:1].expand(24, 1)).exp().view(2, 3, 2, 2)
    torch.testing.assert_close(q.sum((1, 2, 3)), first)
    torch.testing.assert_close(q.sum((2, 3)), second)
    conditional = p / p.sum(3, keepdim=True)
    assert all(conditional.diff(dim=axis).abs().min() > 1e-6 for axis in (0, 1, 2))


@pytest.mark.parametrize("n", [400, 20_000])
def test_fit_recovers_a_joint_table_with_an_exclusive_or(n):
    a, b, other = torch.randint(2, (n,)), torch.randint(2, (n,)), torch.randint(3, (n,))
    flip = torch.rand(n) < 0.1
    states = torch.stack([a, other, b, (a ^ b) ^ flip.long()], 1)
    model = Categories((2, 3, 2, 2)).fit(states)
    grid = all_states((2, 3, 2, 2))
    truth = torch.where((grid[:, 0] ^ grid[:, 2]) == grid[:, 3], 0.9, 0.1) / 12
    kl = (truth * (truth.log() - model.log_prob(grid))).sum()
    assert 0 <= kl < 12 / n + 0.01  # of a table fitted by frequencies: 23 / (2 n)


def test_fit_learns_the_dependence_on_features():
    c = 100 + 5 * torch.randn(4000, 1)
    p = torch.sigmoid((c[:, 0] - 100) / 2)
    states = torch.stack([(torch.rand(4000) < p).long(), torch.randint(3, (4000,))], 1)
    model = Categories((2, 3), given=1).fit(states, c)
    at = torch.tensor([[95.0], [100.0], [104.0]])
    one = sum(model.log_prob(torch.tensor([[1, k]] * 3), at).exp() for k in range(3))
    torch.testing.assert_close(one, torch.sigmoid((at[:, 0] - 100) / 2), atol=0.05, rtol=0)


def test_fit_learns_a_copy():
    states = torch.randint(5, (1000, 1)).expand(-1, 2)
    sample = Categories((5, 5)).fit(states).sample(5000)
    assert (sample[:, 0] == sample[:, 1]).double().mean() > 0.98


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 5, 30, 100])
def test_noise_is_not_overfitted(n, seed):
    torch.manual_seed(seed)
    sizes = (2, 5, 8)
    train, test = noise(n, sizes), noise(5000, sizes)
    loss = marginals_log_prob(train, test, sizes).mean() - Categories(sizes).fit(train, seed=seed).log_prob(test).mean()
    assert loss < 0.05


def test_states_that_do_not_occur_have_a_positive_probability():
    model = Categories((4, 3)).fit(torch.tensor([[0, 1], [1, 0]] * 200))
    p = model.log_prob(all_states((4, 3))).exp()
    assert p.min() > 1e-9
    assert p[1] + p[3] > 0.97


def test_weights_equal_repeated_rows():
    grid = all_states((2, 3))
    counts = torch.tensor([400, 100, 50, 30, 300, 200])
    repeated = Categories((2, 3)).fit(grid.repeat_interleave(counts, 0))
    rows = grid.repeat_interleave(100, 0)
    weights = counts.repeat_interleave(100)
    for scale in (1.0, 1e-4, 1e4):
        weighted = Categories((2, 3)).fit(rows, weights=scale * weights)
        torch.testing.assert_close(weighted.log_prob(grid), repeated.log_prob(grid), atol=0.1, rtol=0)


def test_rows_of_weight_zero_do_not_count():
    states = noise(300)
    kept, weights = states[:200], torch.ones(300)
    weights[200:] = 0
    weighted, without = Categories(SIZES).fit(states, weights=weights), Categories(SIZES).fit(kept)
    torch.testing.assert_close(weighted.log_prob(states), without.log_prob(states))


@pytest.mark.parametrize("given", [0, 1])
def test_sampling_frequencies(given):
    model, n = random_model(given=given), 50_000
    c = torch.full((1, given), 0.7).double()
    p = model.log_prob(all_states(), c.expand(24, -1) if given else None).exp()
    found = frequencies(model.sample(n, c.expand(n, -1) if given else None), SIZES)
    assert ((found - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_observed_states_are_kept_and_weighted():
    model, n = random_model(std=0.7), 50_000
    observed = torch.tensor([-1, 2, -1]).expand(n, -1)
    states, log_weights = model.sample_and_weight(n, observed=observed)
    assert (states[:, 1] == 2).all()
    p = model.log_prob(all_states()).exp().view(SIZES)
    conditional = (p.sum(2) / p.sum((1, 2))[:, None])[:, 2]  # p(s_2 = 2 | s_1)
    torch.testing.assert_close(log_weights.exp(), conditional[states[:, 0]])
    weights = log_weights.exp()
    for s in itertools.product(range(2), range(4)):
        share = (weights * (states[:, [0, 2]] == torch.tensor(s)).all(1)).sum() / weights.sum()
        assert share.item() == pytest.approx((p[s[0], 2, s[1]] / p[:, 2].sum()).item(), abs=0.02)


def test_weights_of_rows_observed_in_full_are_their_probabilities():
    model, states = random_model(), all_states()
    kept, log_weights = model.sample_and_weight(24, observed=states)
    assert kept.equal(states)
    torch.testing.assert_close(log_weights, model.log_prob(states))


def test_allowed_states_and_their_weights():
    model, n = random_model(), 50_000
    allowed = [None, torch.tensor([True, False, True]), torch.tensor([False, True, True, False])]
    states, log_weights = model.sample_and_weight(n, allowed=allowed)
    assert set(states[:, 1].tolist()) <= {0, 2}
    assert set(states[:, 2].tolist()) <= {1, 2}
    p = model.log_prob(all_states()).exp().view(SIZES)[:, [0, 2]][:, :, [1, 2]]
    weights = log_weights.exp()
    assert weights.mean().item() == pytest.approx(p.sum().item(), rel=0.05)
    share = weights[states[:, 0] == 1].sum() / weights.sum()
    assert share.item() == pytest.approx((p[1].sum() / p.sum()).item(), abs=0.02)


def test_without_conditions_the_weights_are_one():
    assert random_model().sample_and_weight(7)[1].abs().max() < 1e-12
    assert random_model().sample(0).shape == (0, 3)


def test_a_fit_is_reproducible_and_leaves_global_randomness_alone():
    states, c = noise(3000), torch.randn(3000, 1)
    before = torch.get_rng_state()
    first, again = (Categories(SIZES, 1).fit(states, c, seed=3) for _ in range(2))
    assert torch.get_rng_state().equal(before)
    assert all(first.state_dict()[name].equal(value) for name, value in again.state_dict().items())
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_fit_works_without_gradients():
    with torch.no_grad():
        Categories(SIZES).fit(noise(100))


def test_float64():
    states = noise(200)
    model = Categories(SIZES).double().fit(states)
    assert model.log_prob(states).dtype == model.one_hot(states).dtype == torch.float64


def test_one_hot():
    expected = [[0, 1, 0, 0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0, 1]]
    assert Categories(SIZES).one_hot(torch.tensor([[1, 2, 0], [0, 0, 3]])).tolist() == expected


def test_the_state_dict_holds_everything():
    states, c = noise(300), 3 + torch.randn(300, 2)
    model = Categories(SIZES, 2).fit(states, c)
    with torch.device("meta"):
        rebuilt = Categories(SIZES, 2)
    rebuilt.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert rebuilt.log_prob(states, c).equal(model.log_prob(states, c))


def test_before_the_fit_all_states_have_equal_probabilities():
    log_prob = Categories(SIZES).log_prob(all_states())
    torch.testing.assert_close(log_prob, torch.full((24,), -math.log(24)))


def test_refusals():
    model, states = Categories(SIZES), noise(20)
    refused("at least one variable", Categories, ())
    refused("whole number of at least 1", Categories, (0, 2))
    refused(r"states\[0, 1\]=3 is not a state of variable 1: pass 0 to 2", model.log_prob, torch.tensor([[0, 3, 0]]))
    refused(r"observed\[0, 0\]=-2 .* pass -1 to 1", model.sample, 1, observed=torch.tensor([[-2, 0, 0]]))
    refused("observed has 2 rows for n=1", model.sample, 1, observed=torch.zeros(2, 3))
    refused(r"pass \(N, 3\)", model.log_prob, states[:, :2])
    refused("omit it", model.log_prob, states, torch.zeros(20, 1))
    refused("c is missing", Categories(SIZES, 2).log_prob, states)
    refused("c is not finite", Categories(SIZES, 1).log_prob, states, torch.full((20, 1), math.nan))
    refused("weights", model.fit, states, weights=-torch.ones(20))
    refused("weights", model.fit, states, weights=torch.ones(3))
    refused("weights", model.fit, states[:0])
    refused("allowed has shapes", model.sample, 2, allowed=[None, None])
    refused(r"allowed\[0\] forbids all", model.sample, 2, allowed=[torch.zeros(2, dtype=torch.bool), None, None])
