"""Run folders that were never trained: what the programs that read runs need, in milliseconds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anode import storage
from cnf import density_model
from cnf.models import KIND as DENSITY
from train_flows import classify
from train_flows.data import load_density_data, load_labelled_data
from train_flows.run.folder import Run
from train_flows.run.session import default_dtype
from train_flows.settings import ClassifySettings, DensitySettings, to_sections


def spread(model, std=0.3):
    """Give a model random weights, far from the zero field."""
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std)
    return model


def store_density(folder, source, *, training=None, run=None, model=None, **data):
    """Write the run of a density with random weights, and return model and data."""
    settings = DensitySettings(
        data={"source": source, **data},
        model={"hidden": (8, 8), **(model or {})},
        training=training or {},
        run=run or {},
    )
    dtype = getattr(torch, settings.run.dtype)
    dataset = load_density_data(**dataclasses.asdict(settings.data), seed=settings.run.seed, dtype=dtype)
    options = {"context": len(dataset.context), "levels": dataset.levels, "config": settings.model}
    with default_dtype(dtype):
        density = spread(density_model(dataset.shape, dataset.train.head().x, **options))
    arguments = {"shape": dataset.shape, "context": density.context, "levels": density.levels}
    arguments |= dataclasses.asdict(settings.model)
    stored = Run.create(folder, DENSITY, to_sections(settings), arguments, dataset.describe())
    stored.keep_best(density)
    return density.eval(), dataset


def store_classifier(folder, source, *, model=None, **data):
    """Write the run of a classifier with random weights, and return model and data."""
    settings = ClassifySettings(data={"source": source, **data}, model={"hidden": (8, 8), **(model or {})})
    dataset = load_labelled_data(**dataclasses.asdict(settings.data), task=settings.model.task)
    network = spread(classify.build(settings, dataset))
    stored = Run.create(folder, "classifier", to_sections(settings), network.arguments, dataset.describe())
    stored.keep_best(network)
    return network.eval(), dataset


def write_greys(folder, n=20, names=("bright", "dark"), side=2):
    """Write square grey images of noise, bright and dark ones, in two folders."""
    rng = np.random.default_rng(n)
    for name, (low, high) in zip(names, ((150, 256), (0, 100)), strict=False):
        Path(folder, name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(low, high, (side, side)).astype(np.uint8)
            Image.fromarray(pixels).save(Path(folder, name, f"{i:02}.png"))


def untrained(folder, source, kind=DENSITY, **settings):
    """Write the folder of a run without a model, for what reads its settings and records."""
    sections = {"data": {"source": source}, "training": {"lr": 0.01}, "run": {"seed": 0}}
    for section, values in settings.items():
        sections[section] = {**sections.get(section, {}), **values}
    storage.write_config(Path(folder), kind, sections.pop("model", {}), settings=sections, data={"name": source})
    return Run.open(folder, kind)


def result_of(folder):
    """Return the content of ``result.json``."""
    return json.loads(Path(folder, "result.json").read_text())


def have_same_weights(one, other):
    """Return True if the stored weights of two runs are equal."""
    one, other = (storage.read_weights(name) for name in (one, other))
    return all(torch.equal(one[name], other[name]) for name in one)


def let_time_run_out(patch, program, step):
    """Let the budget of a program end at the batch of a step."""
    shuffled, late = program.shuffled_batches, []

    def counted(*args):
        batch = shuffled(*args)
        return lambda now: (now == step and late.append(now), batch(now))[1]

    patch.setattr(program, "shuffled_batches", counted)
    patch.setattr("train_flows.run.loop.time.monotonic", lambda: 1e9 if late else 0.0)


def report_of(run, *args):
    """Return the JSON that a program prints."""
    status, out, err = run(*args, "--json")
    assert status == 0, err
    return json.loads(out)
