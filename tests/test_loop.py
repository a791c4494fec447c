"""The training loop against a loop written out, and what it does when things go wrong."""

import dataclasses
import math
import signal
import time

import pytest
import torch
from tasks import Quadratic, without_times
from torch import nn

from anode import CheckpointError, Solver, SolverError
from train_flows.run import TrainingError
from train_flows.run.folder import Run
from train_flows.run.loop import line, train
from train_flows.run.step import learning_rate, shuffled_batches
from train_flows.settings import Training

UNDERFLOW = SolverError("step underflow", 0.25, 99, Solver())


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", "test", {}, {}, {})


def reference(training, lr=lambda step: 0.1, skipped=()):
    """Train by a loop written out; gives the weights after every step, and the losses."""
    task = Quadratic(training)
    optimizer = torch.optim.Adam([task.weight], 0.1)
    weights, losses = [task.weight.detach().clone()], []
    for step in sorted({*range(training.steps)} - set(skipped)):
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.zero_grad()
        loss = task.objective(task.batch(step), step)
        loss.backward()
        nn.utils.clip_grad_norm_([task.weight], training.clip)
        optimizer.step()
        weights.append(task.weight.detach().clone())
        losses.append(loss.item())
    return weights, losses


def test_is_adam_with_clipping_and_a_cosine(run):
    training = Training(steps=12, lr=0.1, clip=2.0, validate_every=5)
    task = Quadratic(training)
    assert train(task, run)
    weights, losses = reference(training, lambda step: 0.1 * (1 + math.cos(math.pi * step / 12)) / 2)
    torch.testing.assert_close(task.weight, weights[-1], rtol=1e-5, atol=1e-6)
    records = run.records()
    assert [record["step"] for record in records] == [0, 5, 10, 12]
    assert records[1]["loss"] == pytest.approx(sum(losses[:5]) / 5, rel=1e-4)
    assert records[3]["loss"] == pytest.approx(sum(losses[10:]) / 2, rel=1e-4)

    unclipped = Quadratic(Training(steps=12, lr=0.1, clip=1e9, validate_every=5))
    train(unclipped, Run.temporary())
    assert (unclipped.weight - weights[-1]).abs().max() > 1e-3  # clipping mattered


@pytest.mark.parametrize(
    ("training", "decay"),
    [
        (Training(steps=8, schedule="constant", lr_warm_up=4), lambda step: 1.0),
        (Training(steps=8, lr_warm_up=4), lambda step: (1 + math.cos(math.pi * step / 8)) / 2),
        (
            Training(steps=8, lr=0.1, likelihood_from=5, restart_lr=0.02, lr_warm_up=4),
            lambda step: (
                (1 + math.cos(math.pi * step / 5)) / 2 if step < 5 else 0.1 * (1 + math.cos(math.pi * (step - 5) / 3))
            ),
        ),
        (
            Training(steps=8, likelihood_from=5),
            lambda step: (1 + math.cos(math.pi * (step % 5) / (5, 3)[step > 4])) / 2,
        ),
    ],
)
def test_the_learning_rate_warms_up_and_restarts(training, decay):
    start = training.likelihood_from or 99
    for step in range(8):
        n = step - start if step >= start else step
        warm_up = min(1, (n + 1) / training.lr_warm_up) if training.lr_warm_up else 1
        assert learning_rate(training, step) == pytest.approx(warm_up * decay(step))


def test_recorded_learning_rates_are_those_of_the_steps(run):
    training = Training(steps=6, lr=0.1, lr_warm_up=2, likelihood_from=4, validate_every=1)
    train(Quadratic(training), run)
    assert [record["lr"] for record in run.records()] == [0.1 * learning_rate(training, step) for step in range(7)]


def test_a_plateau_halves_the_rate(run):
    training = Training(steps=12, lr=0.1, schedule="plateau", validate_every=1)
    train(Quadratic(training, validate=lambda: {"nll": 1.0}), run)
    rates = [record["lr"] for record in run.records()]
    assert rates[:5] == [0.1] * 5  # the best, and three validations of patience
    assert rates[6] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.025)


