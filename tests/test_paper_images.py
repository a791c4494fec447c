"""The experiments on images: their files at a small size, and that sittings add up to what one would have given."""

import dataclasses
import json
import math
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from anode import InputError, classifier, count_evals
from train_flows import loop, paper
from train_flows.data import images
from train_flows.loop import shuffled_batches
from train_flows.paper import image_curves, image_trials, memory, odenet, report, stability
from train_flows.paper.image_trials import ImageTrial, Place, attempt
from train_flows.paper.outcomes import SOLVER, Outcome, records_of
from train_flows.paper.scale import Scale, family
from train_flows.paper.tolerance import kept_bytes
from train_flows.provenance import provenance

SMALL = ImageTrial(
    "ANODE p=2",
    "digits",
    {"field": "conv", "time": "none", "filters": 4, "extra": 2},
    epochs=3,
    batch_size=16,
    train_size=64,
    test_size=30,
)
QUICK = ("--quick", "--data", "digits", "--workers", 1)


@pytest.fixture
def place(tmp_path):
    return Place("data", "cpu", tmp_path / "unfinished")


def untimed(content):
    """The runs of a file of results without what the clock says."""
    for each in content["runs"]:
        del each["history"]["seconds"]
    return content["runs"]


@pytest.mark.parametrize("experiment", paper.ON_IMAGES)
def test_every_experiment_writes_runs_figure_and_table(run, tmp_path, experiment):
    status, out, err = run("paper", experiment, *QUICK, "--seeds", 2, "--out", "results")
    assert (status, err) == (0, "")
    content = json.loads((tmp_path / "results" / f"{experiment}-digits-quick.json").read_text())
    assert content["complete"] is True
    assert content["quick"] is True
    assert content["small"] is False
    for each in content["runs"]:
        assert {"name", "data", "model", "lr", "epochs", "batch_size", "weight_decay", "seed", "machine"} <= set(each)
        names = {"epoch", "loss", "test_loss", "test_accuracy", "nfe_forward", "nfe_backward", "seconds"}
        assert names <= set(each["history"])
        assert all(len(values) == each["epochs"] + 1 for values in each["history"].values())
        assert all(math.isfinite(value) for value in each["history"]["loss"][1:])
        assert each["status"] == "success"
    half = len(content["runs"]) // 2
    assert [each["seed"] for each in content["runs"]] == [0] * half + [1] * half
    for row in content["summary"]:
        assert row["model"] in out
    assert content["findings"]
    assert (tmp_path / "results" / f"{experiment}-digits-quick.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "results" / f"{experiment}-digits-quick-unfinished").exists()


def test_published_values_stand_beside_the_measured(run, real_data):
    options = ("--quick", "--seeds", 1, "--workers", 1, "--data", "mnist", "--data-root", real_data)
    status, out, _ = run("paper", "table1", *options)
    assert status == 0
    assert "published, full size of mnist: 98.2 +- 0.1, reproduced 97.25 +- 0.54" in out
    _, out, _ = run("paper", "odenet", *options)
    assert "0.42, 0.22M parameters" in out


def test_a_run_is_the_papers_training(place):
    """Against the loop written out: Adam with its weight decay, shuffled batches of pixels, cross-entropy."""
    trial = dataclasses.replace(SMALL, weight_decay=0.1)
    outcome = attempt(trial, 3, place)
    dataset = images.labelled("digits", 3, train_size=64, test_size=30)
    torch.manual_seed(3)
    model = classifier((1, 8, 8), 10, levels=17, **trial.model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=0.1)
    batch, losses = shuffled_batches(tuple(dataset.train), 16, 3), []
    for step in range(12):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert outcome.status == "success"
    got = [record["loss"] for record in outcome.records[1:]]
    assert got == pytest.approx([sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)], rel=1e-4)
    with torch.no_grad():
        found = model(dataset.test.x)
    assert outcome.records[-1]["test_loss"] == pytest.approx(F.cross_entropy(found, dataset.test.y).item(), rel=1e-3)
    assert outcome.records[-1]["test_accuracy"] == pytest.approx(
        (found.argmax(1) == dataset.test.y).double().mean().item()
    )


