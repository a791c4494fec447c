"""The training loop against a loop written out, and what it does when things go wrong."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from anode import CheckpointError, InputError, Solver, SolverError
from train_flows.average import Average
from train_flows.checkpoint import Run
from train_flows.errors import TrainingError
from train_flows.guards import Guards
from train_flows.loop import shuffled_batches, train
from train_flows.training import Training

CPU = torch.device("cpu")
UNDERFLOW = SolverError("step underflow", 0.25, 99, Solver())


class Steep(nn.Module):
    """A quadratic whose first gradients exceed any sensible bound."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([5.0, -3.0]))

    def forward(self, batch):
        return (self.weight * batch).square().sum(1).mean()


class Failing(Steep):
    """Fails at some of its calls: with an exception, or with a loss that is not a number."""

    def __init__(self, calls, failure=None):
        super().__init__()
        self.calls, self.failure, self.count = set(calls), failure, 0

    def forward(self, batch):
        self.count += 1
        if self.count - 1 not in self.calls:
            return super().forward(batch)
        if self.failure is not None:
            raise self.failure
        return self.weight.sum() * torch.nan


@pytest.fixture
def batches():
    return shuffled_batches(torch.randn(64, 2) * torch.tensor([100.0, 1.0]), 16, seed=0)


def fit(objective, training, batches, run, validate=lambda: {"nll": 1.0}, **more):
    return train(objective, training, batches, validate, lambda: None, run, CPU, **more)


def test_is_adam_with_clipping_and_a_cosine(tmp_path, batches):
    training = Training(steps=12, lr=0.1, clip=2.0, validate_every=5)
    objective, reference = Steep(), Steep()
    assert fit(objective, training, batches, Run.create(tmp_path / "run"))
    optimizer = torch.optim.Adam(reference.parameters(), 0.1)
    losses = []
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + torch.cos(torch.tensor(torch.pi * step / 12))).item() / 2
        optimizer.zero_grad()
        loss = reference(batches(step))
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 2.0)
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(objective.weight, reference.weight, rtol=1e-5, atol=1e-6)

    unclipped = Steep()
    fit(unclipped, Training(steps=12, lr=0.1, clip=1e9, validate_every=5), batches, Run.create(tmp_path / "unclipped"))
    assert (unclipped.weight - reference.weight).abs().max() > 1e-3  # clipping mattered

    records = Run(tmp_path / "run").records()
    assert [record["step"] for record in records] == [0, 5, 10, 12]
    assert records[1]["loss"] == pytest.approx(sum(losses[:5]) / 5, rel=1e-4)
    assert records[3]["loss"] == pytest.approx(sum(losses[10:]) / 2, rel=1e-4)


def test_a_plateau_halves_the_rate(tmp_path, batches):
    run = Run.create(tmp_path / "run")
    fit(Steep(), Training(steps=12, lr=0.1, schedule="plateau", validate_every=1), batches, run)
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
    again = shuffled_batches(x, 5, seed=1)
    assert torch.equal(again(6), batch(6))  # whatever was asked before
    assert not torch.equal(shuffled_batches(x, 5, seed=2)(6), batch(6))


@pytest.mark.parametrize(
    ("failure", "names"),
    [
        (UNDERFLOW, "^step 3 failed: its solve failed: step underflow at t = 0.25"),
        (None, "^11 steps in a row came to nothing; step 13 failed: it has loss nan .* lower --lr"),
    ],
)
def test_failures_name_the_step_and_keep_the_state(tmp_path, batches, failure, names):
    run = Run.create(tmp_path / "run")
    with pytest.raises(TrainingError, match=names):
        fit(
            Failing(range(3, 99), failure),
            Training(steps=20, validate_every=12 if failure is None else 2),
            batches,
            run,
        )
    state = run.load_state()
    assert state["step"] == (2 if failure else 12)
    assert torch.isfinite(state["objective"]["weight"]).all()


