"""The README's code runs as it stands, and its settings exist."""

import json
import math
import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path
from statistics import fmean

import pytest
import torch

import anode
from cnf import density_model, save
from train_flows import density, recipes
from train_flows.benchmark import speed_report, standings
from train_flows.paper import ON_FUNCTIONS, augmented_density

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_api_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(density_model((2,), hidden=(8, 8)), "runs/moons")
    anode.save(anode.classifier((2,), 1, extra=5), "runs/spheres")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 5
    names = [{}, {}, {}, {}, {}]  # each block stands alone
    for block, own in zip(blocks, names, strict=True):
        exec(block, own)
    assert names[0]["x"].shape == (1000, 2)
    assert names[1]["y"].shape == (100, 2)
    assert torch.isfinite(names[1]["log_p"]).all()
    assert all(each.grad is not None for name in ("matched", "posterior") for each in names[2][name].parameters())
    assert names[3]["logits"].shape == (64, 10)
    assert names[3]["nfe"].forward > 0
    assert names[4]["outputs"].shape == (64, 1)
    assert names[4]["states"].shape == (3, 64, 7)


def test_command_lines_are_those_of_the_package():
    assert 'python -m pip install -e ".[dev]" && pytest' in README
    assert "python -m pip install -e . && train-flows density moons" in README
    assert {script.name for script in entry_points(group="console_scripts")} >= {"train-flows"}


def settings_of(command):
    """What a command trains by today; results of other settings are out of date."""
    settings = density.parse(shlex.split(command)[2:])
    sections = {name: vars(section) for name, section in vars(settings).items() if name not in ("data", "run")}
    return json.loads(json.dumps(sections))


def with_defaults(settings):
    """Settings with those that came later, as they are when nobody asks."""
    defaults = {name: vars(getattr(density.Settings(), name)) for name in settings_of("train-flows density moons")}
    return json.loads(json.dumps({name: defaults[name] | settings.get(name, {}) for name in defaults}))


def cells(result):
    """A row of the README's table, from the file of its results."""
    nll, gaussian, entropy = result["nll"], result.get("gaussian_nll"), ""
    if "8gaussians" in result["command"]:
        entropy = f" (entropy {math.log(8) + math.log(2 * math.pi * math.e) + 2 * math.log(0.5 / 1.414):.3f})"
    value, beside = nll["value"], entropy
    if gaussian is not None:
        value = nll["value_standardized"]
        beside = f" (standardized; full-covariance Gaussian {gaussian - nll['value'] + value:.3f})"
    return [
        f"`{result['command']}`",
        f"{value:.3f} +- {nll['standard_error']:.3f}{beside}",
        f"{result['nfe_log_prob']:.0f} / {result['nfe_sample']}",
        f"{result['seconds']:.0f}",
    ]


def rows_of_results(images):
    """Those of the README's tables of densities, with the files at their ends."""
    rows = re.findall(r"^\| (`train-flows density .+) \|$", README, flags=re.MULTILINE)
    return [row for row in rows if images == bool(re.search("digits|mnist", row))]


def test_the_table_of_results_is_that_of_the_files():
    rows = rows_of_results(images=False)
    assert len(rows) == 3
    for row in rows:
        *shown, file = row.split(" | ")
        result = json.loads((ROOT / "assets" / "results" / file.strip("`")).read_text())
        assert shown == cells(result)
        assert (result["nll"]["kind"], result["nll"]["tolerance"]) == ("exact", {"rtol": 1e-5, "atol": 1e-5})
        assert result["seed"] == 0
        assert with_defaults(result["settings"]) == settings_of(result["command"])


def cells_of_images(result):
    """A row of the table of densities of images."""
    one, more, drift = result["nll_one_draw"], result["nll"], result.get("drift")
    return [
        f"`{result['command']}`",
        f"{one['bits_per_dim']:.3f} +- {one['bits_per_dim_standard_error']:.3f}",
        f"{more['bits_per_dim']:.3f} (K = {more['samples']})",
        "-" if drift is None else f"{drift['bits_per_dim']:+.0e}",
        f"{result['nfe_log_prob']:.0f} / {result['nfe_sample']}",
        f"{result['seconds']:.0f}",
    ]


