"""The examples in the docstrings, as somebody would type them."""

import doctest
from importlib import import_module

import pytest

from packedesm import notebook

MODULES = sorted({getattr(notebook, name).__module__ for name in notebook.__all__})


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_give_what_they_say(module):
    found = doctest.testmod(import_module(module))
    assert found.failed == 0
    assert found.attempted or module.endswith("embeddings")