def test_batches_are_shuffled_epochs():
    x = torch.arange(20)
    batch = shuffled_batches(x, 5, seed=1)
    epochs = [torch.cat([batch(4 * epoch + i) for i in range(4)]) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(20))
        assert epoch.tolist() != list(range(20))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    again = shuffled_batches((x, 10 * x), 5, seed=1)
    assert torch.equal(again(6)[0], batch(6))  # the order of the calls does not matter
    assert torch.equal(again(6)[1], 10 * batch(6))
    assert not torch.equal(shuffled_batches(x, 5, seed=2)(6), batch(6))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (UNDERFLOW, "^step 3 failed: its solve failed: step underflow at t = 0.25"),
        (None, "^11 steps in a row failed; step 13 failed: it has loss nan .* lower --lr"),
    ],
)
def test_failures_name_the_step_and_keep_the_state(run, failure, message):
    task = Quadratic(Training(steps=20, validate_every=12 if failure is None else 2), range(3, 99), failure)
    with pytest.raises(TrainingError, match=f"{message}.*the best weights are in {run.folder}"):
        train(task, run)
    assert run.step == (2 if failure else 12)
    assert torch.isfinite(run.load_state()["model"]["weight"]).all()


@pytest.mark.parametrize(
    ("losses", "fails_at", "too_fast"),
    [([3.0], 1, True), ([3.0], 0, False), ([3.0, 2.0, 1.0], 5, False), ([3.0, 2.0, 2.5], 5, True)],
    ids=["before a record", "before a step", "while it falls", "after it grew"],
)
def test_advice_fits_the_cause(run, losses, fails_at, too_fast):
    """A solve that fails is too hard, unless steps were too long."""
    values = iter(losses)
    training = Training(steps=9, lr=0.3, validate_every=2)
    task = Quadratic(training, {fails_at}, UNDERFLOW, validate=lambda: {"nll": next(values)})
    first = "lower --lr, which is 0.3; if that does not help, " if too_fast else r"max_steps=1000\): "
    with pytest.raises(TrainingError, match=f"{first}the dynamics are too stiff there; loosen rtol"):
        train(task, run, quiet=True)