def test_the_table_of_images_is_that_of_the_files():
    rows = rows_of_results(images=True)
    assert len(rows) == 2
    for row in rows:
        *shown, file = row.split(" | ")
        result = json.loads((ROOT / "assets" / "results" / file.strip("`")).read_text())
        assert shown == cells_of_images(result)
        assert (result["nll"]["dequantisation"], result["nll"]["tolerance"]) == (
            "uniform",
            {"rtol": 1e-5, "atol": 1e-5},
        )
        assert result["seed"] == 0
        assert with_defaults(result["settings"]) == settings_of(result["command"])


def rows_of_summary(content):
    return {(row["data"], row["model"]): row for row in content["summary"]}


PAPER = {  # what the README says of each experiment, from its file
    "flow-1d": lambda f, rows: (
        f"`x -> -x` on the line, no readout: MSE {f['MSE of NODE on g1d (best monotone: 1)']:.3f} of NODE (the best "
        f"increasing function has 1), {f['MSE of ANODE p=1 on g1d (best monotone: 1)']:.0e} of ANODE p=1"
    ),
    "node-vs-anode": lambda f, rows: (
        f"nested intervals: MSE {f['MSE of NODE on the intervals (best monotone: 2/3)']:.3f} of NODE (the best "
        f"increasing function has 0.667), {f['MSE of ANODE p=1 on the intervals']:.4f} of ANODE p=1"
    ),
    "nfe": lambda f, rows: (
        f"concentric spheres: training loss of ANODE p=5 {f['loss, NODE / ANODE']:.0f} times below NODE's, at "
        f"{f['NFE of the last epoch, ANODE / NODE']:.2f} of its evaluations; from the first epoch to the last NODE's "
        f"grow by {f['NFE of NODE, last / first epoch'] - 1:.0%}, ANODE's by "
        f"{f['NFE of ANODE, last / first epoch'] - 1:.0%}"
    ),
    "feature-evolution": lambda f, rows: (
        f"loss {rows['spheres', 'NODE']['loss']['mean']:.4f} of NODE, which squeezes the inner ball out through the "
        f"shell, {rows['spheres', 'ANODE p=1']['loss']['mean']:.4f} of ANODE p=1, which lifts it"
    ),
    "generalization": lambda f, rows: (
        "three of ten slices of the plane removed: validation loss of ANODE p=5 "
        f"{f['validation loss, ANODE / NODE']:.3f} of NODE's"
    ),
    "resnet-vs-node": lambda f, rows: (
        "final loss of NODE over ResNet's: "
        f"{f['training loss of NODE over that of ResNet, intervals']:.0f} on the nested intervals, "
        f"{f['training loss of NODE over that of ResNet, spheres']:.0f} on the spheres; but also "
        f"{f['training loss of NODE over that of ResNet, sines']:.0f} on the separable sines "
        f"({f['training loss of NODE over that of ResNet, sines, tuned']:.0f} with tuned learning rates), which both "
        "can represent"
    ),
    "augment-sweep": lambda f, rows: (
        f"loss from {rows['spheres', 'p=0']['loss']['mean']:.0e} (p = 0) over "
        f"{rows['spheres', 'p=5']['loss']['mean']:.0e} (p = 5) to {rows['spheres', 'p=100']['loss']['mean']:.0e} "
        "(p = 100): too many dimensions do no harm here"
    ),
    "tolerance": lambda f, rows: (
        f"tanh field: errors {f['NODE tanh: error at 1e-3, 1e-5, 1e-7']} at 1e-3, 1e-5, 1e-7 with "
        f"{f['NODE tanh: NFE at 1e-3, 1e-5, 1e-7']} evaluations; the kinks of a ReLU field make them "
        f"{f['NODE: error at 1e-3, 1e-5, 1e-7']} with {f['NODE: NFE at 1e-3, 1e-5, 1e-7']}"
    ),
}


def at(findings, beginning):
    """The finding whose name begins so."""
    (found,) = [value for name, value in findings.items() if name.startswith(beginning)]
    return found


def pair(f, data, anode):
    """Accuracies of NODE and ANODE with as many parameters, and what the evaluations of the latter come to."""
    node, augmented = (at(f, f"{data}, {name}: test accuracy") for name in ("NODE", anode))
    ratio = f[f"{data}: NFE of the last epoch, ANODE / NODE"]
    return f"{node}% of NODE, {augmented}% of {anode} at {ratio:.2f} of its evaluations"


