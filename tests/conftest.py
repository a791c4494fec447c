"""Shared fixtures: reproducible noise, one thread a worker, and real data where it is at hand."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Make float64 the default type of the test."""
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets, named by AUGMENTED_FLOWS_DATA."""
    folder = os.environ.get("AUGMENTED_FLOWS_DATA")
    if not folder:
        pytest.skip("AUGMENTED_FLOWS_DATA is not set")
    return Path(folder)