@pytest.mark.parametrize("failure", [UNDERFLOW, None])
def test_failing_steps_can_be_skipped(tmp_path, batches, failure):
    """They change nothing, are counted, and are left out of the means."""
    skipping = Guards(on_stiff="skip", max_skipped=2)
    training = Training(steps=8, lr=0.1, schedule="constant", validate_every=4)
    run, failing = Run.create(tmp_path / "run"), Failing({1, 2, 5}, failure)
    assert fit(failing, training, batches, run, guards=skipping)
    records = run.records()
    assert [record["skipped"] for record in records] == [0, 2, 1]

    reference, losses = Steep(), []
    optimizer = torch.optim.Adam(reference.parameters(), 0.1)
    for step in {*range(8)} - {1, 2, 5}:
        optimizer.zero_grad()
        loss = reference(batches(step))
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), training.clip)
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(failing.weight, reference.weight)
    assert records[1]["loss"] == pytest.approx(sum(losses[:2]) / 2, rel=1e-5)

    with pytest.raises(TrainingError, match="3 steps in a row came to nothing"):
        fit(Failing({1, 2, 3}, failure), training, batches, Run.create(tmp_path / "other"), guards=skipping)


def test_states_that_are_not_finite_are_skipped_not_loosened(tmp_path, batches):
    infinite = Failing({1, 2}, SolverError("non-finite state", 0.25, 99, Solver()))
    run = Run.create(tmp_path / "run")
    assert fit(infinite, Training(steps=6, validate_every=3), batches, run, guards=Guards(on_stiff="loosen"))
    assert [record["skipped"] for record in run.records()] == [0, 2, 0]
    assert infinite.count == 6


def test_solves_that_fail_can_be_loosened(tmp_path):
    class Stiff(nn.Module):
        """Solves from a hundred times its tolerance on."""

        def __init__(self):
            super().__init__()
            self.weight, self.solver = nn.Parameter(torch.ones(2)), Solver(rtol=1e-6, atol=1e-5)

        def forward(self, batch):
            if self.solver.rtol < 0.9e-4:
                raise UNDERFLOW
            assert self.solver.atol == pytest.approx(1e-3)
            return self.weight.square().sum()

    run, stiff = Run.create(tmp_path / "run"), Stiff()
    assert fit(stiff, Training(steps=3), lambda step: None, run, guards=Guards(on_stiff="loosen"))
    assert [record["loosened"] for record in run.records()] == [0, 3]
    assert stiff.solver == Solver(rtol=1e-6, atol=1e-5)  # after it as before


def test_a_failed_validation_names_the_step(tmp_path, batches):
    def validate():
        raise SolverError("too many steps", 0.5, 99, Solver())

    with pytest.raises(TrainingError, match="validation at step 0 failed: too many steps"):
        fit(Steep(), Training(steps=2), batches, Run.create(tmp_path / "run"), validate)


