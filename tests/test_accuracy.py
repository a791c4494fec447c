"""Accuracy of classifiers, and of densities given the class."""

import math

import pytest
import torch
from stored_runs import spread
from torch import nn
from torch.nn import functional as F

from anode import Classifier, classifier_model
from cnf import density_model
from train_flows.data import Split, class_contexts
from train_flows.evaluation import accuracy, likelihood, wording


def _jackknife(errors):
    """Standard error of the RMSE of errors (N, 1), by leaving one out."""
    n, total = len(errors), errors.square().sum()
    left = ((total - errors.square()) / (n - 1)).sqrt()
    return ((n - 1) * left.var(correction=0)).sqrt().item()


def linear(weight, bias):
    """A classifier with outputs W x + b."""
    layer = nn.Linear(*reversed(weight.shape))
    layer.load_state_dict({"weight": weight, "bias": bias})
    return Classifier(nn.Identity(), nn.Identity(), layer)


class TestClassifiers:
    def test_accuracy_of_classes_and_of_signs(self):
        x = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, -1.0], [1.0, 4.0]])
        network = linear(torch.eye(2), torch.zeros(2))
        y = torch.tensor([0, 1, 1, 1])
        found = accuracy.figures(network, Split(x, y))[0]
        assert found == {"loss": pytest.approx(F.cross_entropy(x, y).item()), "accuracy": 0.75, "nfe": 0}
        values = torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
        first = linear(torch.tensor([[1.0, 0.0]]), torch.tensor([-0.5]))
        found = accuracy.figures(first, Split(x, values))[0]
        assert found["accuracy"] == 1.0
        assert found["mse"] == pytest.approx(F.mse_loss(x[:, :1] - 0.5, values).item())
        assert found["loss"] == pytest.approx(F.smooth_l1_loss(x[:, :1] - 0.5, values).item())

    def test_figures_of_a_network(self):
        model = spread(classifier_model((2,), 3, hidden=(8,), extra=1))
        measured = accuracy.measure(model, Split(torch.randn(40, 2), torch.randint(3, (40,))))
        assert measured["samples"] == 40
        assert measured["tolerance"] == {"rtol": 1e-3, "atol": 1e-3}
        assert (measured["tighter"]["rtol"], measured["tighter"]["changed"]) == (1e-4, 0)
        assert measured["tighter"]["nfe"] >= measured["nfe"] > 0
        said = wording.accuracy_table(measured)
        assert "(40 samples, rtol 0.001, atol 0.001)" in said
        assert "(rtol 0.0001, atol 0.0001); 0.00% of the classes change" in said

    def test_evaluations_are_those_of_a_solve(self):
        model = classifier_model((2,), 1, hidden=(8,))
        one, three = (accuracy.figures(model, Split(torch.randn(n, 2), torch.ones(n, 1)))[0] for n in (10, 6000))
        assert one["nfe"] == three["nfe"] > 0

    def test_networks_without_a_solver(self):
        measured = accuracy.measure(classifier_model((2,), 1, model="mlp"), Split(torch.randn(9, 2), torch.ones(9, 1)))
        assert (measured["tolerance"], measured["nfe"], measured["loss_kind"]) == (None, 0, "smooth-l1")
        assert "NFE" not in wording.accuracy_table(measured)

    def test_classes_without_test_samples_are_named(self):
        model = classifier_model((2,), 3, model="mlp", classes=("oak", "lily", "rose"))
        measured = accuracy.measure(model, Split(torch.randn(9, 2), torch.tensor([0, 2] * 4 + [0])))
        assert measured["untested"] == ["lily"]
        assert "without samples    lily" in wording.accuracy_table(measured)
        measured = accuracy.measure(model, Split(torch.randn(9, 2), torch.arange(9) % 3))
        assert "without samples" not in wording.accuracy_table(measured)

    def test_figures_of_a_regression(self):
        x = torch.randn(50, 2)
        y = 1000 + 10 * torch.randn(50, 1)
        model = spread(classifier_model((2,), 1, task="regression", target=y + 5, hidden=(8,), extra=1))
        errors = (model.predict(x) - y).double()
        measured = accuracy.measure(model, Split(x, y))
        assert measured["rmse"] == pytest.approx(errors.square().mean().sqrt().item())
        assert measured["r2"] == pytest.approx(1 - (errors.square().mean() / y.double().var(correction=0)).item())
        assert measured["rmse_of_mean"] == pytest.approx((y - y.mean() - 5).square().mean().sqrt().item(), rel=1e-4)
        assert measured["loss"] == pytest.approx(errors.square().mean().item() / y.var(correction=0).item(), rel=1e-4)
        assert measured["standard_error"] == pytest.approx(_jackknife(errors), rel=0.1)
        assert "accuracy" not in measured
        said = wording.accuracy_table(measured)
        assert f"RMSE               {measured['rmse']:.4g} +- " in said
        assert f"RMSE of the mean {measured['rmse_of_mean']:.4g}" in said
        assert "predictions change by" in said

    def test_a_loss_of_half_precision_is_in_full(self):
        outputs = torch.randn(5, 3, dtype=torch.bfloat16)
        assert accuracy.loss(outputs, torch.zeros(5, dtype=torch.int64)).dtype == torch.float32


