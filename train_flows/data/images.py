"""Image data: scikit-learn's digits."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from train_flows.data.dataset import Dataset, split


def digits(seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn as uint8 images (1, 8, 8) with 17 levels, split by ``seed``."""
    x = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    columns = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    return Dataset("digits", *split(x, seed), columns, levels=17)