class TestRecords:
    def test_a_cut_line_is_dropped(self, tmp_path):
        run = Run.create(tmp_path / "run")
        run.log({"step": 0})
        run.log({"step": 5})
        path = tmp_path / "run" / "metrics.jsonl"
        path.write_text(path.read_text()[:-4])
        assert run.records() == [{"step": 0}]

    def test_records_after_the_state_are_dropped(self, tmp_path):
        run = Run.create(tmp_path / "run")
        run.log({"step": 0})
        run.save_state(0, {"step": 0})
        run.log({"step": 5})
        assert run.load_state()["step"] == 0
        assert run.records() == [{"step": 0}]

    def test_a_kill_before_the_first_state_starts_over(self, tmp_path):
        run = Run.create(tmp_path / "run")
        run.log({"step": 0})
        assert run.load_state() is None
        assert run.records() == []

    @pytest.mark.parametrize("line", ["", "garbage", "[]", '{"step": "5"}', "[" * 10**5, "9" * 10**4])
    def test_a_line_that_is_no_record_is_named(self, tmp_path, line):
        run = Run.create(tmp_path / "run")
        run.log({"step": 0})
        (tmp_path / "run" / "metrics.jsonl").write_text(f'{{"step": 0}}\n{line}\n{{"step": 5}}\n')
        with pytest.raises(CheckpointError, match=r"metrics.jsonl: line 2 is no record"):
            run.records()

    def test_altered_records_are_noticed(self, tmp_path):
        run = Run.create(tmp_path / "run")
        run.log({"step": 0, "loss": 1.5})
        run.save_state(0, {"step": 0})
        run.log({"step": 5, "loss": 0.5})  # may yet be taken again
        path = tmp_path / "run" / "metrics.jsonl"
        path.write_text(path.read_text().replace("0.5", "0.4"))
        assert [record["loss"] for record in run.records()] == [1.5, 0.4]
        whole = path.read_text()
        for altered in (whole.replace("1.5", "1.4"), whole[:5], ""):
            path.write_text(altered)
            for load in (run.records, run.load_state):
                with pytest.raises(CheckpointError, match=r"metrics.jsonl was cut or edited"):
                    load()

    def test_a_lost_state_does_not_start_over(self, tmp_path):
        run = Run.create(tmp_path / "run")
        for step in (0, 5):
            run.log({"step": step})
            run.save_state(step, {"step": step})
        (tmp_path / "run" / "state" / "latest").unlink()
        with pytest.raises(CheckpointError, match="latest is missing although training has begun"):
            run.load_state()
        assert len(run.records()) == 2

    @pytest.mark.parametrize("content", ["", "5", "../../x", '{"step": "../../x"}', "[" * 2000, "x" * 10**5])
    def test_a_pointer_to_elsewhere(self, tmp_path, content):
        run = Run.create(tmp_path / "run")
        run.save_state(5, {"step": 5})
        (tmp_path / "run" / "state" / "latest").write_text(content)
        with pytest.raises(CheckpointError, match="latest"):
            run.load_state()

    def test_a_state_under_the_name_of_another(self, tmp_path):
        run = Run.create(tmp_path / "run")
        run.save_state(5, {"step": 4})
        with pytest.raises(CheckpointError, match="is of another step, 4"):
            run.load_state()

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state.pop("average"),
            lambda state: state.update(sums=[7]),
            lambda state: state["objective"].update(weight=torch.zeros(3)),
            lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
            lambda state: state["optimizer"].update(param_groups=[]),
            lambda state: state.update(random=torch.zeros(2)),
            lambda state: state.update(step=7),
            lambda state: state.update(step=-3, recorded=-3),
            lambda state: state.update(recorded=5),
            lambda state: state.update(sums=[{"loss": 1.0}]),
            lambda state: state.update(skipped=1),
            lambda state: state.update(seconds=torch.inf),
            lambda state: state["objective"].update(weight=torch.zeros(2, dtype=torch.float64)),
            lambda state: state["average"].update(values=[torch.zeros(2)]),
            lambda state: state["schedule"].update(lr_lambdas=[]),
            lambda state: state["schedule"].update(lr_lambdas=[{"func": 3}]),
            lambda state: state["schedule"].update(step=3),
            lambda state: state["schedule"].update(base_lrs=5),
            lambda state: state["schedule"].update(base_lrs=[None]),
            lambda state: state["schedule"].update(last_epoch=10**400),
            lambda state: state["optimizer"]["state"][0].pop("exp_avg"),
            lambda state: state["optimizer"]["state"][0].update(exp_avg=3),
            lambda state: state["optimizer"]["state"][0].update(further=torch.zeros(2)),
            lambda state: state["optimizer"]["state"][0].update(step=torch.zeros(())),
            lambda state: state["optimizer"]["state"].update({1: state["optimizer"]["state"][0]}),
            lambda state: state["optimizer"].update(state=[]),
            lambda state: state["optimizer"]["param_groups"][0].update(params=[1]),
            lambda state: state["optimizer"]["param_groups"][0].update(betas=(2.0, 2.0)),
            lambda state: state["optimizer"]["param_groups"][0].update(lr=-1.0),
        ],
    )
    def test_a_state_of_another_training(self, tmp_path, batches, change):
        run = Run.create(tmp_path / "run")
        fit(Steep(), Training(steps=4, validate_every=2), batches, run)
        state = run.load_state()
        change(state)
        run.save_state(state["step"], state)
        with pytest.raises(CheckpointError, match="another training"):
            fit(Steep(), Training(steps=6, validate_every=2), batches, run)

    @pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
    @pytest.mark.parametrize("stop", [0, 1, 5])
    def test_any_state_of_its_own_is_taken(self, tmp_path, batches, schedule, stop):
        training = Training(steps=6, lr=0.1, schedule=schedule, validate_every=2, ema=0.5, weight_decay=0.1)
        whole, first, resumed = Failing([3]), Failing([3]), Failing([3 - stop])
        run, worse = Run.create(tmp_path / "run"), itertools.count()

        def validate():
            return {"nll": float(next(worse))}

        fit(whole, training, batches, Run.create(tmp_path / "whole"), validate)
        asked = itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train_flows.loop.stop_signals", lambda: nullcontext(lambda: next(asked) >= stop))
            assert not fit(first, training, batches, run, validate)
        assert run.load_state()["step"] == stop
        assert fit(resumed, training, batches, run, validate)
        assert torch.equal(whole.weight, resumed.weight)

    def test_a_kill_while_the_folder_begins_leaves_it_empty(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".config.json.partial").write_text("{")
        run = Run.create(tmp_path / "run")
        assert list(run.folder.iterdir()) == []
        (tmp_path / "run" / ".mine.partial").write_text("x")
        with pytest.raises(InputError, match="exists"):
            Run.create(tmp_path / "run")
        assert (tmp_path / "run" / ".mine.partial").exists()

    def test_one_state_is_kept(self, tmp_path):
        run = Run.create(tmp_path / "run")
        for step in (0, 5, 10):
            run.save_state(step, {"step": step, "x": torch.zeros(2)})
        assert sorted(path.name for path in (tmp_path / "run" / "state").iterdir()) == ["10", "latest"]
        assert run.load_state()["step"] == 10