def model_of(shape=(1, 1, 1), **options):
    """A density of four levels given three classes, whose field differs between them."""
    data = torch.randint(4, (200, *shape))
    return spread(density_model(shape, data, levels=4, hidden=(8, 8), context=3, **options), std=0.5)


class TestDensities:
    def test_probabilities_are_those_of_the_cells(self):
        """P(x given k) is the integral of the density over the cell of x, here by the midpoint rule."""
        model, x, n = model_of(), torch.arange(4).view(4, 1, 1, 1), 500
        y = ((torch.arange(4 * n) + 0.5) / (4 * n)).view(-1, 1, 1, 1)
        with torch.no_grad():
            given = [class_contexts(torch.full((len(y),), k), 3) for k in range(3)]
            cells = [model.flow.log_prob(y, c).exp().view(4, n).sum(1) / (4 * n) for c in given]
        wanted = torch.stack(cells, 1)
        assert (wanted[:, 0] - wanted[:, 1]).abs().max() > 0.05
        found = accuracy.log_given_each(model, x, 3, samples=20_000).exp()
        torch.testing.assert_close(found, wanted, rtol=0.03, atol=1e-3)

        best = wanted.argmax(1)
        assert len(best.unique()) > 1
        labels = torch.cat([best[:3], (best[3:] + 1) % 3])
        measured = accuracy.measure_density(model, Split(x, c=class_contexts(labels, 3)), samples=2000)
        assert measured["accuracy"] == 3 / 4
        assert measured["standard_error"] == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 4))
        assert (measured["tested"], measured["classes"]) == (4, 3)
        assert (measured["kind"], measured["samples"], measured["probes"]) == ("bound", 2000, None)
        assert "4 samples, by the NLL given each of 3 classes: upper bound" in wording.density_table(measured)

    @pytest.mark.parametrize("options", [{"divergence": "hutchinson"}, {"extra": 1}, {"dequantization": "learned"}, {}])
    def test_classes_see_the_same_noise_and_samples_do_not(self, options):
        model, x = model_of((1, 2, 1), **options), torch.ones(40, 1, 2, 1)
        for name, weight in model.named_parameters():
            if name.endswith("context"):
                torch.nn.init.zeros_(weight)  # so that only noise could tell the classes apart
        found = accuracy.log_given_each(model, x, 3, samples=2)
        assert torch.equal(found[:, :1].expand(-1, 3), found)
        assert len(found[:, 0].unique()) > 30
        assert not torch.equal(accuracy.log_given_each(model, x, 3, samples=2), found)

    def test_the_nll_of_a_class_is_that_given_it(self):
        model, x, y = model_of(), torch.randint(4, (200, 1, 1, 1)), torch.randint(3, (200,))
        every = accuracy.log_given_each(model, x, 3, samples=100)
        figure, _ = likelihood.nll(model, Split(x, c=class_contexts(y, 3)), samples=100)
        assert figure["value"] == pytest.approx(-every.gather(1, y[:, None]).mean().item(), abs=0.02)