def test_all_images_are_trained_on_where_no_size_is_asked_for(place, monkeypatch):
    seen = []
    monkeypatch.setattr(image_trials, "shuffled_batches", lambda pairs, *_: seen.append(len(pairs[0])) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attempt(dataclasses.replace(SMALL, train_size=None), 0, place)
    assert seen == [1797 - 179]


@contextmanager
def stopping_after(steps, monkeypatch):
    """Let time be up after so many steps, where there is a deadline of 1e6 seconds."""
    clock = [0.0]
    taken = iter(range(10_000))

    @contextmanager
    def soon():
        def stop():
            if next(taken) < steps:
                return False
            clock[0] = 2e6
            return True

        yield stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_signals", soon)
        now = SimpleNamespace(time=lambda: clock[0], monotonic=lambda: time.monotonic() + clock[0])
        patch.setattr(image_trials, "time", now)
        yield


@pytest.mark.parametrize("steps", [0, 3, 4, 11])
def test_sittings_add_up_bit_for_bit(place, monkeypatch, steps):
    whole = attempt(SMALL, 0, place)
    with stopping_after(steps, monkeypatch):
        assert attempt(SMALL, 0, dataclasses.replace(place, deadline=1e6)) is None
    assert len(list(place.states.iterdir())) == 1
    rest = attempt(SMALL, 0, place)
    for outcome in (whole, rest):
        for record in outcome.records:
            del record["seconds"]
    assert rest.records == whole.records
    assert not list(place.states.iterdir())


def test_the_state_of_another_trial_is_not_gone_on_with(place, monkeypatch):
    with stopping_after(5, monkeypatch):
        attempt(SMALL, 0, dataclasses.replace(place, deadline=1e6))
    other = attempt(dataclasses.replace(SMALL, lr=1e-2), 0, place)
    assert other.records[1]["loss"] != attempt(SMALL, 0, place).records[1]["loss"]
    assert len(other.records) == 4


def test_a_signal_is_no_deadline(place, monkeypatch):
    with stopping_after(2, monkeypatch), pytest.raises(KeyboardInterrupt):
        attempt(SMALL, 0, place)


def test_a_budget_leaves_what_is_missing_to_resume(run, tmp_path):
    assert run("paper", "table1", *QUICK, "--seeds", 2, "--out", "whole")[0] == 0
    status, out, err = run("paper", "table1", *QUICK, "--seeds", 1, "--budget-minutes", 1e-6, "--out", "parts")
    assert (status, err) == (0, "")
    assert "2 runs are missing" in out
    parts = tmp_path / "parts" / "table1-digits-quick.json"
    assert json.loads(parts.read_text())["complete"] is False
    assert run("paper", "table1", *QUICK, "--seeds", 1, "--resume", "--out", "parts")[0] == 0
    first = json.loads(parts.read_text())
    assert first["complete"] is True
    status, out, _ = run("paper", "table1", *QUICK, "--seeds", 2, "--resume", "--out", "parts")
    assert status == 0
    again = json.loads(parts.read_text())
    assert again["runs"][: len(first["runs"])] == first["runs"]  # kept to the second
    assert untimed(again) == untimed(json.loads((tmp_path / "whole" / "table1-digits-quick.json").read_text()))


def test_resuming_keeps_what_is_not_asked_for(run, tmp_path):
    file = tmp_path / "paper" / "table1-digits-quick.json"
    assert run("paper", "table1", *QUICK, "--seeds", 2)[0] == 0
    before = json.loads(file.read_text())["runs"]
    assert run("paper", "table1", *QUICK, "--seeds", 1, "--resume")[0] == 0
    after = json.loads(file.read_text())
    assert sorted(map(json.dumps, after["runs"])) == sorted(map(json.dumps, before))
    assert after["seeds"] == [0]  # those of the findings
    assert {row["runs"] for row in after["summary"]} == {1}


def test_every_sitting_is_told(run, tmp_path, monkeypatch):
    file = tmp_path / "paper" / "table1-digits-quick.json"
    commands = [
        ["train-flows", "paper", "table1", *extra] for extra in ((), ("--resume",), ("--resume", "--seeds", "2"))
    ]
    for command, seeds in zip(commands, (1, 1, 2), strict=True):
        monkeypatch.setattr("sys.argv", command)
        assert run("paper", "table1", *QUICK, "--seeds", seeds, *(["--resume"] if file.exists() else []))[0] == 0
    content = json.loads(file.read_text())
    assert content["command"] == " ".join(commands[0])
    (later,) = content["later"]  # that in between trained nothing
    assert later["command"] == " ".join(commands[2])
    assert {"machine", "versions"} <= set(later)


def test_the_order_of_sets_is_no_matter(run, tmp_path):
    folder = tmp_path / "data" / "cifar10-small"
    draw(folder)
    options = ("--quick", "--workers", 1, "--seeds", 1)
    assert run("paper", "weight-decay", *options, "--data", "digits", "cifar10-small", "--budget-minutes", 1e-6)[0] == 0
    _, out, _ = run("paper", "weight-decay", *options, "--data", "cifar10-small", "digits", "--resume", "--seeds", 1)
    assert "weight-decay-cifar10-small-digits-quick.json" in out
    assert len(list((tmp_path / "paper").glob("*.json"))) == 1


def draw(folder):
    """Ten classes of small images, each of a colour, to train and to test on."""
    for part, images_of_each in (("train", 5), ("test", 2)):
        for kind in range(10):
            (folder / part / f"kind{kind}").mkdir(parents=True)
            for i in range(images_of_each):
                Image.new("RGB", (8, 8), (25 * kind, i, 0)).save(folder / part / f"kind{kind}" / f"{i}.png")


def test_two_sets_in_two_sittings(run, tmp_path, monkeypatch):
    """Digits and a folder, with a budget that ends in the middle of the third run."""
    draw(tmp_path / "data" / "cifar10-small")
    options = ("--quick", "--workers", 1, "--seeds", 1, "--data", "digits", "cifar10-small")
    assert run("paper", "table1", *options, "--out", "whole")[0] == 0
    with stopping_after(4 + 4 + 3, monkeypatch), monkeypatch.context() as patch:
        patch.setattr("train_flows.paper.time", SimpleNamespace(time=lambda: 0.0))
        out = run("paper", "table1", *options, "--budget-minutes", 1e6 / 60)[1]
    assert "2 runs are missing" in out
    (state,) = (tmp_path / "paper" / "table1-cifar10-small-digits-quick-unfinished").iterdir()
    assert state.name == "digits-NODE-0.pt"
    assert run("paper", "table1", *options, "--resume")[0] == 0
    parts, whole = (
        json.loads((tmp_path / name / "table1-cifar10-small-digits-quick.json").read_text())
        for name in ("paper", "whole")
    )
    assert [(each["data"], each["name"]) for each in parts["runs"]] == [
        ("cifar10-small", "NODE"),
        ("cifar10-small", "ANODE p=10"),
        ("digits", "NODE"),
        ("digits", "ANODE p=5"),
    ]
    assert untimed(parts) == untimed(whole)
    assert parts["sets"] == whole["sets"]
    assert parts["findings"] == whole["findings"]


def test_images_that_changed_are_not_mixed(run, tmp_path, monkeypatch):
    assert run("paper", "table1", *QUICK, "--seeds", 1)[0] == 0
    monkeypatch.setattr(images.Labelled, "digest", lambda _: "another")
    status, _, err = run("paper", "table1", *QUICK, "--seeds", 2, "--resume")
    assert status == 2
    assert "the images of digits have changed" in err


def test_what_the_images_are_is_told_with_the_figures(run, tmp_path):
    _, out, _ = run("paper", "table1", *QUICK, "--seeds", 1)
    notes = json.loads((tmp_path / "paper" / "table1-digits-quick.json").read_text())["sets"]["digits"]["notes"]
    assert notes == ["40 images to train on, 20 to test on", "40 of 1,618 training images", "20 of 179 test images"]
    assert f"digits: {'; '.join(notes)}" in out


def test_sets_with_fewer_images_than_asked_for_are_used_whole(place):
    dataset = image_trials.load(dataclasses.replace(SMALL, train_size=5000, test_size=5000), 0, "data")
    assert (len(dataset.train.x), len(dataset.test.x)) == (1618, 179)


def test_comparisons_are_of_the_seeds_that_succeeded_in_both():
    def outcome(name, seed, nfe, status="success"):
        trial = dataclasses.replace(SMALL, name=name)
        return Outcome(trial, seed, status, [{}, {"loss": 1.0, "nfe_forward": nfe}])

    node = [outcome("NODE", 0, 20), outcome("NODE", 1, 80), outcome("NODE", 2, 1000, "too many steps")]
    augmented = [outcome("ANODE", 0, 10), outcome("ANODE", 2, 10)]
    assert report.ratio(augmented, node, "nfe_forward") == 0.5
    assert math.isnan(report.ratio([], node, "nfe_forward"))


def test_places_on_the_machine_are_not_recorded(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["train-flows", "paper", "table1", "--data-root", "/home/me/images", "--seeds", "3"]
    )
    assert provenance()["command"] == "train-flows paper table1 --data-root images --seeds 3"
    monkeypatch.setattr("sys.argv", ["train-flows", "paper", "--data-root=/home/me/images", "--out=here"])
    assert provenance()["command"] == "train-flows paper --data-root=images --out=here"


def test_what_is_there_is_not_trained_again(run, monkeypatch):
    assert run("paper", "odenet", *QUICK, "--seeds", 1)[0] == 0
    monkeypatch.setattr("train_flows.paper.attempt", lambda *_: pytest.fail("trained again"))
    assert run("paper", "odenet", *QUICK, "--seeds", 1, "--resume")[0] == 0


def test_results_survive_their_file():
    trial = Scale().trial("NODE", "mnist", {"field": "conv"})
    records = [{"epoch": 0, "test_loss": 2.0}, {"epoch": 1, "test_loss": 1.0, "loss": 1.5}]
    result = json.loads(json.dumps(Outcome(trial, 1, "success", records, "a GPU").result()))
    assert records_of(result["history"]) == records


def test_a_diverging_solve_is_an_outcome(place):
    model = {**SMALL.model, "solver": {"rtol": 1e-3, "atol": 1e-3, "max_steps": 2}}
    outcome = attempt(dataclasses.replace(SMALL, model=model, lr=0.3), 0, place)
    assert outcome.status == "too many steps"
    (row,) = report.summarize([outcome])
    assert (row["runs"], row["succeeded"]) == (1, 0)
    assert not list(place.states.iterdir())


@pytest.mark.parametrize("experiment", paper.ON_IMAGES)
def test_experiments_survive_failing_and_missing_runs(run, monkeypatch, experiment):
    real = image_trials.attempt

    def some(trial, seed, place):
        if trial.name.startswith(("NODE", "p=0")) or trial.name == "MLP":
            return None
        outcome = real(trial, seed, place)
        return dataclasses.replace(outcome, status="too many steps", records=outcome.records[:2]) if seed else outcome

    monkeypatch.setattr("train_flows.paper.attempt", some)
    status, out, err = run("paper", experiment, *QUICK, "--seeds", 2)
    assert (status, err) == (0, "")
    assert "runs are missing" in out
    monkeypatch.setattr("train_flows.paper.attempt", lambda *_: None)
    assert run("paper", experiment, *QUICK, "--seeds", 2, "--out", "none")[0] == 0


def test_the_most_telling_come_first_and_keep_their_colours():
    seen = []
    image_curves.run(lambda trials: seen.extend(trials) or [], Scale("quick"), ("mnist", "cifar10"))
    order = [(trial.name, trial.data) for trial in seen]
    assert order[:4] == [("p=0", "mnist"), ("p=0", "cifar10"), ("p=5", "mnist"), ("p=5", "cifar10")]
    assert order.index(("p=10", "cifar10")) < order.index(("p=100", "mnist"))
    assert ("p=100", "cifar10") not in order
    records = [{}, {"loss": 1.0, "nfe_forward": 14.0, "test_accuracy": 0.5}]
    colours = []
    for trials in (seen, seen[::-1]):
        outcomes = [Outcome(dataclasses.replace(trial, epochs=1), 0, "success", records) for trial in trials]
        figure = image_curves.run(lambda _, found=outcomes: found, Scale("quick"), ("mnist", "cifar10")).draw()
        lines = [line for axes in figure.axes for line in axes.get_lines()]
        colours.append({(line.axes.get_title(), line.get_label()): line.get_color() for line in lines})
    assert colours[0] == colours[1]


def test_jumps_of_the_loss_and_where_to():
    def outcome(name, losses):
        records = [{}, *({"loss": loss, "nfe_forward": 14.0} for loss in losses)]
        return Outcome(dataclasses.replace(SMALL, name=name, epochs=len(losses)), 0, "success", records)

    outcomes = [outcome("NODE", [1.0, 0.01, 0.05, 0.2]), outcome("ANODE p=5", [1.0, 0.1, 0.2, 0.05])]
    findings = stability.run(lambda _: outcomes, Scale("quick"), ("digits",)).findings
    assert findings["digits, NODE: largest loss of an epoch over the least before it"] == pytest.approx(20)
    assert findings["digits, NODE: the loss of that epoch"] == 0.2
    assert findings["digits, ANODE p=5: largest loss of an epoch over the least before it"] == pytest.approx(2)
    assert findings["digits, ANODE p=5: the loss of that epoch"] == 0.2


class TestMemory:
    """What runs keep for their backward pass, and how many fit side by side."""

    @pytest.mark.parametrize(("data", "extra"), [("digits", 5), ("mnist", 100), ("tiny-imagenet-200", 0)])
    def test_a_network_of_convolutions_keeps_its_maps(self, data, extra):
        scale = Scale("small")
        model = scale.conv(data, extra)
        channels, height, width = scale.shape(data)
        maps = height * width * (2 * model["filters"] + channels + extra)  # two of the filters, one of the state
        assert memory.kept(scale.shape(data), model)[1] == pytest.approx(4 * maps, rel=0.1)

    @pytest.mark.parametrize("name", ["ODE-Net", "ResNet"])
    def test_it_is_what_a_batch_keeps(self, name):
        shape, options = (1, 14, 14), odenet._model(Scale("small"), "mnist", name)
        model = classifier(shape, 10, **options, solver=SOLVER)
        with kept_bytes() as total, count_evals(model) as nfe:
            outputs = model(torch.rand(64, *shape))
            kept = total()
        assert outputs.shape == (64, 10)
        once, an_evaluation = memory.kept(shape, options)
        assert 64 * (once + nfe.forward * an_evaluation) == pytest.approx(kept, rel=0.3)

    def test_as_many_as_fit(self):
        scale = Scale("full")
        nodes = {data: scale.trial("NODE", data, scale.pair(data)["NODE"]) for data in ("mnist", "tiny-imagenet-200")}
        one = memory.needed(nodes["mnist"]) + memory.OF_A_PROCESS
        for count in (1, 2, 4):
            assert memory.side_by_side([nodes["mnist"]], int(count * one / 0.89)) == count
        assert memory.side_by_side([nodes["mnist"]], 0) == 1
        assert memory.side_by_side([nodes["mnist"]], 100 * one) == memory.MOST
        assert memory.side_by_side(list(nodes.values()), 140 * 2**30) == 1
        assert memory.side_by_side([nodes["mnist"]], 140 * 2**30) == 4

    def test_the_number_is_recorded(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("train_flows.paper.find_device", lambda _: torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**10, 10**11))
        monkeypatch.setattr("train_flows.paper.sittings.each", lambda work, jobs, workers: iter(()))
        assert run("paper", "table1", "--quick", "--data", "digits")[0] == 0
        assert json.loads((tmp_path / "paper" / "table1-digits-quick.json").read_text())["workers"] == 4


class TestScale:
    def test_digits_are_small_already(self):
        for size in ("full", "small"):
            assert Scale(size).conv("digits", 5)["filters"] == 48
            assert odenet._model(Scale(size), "digits", "ODE-Net")["filters"] == 64
        assert odenet._model(Scale("small"), "mnist", "ODE-Net")["filters"] == 32

    def test_full_is_the_papers(self):
        trial = Scale("full").trial("NODE", "mnist", {})
        assert (trial.epochs, trial.batch_size, trial.lr, trial.weight_decay) == (20, 256, 1e-3, 0)
        assert (trial.train_size, trial.test_size, trial.image_size) == (None, None, None)
        assert Scale("full").shape("tiny-imagenet-200") == (3, 64, 64)
        assert Scale("full").trial("NODE", "tiny-imagenet-200", {}).classes == 10

    def test_small_says_what_it_leaves_out(self):
        trial = Scale("small").trial("NODE", "cifar10-jpeg", {}, epochs=30)
        assert (trial.epochs, trial.batch_size, trial.image_size) == (15, 64, 16)
        assert (trial.train_size, trial.test_size) == (2000, 1000)
        assert Scale("small").trial("NODE", "mnist", {}, train_size=500).train_size == 500

    @pytest.mark.parametrize(
        ("data", "name"),
        [("cifar10-jpeg", "cifar10"), ("tiny-imagenet-200", "imagenet64"), ("mnist", "mnist"), ("digits", "digits")],
    )
    def test_families(self, data, name):
        assert family(data) == name

    def test_fewer_classes_are_the_first(self, place):
        trial = dataclasses.replace(SMALL, classes=3)
        dataset = image_trials.load(trial, 0, "data")
        assert dataset.classes == ("0", "1", "2")
        assert set(dataset.train.y.tolist()) == {0, 1, 2}
        assert "the first 3 of 10 classes" in dataset.notes
        assert attempt(trial, 0, place).records[-1]["test_accuracy"] > 0


class TestRefuses:
    @pytest.mark.parametrize(
        ("args", "names"),
        [
            (["nfe", "--small"], ["--small is for image-curves", "not for nfe"]),
            (["nfe", "--resume", "--budget-minutes", "3"], ["--budget-minutes, --resume is for"]),
            (["table1", "--data", "flowers"], ["--data flowers", "mnist"]),
            (["table1", "--data", "sub/mnist"], ["--data sub/mnist is a path", "--data-root"]),
            (["table1", "--data", "digits", "digits"], ["names a set twice"]),
            (["table1", "--budget-minutes", "0"], ["--budget-minutes 0"]),
            (["table1", "--small", "--quick"], ["--small", "--quick"]),
            (["table1", "--resume", "--overwrite"], ["--resume", "--overwrite"]),
            (["table1", "--data", "cifar10-jpeg", "--download"], ["--download is for mnist", "not for cifar10-jpeg"]),
            (["table1", "--data", "digits", "--device", "warp"], ["--device warp"]),
            (["stability", "--data", "digits", "--workers", "0"], ["--workers 0"]),
        ],
    )
    def test_bad_options(self, run, args, names):
        status, _, err = run("paper", *args)
        assert status == 2
        assert len(err.splitlines()) == 1
        assert all(name in err for name in names), err

    @pytest.mark.parametrize(
        ("data", "names"),
        [
            ("mnist", ["train-images-idx3-ubyte.gz", "nowhere/MNIST/raw", "--data-root", "--download"]),
            ("cifar10", ["data_batch_1", "nowhere/cifar-10-batches-py", "--data-root", "--download"]),
            ("svhn", ["train_32x32.mat", "in nowhere", "--data-root", "--download"]),
            ("cifar10-jpeg", ["nowhere/cifar10-jpeg", "train-flows unpack ARCHIVE nowhere", "--data-root"]),
        ],
    )
    def test_missing_images(self, run, tmp_path, data, names):
        status, _, err = run("paper", "table1", "--data", data, "--data-root", "nowhere")
        assert status == 2
        assert len(err.splitlines()) == 1
        assert all(name in err for name in names), err
        assert not list((tmp_path / "paper").iterdir())

    def test_results_of_another_experiment(self, run, tmp_path):
        (tmp_path / "paper").mkdir()
        file = tmp_path / "paper" / "odenet-digits-quick.json"
        for content, words in (
            ("{", "no file of results"),
            ('{"experiment": "nfe", "runs": []}', "of the experiment nfe"),
        ):
            file.write_text(content)
            status, _, err = run("paper", "odenet", *QUICK, "--resume")
            assert status == 2
            assert words in err
            assert file.read_text() == content
        status, _, err = run("paper", "odenet", *QUICK)
        assert status == 2
        assert "--overwrite, or --resume" in err

    def test_a_missing_name(self):
        with pytest.raises(InputError, match="flowers"):
            family("flowers")


def test_runs_under_way_are_gone_on_with_from_the_command_line(run, tmp_path, monkeypatch):
    """A stop in the middle of a run keeps its state, also when fewer seeds are asked for in between."""
    trial = Scale("quick").trial("MLP", "digits", odenet.MODELS["MLP"], **odenet.SETTINGS)
    whole = attempt(trial, 1, Place("data", "cpu", tmp_path / "whole")).result()
    real, calls = image_trials.train, []

    def train(*args, **kwargs):
        calls.append(args)
        return real(*args, **{**kwargs, "deadline": -math.inf if len(calls) == 6 else math.inf})

    with monkeypatch.context() as patch:
        patch.setattr(image_trials, "train", train)
        clock = SimpleNamespace(time=time.time, monotonic=lambda: 1e15 if len(calls) == 6 else 0.0)
        patch.setattr(image_trials, "time", clock)
        out = run("paper", "odenet", *QUICK, "--seeds", 2, "--budget-minutes", 1e9)[1]
    assert "1 runs are missing" in out
    states = tmp_path / "paper" / "odenet-digits-quick-unfinished"
    assert [path.name for path in states.iterdir()] == ["digits-MLP-1.pt"]
    assert run("paper", "odenet", *QUICK, "--seeds", 1, "--resume")[0] == 0
    assert len(list(states.iterdir())) == 1
    assert run("paper", "odenet", *QUICK, "--seeds", 2, "--resume")[0] == 0
    assert not states.exists()
    content = json.loads((tmp_path / "paper" / "odenet-digits-quick.json").read_text())
    (last,) = [each for each in content["runs"] if (each["name"], each["seed"]) == ("MLP", 1)]
    assert last["history"]["loss"] == whole["history"]["loss"]


def test_a_damaged_state_is_no_obstacle(place, capsys):
    place.states.mkdir()
    (place.states / "digits-ANODE-p=2-0.pt").write_bytes(b"PK" + bytes(100))
    assert attempt(SMALL, 0, place).status == "success"
    assert "its run begins anew" in capsys.readouterr().out


def test_a_network_that_ends_non_finite_is_no_success(place):
    trial = dataclasses.replace(SMALL, lr=1e20, epochs=1, batch_size=64, model={"model": "mlp"})
    assert attempt(trial, 0, place).status == "non-finite loss"


def test_a_name_that_promises_other_images(run, tmp_path):
    for part in ("train", "test"):
        for kind in ("a", "b"):
            (tmp_path / "data" / "mnist-mine" / part / kind).mkdir(parents=True)
            for i in range(15):
                Image.new("L", (28, 28), i).save(tmp_path / "data" / "mnist-mine" / part / kind / f"{i}.png")
    status, _, err = run("paper", "table1", "--data", "mnist-mine")
    assert status == 2
    assert "mnist-mine holds 2 classes of images with 1 channels, not 10 with 1" in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(run):
    assert run("paper", "odenet", "--quick", "--data", "digits", "--seeds", 2, "--device", "cuda")[0] == 0
    assert run("classify", "digits", "--epochs", 1, "--device", "cuda")[0] == 0