def sooner(f, data, *extras):
    """When networks of more channels have the final loss of the plain one, and with what part of its evaluations."""
    each = []
    for extra in extras:
        name = f"{data}, p={extra}:"
        epoch, _, epochs = at(f, f"{name} epochs until").partition(" of ")
        share = f", {at(f, f'{name} NFE at'):.2f}" if epoch != "never" else ""
        each.append(f"{epoch} (p={extra}{share})")
    return f"p=0's loss after {epochs} epochs: after {', '.join(each)}"


def decays(f, extra):
    """Accuracy and evaluations with and without weight decay."""
    each = []
    for decay in ("0", "0.01"):
        name = f"mnist, p={extra}, decay {decay}:"
        each.append(f"{at(f, f'{name} test accuracy')}% at {at(f, f'{name} NFE'):.0f}")
    return f"p={extra} {each[0]} evaluations, with decay 0.01 {each[1]}"


ON_IMAGES = {  # what the README says of each experiment on images, from its file
    "table1-digits": lambda f: f"digits, test accuracy with as many parameters: {pair(f, 'digits', 'ANODE p=5')}",
    "table1-mnist-cifar10-jpeg-tiny-imagenet-200-small": lambda f: (
        f"the same on MNIST: {pair(f, 'mnist', 'ANODE p=5')}; CIFAR-10 (re-compressed as JPEG): "
        f"{pair(f, 'cifar10-jpeg', 'ANODE p=10')}; ten classes of ImageNet at 16x16 (a fifth of their images): "
        f"{pair(f, 'tiny-imagenet-200', 'ANODE p=5')}"
    ),
    "image-curves-mnist-cifar10-jpeg-small": lambda f: (
        f"MNIST: {sooner(f, 'mnist', 5, 10, 100)}; CIFAR-10 (JPEG): {sooner(f, 'cifar10-jpeg', 5, 10)}; in brackets "
        "the share of p=0's evaluations there"
    ),
    "odenet-small": lambda f: (
        f"MNIST, test error: {at(f, 'mnist, ODE-Net: test error')}% of the ODE-Net "
        f"({at(f, 'mnist, ODE-Net: parameters'):,} parameters, {at(f, 'mnist: NFE of the ODE-Net'):.0f} evaluations), "
        f"{at(f, 'mnist, ResNet: test error')}% of 6 residual blocks ({at(f, 'mnist, ResNet: parameters'):,}), "
        f"{at(f, 'mnist, MLP: test error')}% of a perceptron ({at(f, 'mnist, MLP: parameters'):,}); trained for "
        f"{f['steps']} steps only, and far from converged (training losses "
        + ", ".join(f"{f[f'training loss of {name} on mnist']:.2f}" for name in ("ODE-Net", "ResNet", "MLP"))
        + ")"
    ),
    "stability-small": lambda f: (
        "500 images of MNIST overfitted for 100 epochs: the loss jumps by up to "
        f"{at(f, 'mnist, NODE: largest loss'):.0f} times with NODE, "
        f"{at(f, 'mnist, ANODE p=5: largest loss'):.0f} times with ANODE p=5, but to about the same height, "
        f"{at(f, 'mnist, NODE: the loss of that'):.3f} and {at(f, 'mnist, ANODE p=5: the loss of that'):.3f}; "
        f"evaluations from {at(f, 'mnist, NODE: NFE').replace(', ', ' to ')} and "
        f"{at(f, 'mnist, ANODE p=5: NFE').replace(', ', ' to ')} at most: the instability of the published figure is "
        "not seen at this size"
    ),
    "weight-decay-small": lambda f: f"MNIST, test accuracy: {decays(f, 0)}; {decays(f, 5)}",
    "param-efficiency-small": lambda f: (
        "MNIST, test accuracy in % of NODE / ANODE p=5 of "
        + "; ".join(
            f"{name.split('of ')[1].split(' parameters')[0]} parameters: {value}"
            for name, value in f.items()
            if "test accuracy" in name
        )
    ),
}


def said_of_images(stem):
    content = json.loads((ROOT / "assets" / "results" / "paper" / f"{stem}.json").read_text())
    assert content["complete"]
    assert not content["quick"]
    assert all(run["status"] == "success" for run in content["runs"])
    command = content["command"].removeprefix("train-flows paper ").removesuffix(" --resume")
    return f"| `{command}` | {ON_IMAGES[stem](facts(content))} | {len(content['seeds'])} |"