def test_output_that_nobody_reads_is_not_a_full_disk(run, monkeypatch):
    def write(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("tqdm.tqdm.write", write)
    with pytest.raises(BrokenPipeError):
        train(Quadratic(Training(steps=2)), run)


@pytest.mark.parametrize("failure", [UNDERFLOW, SolverError("non-finite state", 0.25, 99, Solver()), None])
def test_failing_steps_can_be_skipped(run, failure):
    """They change nothing, are counted, and are left out of the means."""
    training = Training(steps=8, lr=0.1, schedule="constant", validate_every=4, on_stiff="skip", max_skipped=2)
    task = Quadratic(training, {1, 2, 5}, failure)
    assert train(task, run)
    assert [record["skipped"] for record in run.records()] == [0, 2, 1]
    weights, losses = reference(training, skipped={1, 2, 5})
    torch.testing.assert_close(task.weight, weights[-1])
    assert run.records()[1]["loss"] == pytest.approx(sum(losses[:2]) / 2, rel=1e-5)
    with pytest.raises(TrainingError, match="3 steps in a row failed"):
        train(Quadratic(training, {1, 2, 3}, failure), Run.temporary())


def test_a_failed_validation_names_the_step(run):
    def validate():
        raise SolverError("too many steps", 0.5, 99, Solver())

    with pytest.raises(TrainingError, match=r"validation at step 0 failed: too many steps.*nothing was learnt yet"):
        train(Quadratic(Training(steps=2), validate=validate), run)


@pytest.mark.parametrize(("criterion", "kept"), [("nll", 2), (None, 5)])
def test_the_best_or_the_last_weights_are_kept(run, criterion, kept):
    seen = []

    def validate():
        seen.append(task.weight.detach().clone())
        return {"nll": abs(len(seen) - 3.0)}

    task = Quadratic(Training(steps=5, lr=0.1, validate_every=1), validate=validate)
    task.criterion = criterion
    train(task, run)
    assert run.load_best(task.model)
    assert torch.equal(task.weight, seen[kept])


def test_the_average_is_the_recursion_written_out(run):
    """Validated and kept with the averaged weights, trained with the others."""
    training = Training(steps=20, lr=0.1, schedule="constant", ema=0.6, validate_every=5)
    seen = []

    def validate():
        seen.append(task.weight.detach().clone())
        return {"nll": -float(len(seen))}

    task = Quadratic(training, validate=validate)
    train(task, run)
    weights, _ = reference(training)
    average, expected = weights[0], [weights[0]]
    for n in range(1, 21):
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights[n]
        expected += [average] if n % 5 == 0 else []
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(task.weight, weights[-1], rtol=1e-4, atol=1e-5)
    assert run.load_best(task.model)
    assert torch.equal(task.weight, seen[-1])


@pytest.mark.parametrize(("patience", "steps"), [(2, 5), (3, 6), (0, 12)])
def test_patience_ends_training(run, patience, steps):
    """An equal figure does not count as progress."""
    figures = iter([5.0, 4.0, 6.0, 3.0, 4.0, *[3.0] * 8])
    training = Training(steps=12, lr=0.1, validate_every=1, patience=patience)
    assert train(Quadratic(training, validate=lambda: {"nll": next(figures)}), run)
    assert run.records()[-1]["step"] == steps


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_objectives_work_in_a_precision_and_validation_in_full(run, precision, dtype):
    seen, validated = [], []
    task = Quadratic(
        Training(steps=1, precision=precision), validate=lambda: validated.append(product()) or {"nll": 0.0}
    )

    def product():
        return (torch.eye(2) @ torch.eye(2)).dtype

    task.objective = lambda batch, step: seen.append(product()) or task.weight.square().sum()
    train(task, run)
    assert seen == [dtype]
    assert set(validated) == {torch.float32}


class TestResuming:
    @pytest.mark.parametrize("schedule", ["cosine", "plateau"])
    @pytest.mark.parametrize(("stop", "way"), [(1, "SIGTERM"), (5, "SIGINT"), (0, "deadline")])
    def test_adds_up_bit_for_bit(self, run, monkeypatch, schedule, stop, way):
        """A signal or a deadline, with random numbers, a failed step and an average in between."""
        training = Training(steps=6, lr=0.1, schedule=schedule, validate_every=2, ema=0.5, weight_decay=0.1)

        def task():
            noisy = Quadratic(training, {3})
            clean = noisy.objective
            noisy.objective = lambda batch, step: clean(batch + torch.randn(2), step)
            return noisy

        whole, first, second = task(), task(), task()
        whole_run = Run.temporary()
        torch.manual_seed(1)
        assert train(whole, whole_run)

        torch.manual_seed(1)
        batch, now = first.batch, [0.0]

        def interrupted(step):
            if step == stop - 1 and way == "deadline":
                now[0] = 3600.0
            elif step == stop - 1:
                signal.raise_signal(getattr(signal, way))
            return batch(step)

        first.batch = interrupted
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: now[0])
            if way == "deadline":
                assert not train(first, run, deadline=60.0 if stop else -1.0)
            else:
                with pytest.raises(KeyboardInterrupt):
                    train(first, run)
        assert run.step == stop

        torch.manual_seed(2)
        assert train(second, run)
        assert torch.equal(whole.weight, second.weight)
        assert without_times(run.records()) == without_times(whole_run.records())

    def test_patience_goes_from_one_objective_to_the_next(self, run):
        """From step 2, two validations after the best, to step 8, with the weights and the rate that belong there."""
        figures, seen = iter([1.0, 2.0, 2.0, 0.5, 0.5, 0.5]), []
        training = Training(steps=12, lr=0.1, validate_every=1, patience=2, likelihood_from=8, restart_lr=0.05)
        task = Quadratic(training, validate=lambda: {"nll": next(figures)})
        start, objective = task.weight.detach().clone(), task.objective
        task.objective = lambda batch, step: (
            seen.append((step, task.weight.detach().clone())),
            objective(batch, step),
        )[1]
        assert train(task, run)
        records = run.records()
        assert [record["step"] for record in records] == [0, 1, 2, 9, 10, 11]
        assert [step for step, _ in seen] == [0, 1, 8, 9, 10]
        assert torch.equal(seen[2][1], start)
        assert records[3]["lr"] == pytest.approx(0.1 * learning_rate(training, 9))
        assert math.isfinite(records[3]["loss"])

    def test_patience_is_remembered(self, run):
        training = Training(steps=12, lr=0.1, validate_every=2, patience=2)
        whole, first, second = (Quadratic(training, validate=lambda: {"nll": 1.0}) for _ in range(3))
        train(whole, Run.temporary())
        batch = first.batch
        first.batch = lambda step: (step == 2 and signal.raise_signal(signal.SIGINT), batch(step))[1]
        with pytest.raises(KeyboardInterrupt):
            train(first, run)
        assert run.step == 3
        assert train(second, run)
        assert (run.step, len(run.records())) == (4, 3)
        assert torch.equal(whole.weight, second.weight)
        longer = Quadratic(dataclasses.replace(training, steps=20), validate=second.validate)
        second.batch = None
        assert train(second, run)  # at once
        assert train(longer, run)
        assert run.step == 8

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state.pop("average"),
            lambda state: state.update(model={"weight": torch.zeros(3)}),
            lambda state: state["progress"].update(step=7),
        ],
    )
    def test_a_state_of_another_training_is_refused(self, run, change):
        train(Quadratic(Training(steps=4, validate_every=2, ema=0.5)), run)
        state = run.load_state()
        change(state)
        run.save_state(4, state)
        with pytest.raises(CheckpointError, match="another training"):
            train(Quadratic(Training(steps=6, validate_every=2, ema=0.5)), run)

    def test_a_trained_run_returns_at_once(self, run):
        task = Quadratic(Training(steps=4, validate_every=2))
        train(task, run)
        task.batch = None
        assert train(task, run)
        assert len(run.records()) == 3


