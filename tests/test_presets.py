"""The table of methods: its keys, its parts, and that the solvers take the options given."""

import pytest

from fxfuse.errors import MethodError
from fxfuse.passes.importance import WITHOUT_DATA, find_importance
from fxfuse.passes.solvers import find_solver
from fxfuse.passes.solvers.table import check_options
from fxfuse.presets import DEFAULT, METHODS, find_method

ON_WEIGHTS = ("ot-weights", "rebasin-weights", "transplant", "kl", "task-arithmetic", "ties")


def test_the_default_is_one_of_them():
    assert DEFAULT in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_made_of_parts_that_exist(name):
    preset = find_method(name)
    find_solver(preset.solver)
    check_options(preset.solver, preset.options)
    find_importance(preset.importance)
    assert preset.fit in ("none", "linear", "gradient")
    assert preset.summary
    assert preset.needs_data == (name not in ("average", "lerp", "ensemble", "select", *ON_WEIGHTS))
    assert preset.statistics == "activations" or preset.importance in WITHOUT_DATA


def test_a_fit_is_in_the_name():
    for name, preset in METHODS.items():
        assert preset.fit == "none" or name.endswith(f"-{preset.fit}") or name.startswith("partial")
        assert preset.fit != "none" or not name.endswith(("-linear", "-gradient"))
        assert preset.reads == "regression" or not name.endswith("-read")
        assert (preset.statistics == "weights") == (name.endswith("-weights") or preset.solver in ("transplant", "kl"))
        assert preset.fit != "none" or not preset.joint


def test_an_unknown_method():
    with pytest.raises(MethodError, match="unknown method 'kmaens': did you mean 'kmeans'"):
        find_method("kmaens")
