"""Refusals: an InputError of one line that names what is wrong."""

from pathlib import Path

import pytest

from anode import InputError


def refused(message, call, *args, **kwargs):
    """Assert that a call, with paths as text, raises an InputError of one line."""
    with pytest.raises(InputError, match=message) as caught:
        call(*(str(arg) if isinstance(arg, Path) else arg for arg in args), **kwargs)
    assert "\n" not in str(caught.value)