def test_progress_is_printed(capsys, run):
    train(Quadratic(Training(steps=4, validate_every=2)), run)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert printed[1].startswith("step 2/4  validation NLL ")
    train(Quadratic(Training(steps=4, validate_every=2)), Run.temporary(), quiet=True)
    assert capsys.readouterr() == ("", "")


def test_few_of_many_records_are_printed(capsys, run):
    train(Quadratic(Training(steps=99, validate_every=1)), run)
    printed = capsys.readouterr().out.splitlines()
    assert len(run.records()) == 100
    assert [int(line.split()[1].partition("/")[0]) for line in printed] == [*range(0, 99, 5), 99]


def test_a_line_fits_the_terminal_and_has_no_test_figures():
    record = {"step": 30000, "loss": -123.456789, "grad_norm": 1.0, "nfe_forward": 38.123, "nfe_backward": 51.2}
    record |= {"nll": -70.98765, "test_loss": 1.0, "nfe_log_prob": 50.0, "skipped": 0, "seconds": 1234.5}
    expected = "step 30000/30000  validation NLL -70.99  training loss -123.5  evaluations 38.12  1234 s"
    assert line(record, 30000) == expected
    matching = {name: value for name, value in record.items() if name != "loss"} | {"matching_loss": 0.5, "skipped": 2}
    assert "flow-matching loss 0.5  evaluations 38.12  skipped 2" in line(matching, 30000)


def test_each_loss_has_its_name_and_a_record_at_the_change(run):
    task = Quadratic(Training(steps=10, validate_every=4, likelihood_from=5))
    task.loss_name = lambda step: "loss" if step >= 5 else "matching_loss"
    train(task, run)
    _, losses = reference(task.training, lambda step: 1e-2 * learning_rate(task.training, step))
    records = run.records()
    assert [record["step"] for record in records] == [0, 4, 5, 8, 10]
    assert [[name for name in record if "loss" in name] for record in records[1:]] == [["matching_loss"]] * 2 + [
        ["loss"]
    ] * 2
    assert records[3]["loss"] == pytest.approx(sum(losses[5:8]) / 3, rel=1e-4)
