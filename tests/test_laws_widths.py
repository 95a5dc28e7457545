"""Parents of different widths fuse, and into a third width, on every zoo model that comes in several widths.

``grouped`` is the one whose structure depends on the width: its channel shuffle cuts four groups of channels along the
borders of other groups, so its neurons are of another kind at every width. That is said instead.
"""

import pytest
from laws import analysed, data, distance, grouped, model, outputs, statistics

from fxfuse.errors import MismatchError
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.correspond import correspond
from fxfuse.passes.resize import scale
from fxfuse.pipeline import fuse

WIDE = [name for name, entry in ZOO.items() if len(entry.widths) > 2]


@pytest.mark.parametrize("name", [name for name in WIDE if name != "grouped"])
def test_parents_of_two_widths_fuse_into_a_third(name):
    first, second, third = (analysed(name, width, seed) for seed, width in enumerate(ZOO[name].widths[:3]))
    inputs = ZOO[name].example(6, seed=9)
    expected = [x.shape for x in outputs(first.program.module, inputs)]
    pairs = correspond(third, [first, second])
    found = outputs(grouped(pairs, statistics(pairs, data(name, 8)), "hungarian"), inputs)
    assert [x.shape for x in found] == expected
    assert all(bool(x.isfinite().all()) for x in found)


@pytest.mark.parametrize("name", WIDE)
def test_a_target_of_half_as_many_neurons_again(name):
    first, second = analysed(name), analysed(name, seed=1)
    pairs = correspond(scale(first, 1.5), [first, second])
    fused = grouped(pairs, statistics(pairs, data(name, 8)), "hungarian")
    inputs = ZOO[name].example(6, seed=9)
    expected = outputs(first.program.module, inputs)
    assert [x.shape for x in outputs(fused, inputs)] == [x.shape for x in expected]
    more = sum(p.numel() for p in fused.parameters()) / sum(p.numel() for p in first.program.module.parameters())
    assert more > 1.1


def test_a_structure_that_depends_on_the_width_is_said_to():
    with pytest.raises(MismatchError, match=r"stem.weight of grouped 16 .*level stem.* and .*grouped 24 .*level stem"):
        correspond(analysed("grouped", 16), [analysed("grouped", 24)])


def test_the_pipeline_takes_a_target_as_a_module_or_a_factor():
    parents = [model("digits_net", width, seed) for seed, width in enumerate((16, 8))]
    target = model("digits_net", 12)
    by_module = fuse(parents, calibration=data("digits_net"), method="kmeans", target=target)
    target.load_state_dict(by_module.state_dict(), strict=True)
    inputs = ZOO["digits_net"].example(5)
    assert distance(outputs(target, inputs), outputs(by_module.module, inputs)) < 1e-5
    by_factor = fuse(parents, calibration=data("digits_net"), method="kmeans", target=0.75)
    shapes = {name: value.shape for name, value in by_factor.state_dict().items()}
    assert shapes == {name: value.shape for name, value in by_module.state_dict().items()}