def facts(content):
    """The findings of a file, the training losses of its last epochs, and how many steps its first run took."""
    losses = {f"training loss of {row['model']} on {row['data']}": row["loss"]["mean"] for row in content["summary"]}
    run = content["runs"][0]
    images = int(content["sets"][run["data"]]["notes"][0].split()[0].replace(",", ""))
    return {**content["findings"], **losses, "steps": run["epochs"] * (images // run["batch_size"])}


@pytest.mark.parametrize("stem", ON_IMAGES)
def test_what_is_said_of_images_is_in_the_files(stem):
    assert said_of_images(stem) in README


def kl_of(f, name):
    return " / ".join(f"{at(f, f'u{i}: KL, {name}'):.3f}" for i in (1, 2, 3, 4))


ON_DENSITIES = {  # what the README says of each experiment on densities, from its file
    "path-energies": lambda f: (
        "with a penalty on acceleration, chosen on validation data: "
        + "; ".join(
            f"{each} (weight {f[f'{each}: chosen weight']:g}) {at(f, f'{each}: NFE of log_prob'):.2f} of the "
            f"evaluations of log_prob, test NLL {at(f, f'{each}: test NLL'):+.3f}"
            for each in ("separated-8gaussians", "checkerboard", "annulus")
        )
        + f"; on average {f['NFE of log_prob, with / without, mean']:.2f}"
    ),
    "ffjord": lambda f: (
        "seconds to the validation NLL that FFJORD's recipe has after 2,500 iterations, over its own: "
        + "; ".join(
            f"{each} {at(f, f'{each}: time to'):.3f} (of {at(f, f'{each}: seconds, FFJORD'):.0f}), test NLL at the end "
            f"{at(f, f'{each}: final test NLL, default'):.3f}, FFJORD's {at(f, f'{each}: final test NLL, FFJORD'):.3f}"
            for each in ("8gaussians", "checkerboard", "2spirals")
        )
    ),
    "couplings": lambda f: (
        "flow matching with optimal transport within a batch, beside independent pairs after as many steps: "
        + "; ".join(
            f"{each} {at(f, f'{each}: NFE of sampling'):.2f} of the evaluations of sampling, test NLL "
            f"{at(f, f'{each}: test NLL'):+.3f}, {at(f, f'{each}: seconds'):.0f} times the seconds of training"
            for each in ("8gaussians", "moons")
        )
    ),
    "planar": lambda f: (
        "KL to the densities U1 / U2 / U3 / U4: "
        + "; ".join(
            f"{n} planar layers {kl_of(f, f'NF K={n}')}, {n} continuous planar units {kl_of(f, f'CNF M={n}')}"
            for n in (2, 8, 32)
        )
        + f"; a field of 64-64 units {kl_of(f, 'CNF 64-64')}"
    ),
}


def said_of_densities(experiment):
    content = json.loads((ROOT / "assets" / "results" / "paper" / f"{experiment}.json").read_text())
    assert content["complete"]
    assert not content["quick"]
    assert all(run["status"] == "success" for run in content["runs"])
    return f"| `{experiment}` | {ON_DENSITIES[experiment](content['findings'])} | {len(content['seeds'])} |"


@pytest.mark.parametrize("experiment", ON_DENSITIES)
def test_what_is_said_of_densities_is_in_the_files(experiment):
    assert said_of_densities(experiment) in README


def said_of_reliability():
    content = json.loads((ROOT / "assets" / "results" / "reliability.json").read_text())["parts"]
    kills, runs, tables = (content[name] for name in ("kills", "mutated-runs", "mutated-tables"))
    assert not runs["failures"]
    assert not tables["failures"]
    large, soak = content["large-table"], content["soak"]
    first, _ = large["table"]
    return [
        f"- {kills['identical']} of {kills['kills']} runs killed at random moments came to the same, bit for bit",
        f"- {sum(runs['outcomes'].values()):,} damaged and crafted run folders, of which "
        f"{runs['outcomes']['refused']:,} were refused and {runs['outcomes']['unchanged']:,} loaded as they had been; "
        f"{sum(tables['outcomes'].values()):,} tables, {tables['outcomes']['refused']:,} refused and "
        f"{tables['outcomes']['read']:,} read",
        f"- {content['saving']['share']:.1%} of the time of training goes to records and states",
        f"- {content['processes']['rows'][1]['times_faster']:.2f} times the samples a second by two processes",
        f"- {first['gigabytes']:g} GB of rows take {large['anonymous_ratio']:.2f} of the memory that a fiftieth takes",
        f"- {soak['steps']:,} tiny steps change the memory by {soak['growth']:+.1%} after the first tenth",
    ]


def test_what_runs_survive_is_that_of_the_file():
    for line in said_of_reliability():
        assert " ".join(line.split()) in " ".join(README.split())


EXACT = ("categorical", "copies", "mixture base", "p=0, matched")
BOUNDS = ("joint, learned q", "joint", "joint, p=2", "joint, p=4", "joint, matched", "frozen", "momentum")
TABLES = ("parkinsons.csv.gz", "protein.csv.gz")
CURVED = ("annulus", "nested-annuli", "2spirals")
AUGMENTED = ("checkerboard", "separated-8gaussians", *CURVED, *TABLES)


def said_of_augmentation():
    """Evaluations at 1e-7 over those of the plain flow, where both have the same test NLL."""
    for data in AUGMENTED:
        path = ROOT / "assets" / "results" / "paper" / f"augmented-density-{data}.json"
        findings = json.loads(path.read_text())["findings"]
        for regularisation, words in (("free", "without"), ("penalised", "with")):
            for name in (*EXACT, *BOUNDS):
                key = f"{data}, {regularisation}: {name} / p=0, nfe_"
                if f"{key}sample_1e-07" not in findings:
                    continue
                sampling, log_prob = (findings[f"{key}{what}_1e-07"] for what in ("sample", "log_prob"))
                costs = f"{sampling['cost_below']:.0f}, {sampling['cost']:.0f}"
                ratios = " | ".join(f"{each['ratio']:.2f}{interval(each)}" for each in (sampling, log_prob))
                shown = f"{name} (bound)" if name in BOUNDS else name
                at = f"{sampling['nll']:.3f} | {costs} | {ratios} | {sampling['pairs']}"
                yield f"| {data}, {words} | {shown} | {at} |"


def test_settings_of_augmentation_are_those_that_were_chosen():
    for data, chosen in augmented_density.CHOSEN.items():
        path = ROOT / "assets" / "results" / "paper" / f"augmented-tuning-{data}.json"
        content = json.loads(path.read_text())
        found = {name: content["findings"][f"{data}: {name}"] for name in ("components", "acceleration")}
        assert found == chosen._asdict()
        assert content["complete"]
        assert min(content["seeds"]) >= 100  # none of those reported


def said_of_parts():
    """What the categorical flow has of its mixture: costs over those of the mixture base, and the best NLL of both."""
    for data in ("checkerboard", *CURVED, *TABLES):
        path = ROOT / "assets" / "results" / "paper" / f"augmented-density-{data}.json"
        content = json.loads(path.read_text())
        best = {(run["name"], run["seed"]): min(run["history"]["nll_test"]) for run in content["runs"]}
        for regularisation, words in (("free", "without"), ("penalised", "with")):
            key = f"{data}, {regularisation}: categorical / mixture base, nfe_"
            if f"{key}sample_1e-07" not in content["findings"]:
                continue
            costs = [content["findings"][f"{key}{what}_1e-07"] for what in ("sample", "log_prob")]
            ratios = " | ".join(f"{each['ratio']:.2f}{interval(each)}" for each in costs)
            seeds = [seed for name, seed in best if name == f"categorical, {regularisation}"]
            plain, base, mixed = (
                fmean(best[f"{name}, {regularisation}", seed] for seed in seeds)
                for name in ("p=0", "mixture base", "categorical")
            )
            yield f"| {data}, {words} | {ratios} | {base - plain:+.2f} | {mixed - plain:+.2f} | {len(seeds)} |"


def interval(found):
    return "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"


def test_what_augmentation_saves_is_that_of_the_files():
    for row in said_of_augmentation():
        assert row in README
    for row in said_of_parts():
        assert row in README


def said_of_contests():
    contests = json.loads((ROOT / "assets" / "results" / "benchmark-tabular.json").read_text())["contests"]
    for data in dict.fromkeys(contest["data"] for contest in contests):
        own = [contest for contest in contests if contest["data"] == data]
        values = [standings.mean(rows)[0] for rows in zip(*(contest["rows"] for contest in own), strict=True)]
        apart = [standings.mean(figures) for figures in zip(*(contest["differences"] for contest in own), strict=True)]
        differences = " | ".join(f"{value:+.3f} +- {error:.3f}" for value, error in apart)
        figures = " | ".join(f"{value:.3f}" for value in values)
        yield f"| `{data}`, {own[0]['unit']} | {figures} | {differences} | {len(own)} |"


def test_the_contests_are_those_of_the_file():
    for row in said_of_contests():
        assert row in README
    contests = json.loads((ROOT / "assets" / "results" / "benchmark-tabular.json").read_text())["contests"]
    own = [contest for contest in contests if contest["data"].startswith("parkinsons")]
    cnf, nsf = (", ".join(f"{each['rows'][i]['value']:.1f}" for each in own) for i in (0, 2))
    assert f"with the three seeds the CNF ended at {cnf}, and NSF at {nsf}." in " ".join(README.split())


PEERS = (
    "torchdiffeq, adjoint (FFJORD)",
    "torchdiffeq, direct",
    "zuko",
    "torchdyn",
    "torchode",
    "diffrax, checkpoints",
    "diffrax, backsolve",
)
TIMED = {  # what the README calls the tasks of the speed benchmark
    ("cnf-2d", "step, exact"): "training step",
    ("cnf-2d", "step, one probe"): "training step, one probe of the trace",
    ("cnf-2d", "log_prob"): "`log_prob` of 10,000 points",
    ("cnf-2d", "sample"): "10,000 samples",
    ("cnf-tab", "step, exact"): "43 dimensions, training step",
}


def said_of_peers():
    rows = json.loads((ROOT / "assets" / "results" / "benchmark-speed.json").read_text())["rows"]
    for (work, task), name in TIMED.items():
        found = speed_report.ratios(rows, work, task, 1e-5)
        for ours in ("checkpoint", "checkpoint, compiled", "direct", "direct, compiled"):
            if "step" in task or ours.startswith("direct"):  # without gradients they are one
                others = found[f"ours, {ours}"]
                kind = ours if "step" in task else ours.replace("direct", "").strip(", ") or "as it is"
                ratios = " | ".join(f"{others[peer]:.1f}" if peer in others else "-" for peer in PEERS)
                yield f"| {name} | {kind} | {ratios} |"


def test_the_ratios_are_those_of_the_file():
    for row in said_of_peers():
        assert row in README


def said_of_classifiers():
    result = json.loads((ROOT / "assets" / "results" / "classify-mnist.json").read_text())
    accuracy = f"{100 * result['accuracy']:.1f} +- {100 * result['standard_error']:.1f}%"
    cost = f"{result['nfe']:.0f} | {result['seconds']:.0f}"
    return f"| `{result['command']}` | {accuracy} | {cost} | `classify-mnist.json` |"


def test_the_command_of_the_picture_is_that_of_the_file():
    (shown,) = re.findall(r"the run measured below:\n\n((?: {4}.*\n)+)", README)
    result = json.loads((ROOT / "assets" / "results" / "classify-mnist.json").read_text())
    assert " ".join(shown.replace("\\", "").split()) == result["command"]


def test_the_filters_of_pairs_are_those_of_the_recipes():
    for names, data in (("on MNIST", "mnist"), ("on CIFAR-10 and SVHN", "cifar10"), ("on CIFAR-10 and SVHN", "svhn")):
        filters = recipes.PAIRS[data]["NODE"]["filters"]
        assert f"`--extra 0 --filters {filters}` {names}" in " ".join(README.split())


def test_the_accuracy_is_that_of_the_file():
    assert said_of_classifiers() in README


def said_of_speed():
    for row in json.loads((ROOT / "assets" / "results" / "benchmark-image-block.json").read_text())["rows"]:
        times = f"{row['seconds']:.2f} | {row['times_faster']:.2f}"
        yield f"| {row['contender']} | {times} | {row['evaluations']} | {row['peak_megabytes']:.0f} |"


def test_the_speed_is_that_of_the_file():
    for row in said_of_speed():
        assert row in README


@pytest.mark.parametrize("experiment", ON_FUNCTIONS)
def test_what_is_said_of_the_paper_is_in_the_files(experiment):
    content = json.loads((ROOT / "assets" / "results" / "paper" / f"{experiment}.json").read_text())
    assert content["complete"]
    assert not content["quick"]
    assert content["seeds"] == [0, 1, 2, 3, 4]
    said = PAPER[experiment](content["findings"], rows_of_summary(content))
    assert f"| `{experiment}` | {said} |" in README