class TestAverage:
    def test_is_the_recursion_written_out(self, tmp_path, batches):
        """Validated and kept with the averaged weights, trained with the others."""
        training = Training(steps=20, lr=0.1, schedule="constant", ema=0.6, validate_every=5)
        objective, seen, kept = Steep(), [], []

        def validate():
            seen.append(objective.weight.detach().clone())
            return {"nll": -float(len(seen))}

        keep = lambda: kept.append(objective.weight.detach().clone())  # noqa: E731
        assert train(objective, training, batches, validate, keep, Run.create(tmp_path / "run"), CPU)

        reference = Steep()
        optimizer = torch.optim.Adam(reference.parameters(), 0.1)
        average, expected = reference.weight.detach().clone(), [reference.weight.detach().clone()]
        for step in range(20):
            optimizer.zero_grad()
            reference(batches(step)).backward()
            nn.utils.clip_grad_norm_(reference.parameters(), training.clip)
            optimizer.step()
            decay = min(0.6, (2 + step) / (11 + step))
            average = decay * average + (1 - decay) * reference.weight.detach()
            if (step + 1) % 5 == 0:
                expected.append(average.clone())
        torch.testing.assert_close(torch.stack(seen), torch.stack(expected), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(seen, kept, strict=True))
        torch.testing.assert_close(objective.weight, reference.weight, rtol=1e-4, atol=1e-5)
        assert (objective.weight - average).abs().max() > 1e-3

    def test_none_costs_nothing(self):
        objective = Steep()
        average = Average(objective.parameters(), 0.0)
        before = objective.weight.detach().clone()
        average.update(3)
        with average.in_place():
            assert torch.equal(objective.weight, before)
        assert average.state_dict() == {"values": []}


@pytest.mark.parametrize("again", [None, 0.03])
def test_a_cosine_can_begin_anew(tmp_path, batches, again):
    training = Training(steps=10, lr=0.1, restart=6, restart_lr=again, validate_every=1)
    run = Run.create(tmp_path / "run")
    assert fit(Steep(), training, batches, run)
    rates = torch.tensor([record["lr"] for record in run.records()])
    stages = ((6, 0.1), (4, again or 0.1))
    first, second = (top / 2 * (1 + torch.cos(torch.pi * torch.arange(n) / n)) for n, top in stages)
    torch.testing.assert_close(rates, torch.cat([first, second, torch.zeros(1)]))
