"""From parents to one network: what comes out, what it can do, and what is refused."""

import copy
import io

import pytest
import torch
from laws import analysed, data, distance, model, outputs
from torch import nn
from torch.nn import functional as F

from fxfuse.data import samples_from
from fxfuse.errors import DataError, MethodError, MismatchError, TraceError, WeightsError
from fxfuse.models_zoo.randomise import randomise
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.axis_law import permuted
from fxfuse.pipeline import analyse, fuse
from fxfuse.recipe import FitSettings

NAME = "digits_net"
QUICK = FitSettings(steps=4, joint_steps=2, batch_size=16)
INPUTS = ZOO[NAME].example(5, seed=9)


def parents(count=2, name=NAME):
    return [model(name, seed=seed) for seed in range(count)]


@pytest.fixture(scope="module")
def result():
    labels = torch.arange(48) % 10
    images = ZOO[NAME].example(48, seed=5)[0]
    return fuse(parents(), calibration=data(NAME), evaluation=(images, labels), method="kmeans-gradient", fit=QUICK)


# -------------------------------------------------------------------------------------------- what comes out


def test_the_state_loads_into_the_users_class(result):
    own = model(NAME, seed=7)
    own.load_state_dict(result.state_dict(), strict=True)
    assert distance(outputs(own, INPUTS), outputs(result.module, INPUTS)) < 1e-5


def test_the_module_is_a_graph_module_in_evaluation_mode_on_the_cpu(result):
    assert isinstance(result.module, torch.fx.GraphModule)
    assert not result.module.training
    assert {p.device.type for p in result.module.parameters()} == {"cpu"}
    assert all(p.requires_grad for p in result.module.parameters())
    result.module.graph.lint()


def test_it_copies_deeply(result):
    twin = copy.deepcopy(result.module)
    assert distance(outputs(twin, INPUTS), outputs(result.module, INPUTS)) == 0
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in result.module.parameters()}


def test_its_state_pickles(result):
    file = io.BytesIO()
    torch.save(result.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(result.module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert distance(outputs(twin, INPUTS), outputs(result.module, INPUTS)) == 0


def test_it_trains(result):
    twin = copy.deepcopy(result.module).train()
    before = {k: v.clone() for k, v in twin.state_dict().items()}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    F.cross_entropy(twin(*INPUTS), torch.arange(5)).backward()
    assert all(p.grad is not None for p in twin.parameters())
    optimizer.step()
    changed = [k for k, v in twin.state_dict().items() if not torch.equal(v, before[k])]
    assert set(changed) == set(before)  # weights, norm statistics and their counters
    assert not twin.eval().training


def test_it_compiles(result):
    compiled = torch.compile(result.module, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(*INPUTS), result.module(*INPUTS))


def test_the_parents_stay_as_they_are():
    own = parents()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in own]
    own[0].train()
    fuse(own, calibration=data(NAME), method="hungarian-linear", fit=QUICK)
    assert own[0].training
    assert not own[1].training
    for module, state in zip(own, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    fused = fuse(own[:1], calibration=data(NAME), method="average").module
    assert not {p.data_ptr() for p in fused.parameters()} & {p.data_ptr() for p in own[0].parameters()}


@pytest.mark.parametrize("method", ["average", "hungarian-gradient", "ensemble"])
def test_without_copies_the_graphs_have_the_parents_own_parameters_and_leave_them(method):
    own = parents()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in own]
    results = [fuse(own, calibration=data(NAME), method=method, fit=QUICK, copy=copy) for copy in (True, False)]
    for module, state in zip(own, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert outputs(results[0].module, INPUTS)[0].equal(outputs(results[1].module, INPUTS)[0])
    theirs = {p.data_ptr() for m in own for p in m.parameters()}
    assert theirs == {p.data_ptr() for parent in results[1].parents for p in parent.program.module.parameters()}
    assert not theirs & {p.data_ptr() for p in results[1].module.parameters()}
    assert all(p.grad is None for p in results[1].module.parameters())


def test_the_account(result):
    levels = result.analysis.partition.levels
    assert [r.level for r in result.levels] == [level.name for level in levels]
    assert [s.name for s in result.scores][:2] == ["parent 0", "parent 1"]
    assert any("fused" in s.name for s in result.scores)
    assert all(s.accuracy is not None for s in result.scores)
    assert set(result.groupings) == {s.id for s in result.analysis.axes.spaces}
    assert result.analysis.program.module is result.module
    assert result.settings["method"] == "kmeans-gradient"
    assert result.settings["weights"] == [0.5, 0.5]
    assert {"analyse", "calibrate", "group and rewrite", "fit", "verify"} <= set(result.timings)
    assert any("all levels together" in note for note in result.notes)


# ------------------------------------------------------------------------------------------------ choices


def test_other_outputs_than_one_tensor():
    for name in ("two_outputs", "dict_output", "two_inputs", "lstm"):
        own = parents(2, name)
        found = fuse(own, calibration=data(name), method="kmeans-gradient", fit=QUICK)
        inputs = ZOO[name].example(4)
        assert type(found.module(*inputs)) is type(own[0](*inputs))
        assert [x.shape for x in outputs(found.module, inputs)] == [x.shape for x in outputs(own[0], inputs)]


def test_three_parents_with_weights_and_names():
    found = fuse(
        parents(3), calibration=data(NAME), method="hungarian", weights=(2, 1, 1), names=("a", "b", "c"),
        granularity="layer",
    )  # fmt: skip
    assert found.settings["weights"] == [0.5, 0.25, 0.25]
    assert [p.program.name for p in found.parents] == ["a", "b", "c"]
    assert found.analysis.partition.granularity == "layer"


def test_no_data_is_needed_to_average():
    own = parents()
    found = fuse(own, method="average", example=INPUTS[0])
    key = next(k for k, v in own[0].state_dict().items() if v.is_floating_point())
    expected = sum(m.state_dict()[key] for m in own) / 2
    assert torch.allclose(found.state_dict()[key], expected)
    assert found.scores == ()


@pytest.mark.parametrize("head", ["probabilities", "logits", "labels"])
def test_heads(head):
    labels = torch.arange(48) % 10
    samples = samples_from((ZOO[NAME].example(48, seed=5)[0], labels))
    found = fuse(parents(), calibration=samples, method="hungarian-gradient", fit=QUICK, head=head)
    assert found.settings["head"] == head
    assert found.levels[-1].after <= found.levels[-1].before


def test_the_seed_matters_and_fixes_everything():
    first, second, other = (
        fuse(parents(), calibration=data(NAME), method="kmeans-gradient", fit=QUICK, seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("method", ["hungarian-linear", "partial-neurons"])
def test_statistics_in_rounds_give_the_same_bits(method, monkeypatch):
    parents = [model("digits_net", seed=seed) for seed in (0, 1)]
    options = {"calibration": data("digits_net", 24), "method": method, "fit": FitSettings(joint_steps=4, steps=4)}
    if method == "partial-neurons":
        options["budget"] = 1.3  # looks at all spaces at once, whatever it takes
    whole = fuse(parents, **options)
    monkeypatch.setattr("fxfuse.stages.building.AT_ONCE", 1)
    parts = fuse(parents, **options)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


class Squeezed(nn.Module):
    """Its cell's units are seen on no value of the graph."""

    def __init__(self, width=6):
        super().__init__()
        self.recurrent, self.head = nn.LSTM(4, width, batch_first=True, proj_size=3), nn.Linear(3, 5)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("method", ["hungarian", "rebasin", "zip", "ot"])
def test_neurons_that_no_value_shows_are_matched_by_weights(method):
    parent = randomise(Squeezed(), 0).eval()
    x = torch.randn(16, 7, 4)
    found = analyse(parent, x[:2])
    twin = Squeezed().eval()
    twin.load_state_dict(permuted(found.program, found.axes, 3).float().state_dict())
    assert distance(outputs(twin, (x,)), outputs(parent, (x,))) < 1e-5
    result = fuse([parent, twin], calibration=x, method=method, compare=False)
    assert distance(outputs(result.module, (x,)), outputs(parent, (x,))) < 1e-5


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_hidden_neurons_may_differ_in_number():
    parents = [randomise(Squeezed(width), width).eval() for width in (6, 9)]
    result = fuse(parents, calibration=torch.randn(16, 7, 4), method="hungarian", compare=False)
    assert result.module.get_parameter("recurrent.weight_hr_l0").shape == (3, 6)


def test_analysis_alone():
    found = analyse(model("mlp"), ZOO["mlp"].example(), granularity="layer", name="net")
    assert found.program.name == "net"
    assert found.partition.granularity == "layer"
    assert len(found.partition.levels) == 3
    assert {s.name for s in found.axes.spaces} == {s.name for s in analysed("mlp").axes.spaces}


# ----------------------------------------------------------------------------------------------- refusals


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum().item() > 0 else x


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "kmaens"}, MethodError, "did you mean 'kmeans'"),
        ({"calibration": None}, MethodError, "looks at activations: give it calibration data"),
        ({"calibration": None, "method": "average"}, DataError, "nothing to trace the parents with"),
        ({"weights": (1.0,)}, MethodError, "one entry per parent. Got 1 for 2"),
        ({"weights": (-1.0, 2.0)}, MethodError, "at least 0 and not all 0"),
        ({"weights": (0.0, 0.0)}, MethodError, "at least 0 and not all 0"),
        ({"names": ("a",)}, MethodError, "names must have one entry per parent"),
        ({"head": "labels"}, MethodError, "needs labelled calibration data"),
        ({"head": "labels", "calibration": None, "method": "average"}, MethodError, "needs labelled calibration data"),
        ({"options": {"restarts": 1.5}}, MethodError, "option 'restarts' of kmeans must be a whole number. Got 1.5"),
        (
            {"options": {"restarts": -1}},
            MethodError,
            "space 'conv1.weight:0': restarts of kmeans must be at least 0. Got -1",
        ),
        (
            {"method": "ot", "options": {"reference": 7}},
            MethodError,
            "space 'conv1.weight:0': reference of ot must be a parent",
        ),
        ({"method": "ot", "options": {"regularisation": 0}}, MethodError, "regularisation of ot must be positive"),
        ({"method": "rebasin", "target": 0.5}, MethodError, "'conv1.weight:0': permutation matching keeps the widest"),
        ({"target": -1.0}, MethodError, "must be a positive factor"),
        ({"importance": "conductence"}, MethodError, "conductance"),
        (
            {"evaluation": (INPUTS[0], torch.tensor([0, 1, 2, 3, 10]))},
            DataError,
            r"lie in 0\.\.9, the .* Got 10 at sample 4",
        ),
    ],
)
def test_what_is_refused_before_any_work(options, error, message, monkeypatch):
    monkeypatch.setattr("fxfuse.pipeline.observe", None)
    with pytest.raises(error, match=message):
        fuse(parents(), **{"calibration": data(NAME), "method": "kmeans-gradient", **options})


def test_no_parents():
    with pytest.raises(MethodError, match="at least one parent"):
        fuse([], calibration=data(NAME))


def test_parents_that_differ():
    with pytest.raises(MismatchError, match=r"the graphs of one and two differ|do not correspond"):
        fuse([model("mlp"), model("functional_mlp")], calibration=data("mlp"), names=("one", "two"))


def test_a_parent_that_is_not_finite():
    own = parents()
    with torch.no_grad():
        next(iter(own[1].parameters())).view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match="parent 1"):
        fuse(own, calibration=data(NAME))


def test_inputs_that_the_model_rejects():
    with pytest.raises(DataError, match="parent 0 rejects inputs of shape"):
        fuse(parents(), calibration=samples_from(torch.randn(8, 3, 8, 8)))


def test_a_model_that_cannot_be_traced():
    with pytest.raises(TraceError, match=r"test_pipeline.py:\d+"):
        fuse([Untraceable()], calibration=samples_from(torch.randn(8, 4)))


def test_a_head_that_nothing_is_fitted_to_is_said():
    labelled = (ZOO[NAME].example(16, seed=5)[0], torch.arange(16) % 10)
    result = fuse(parents(), calibration=labelled, method="rebasin", head="labels", compare=False)
    assert "head: labels has no effect, for method 'rebasin' fits nothing" in result.notes


@pytest.mark.parametrize("method", ["hungarian", "transplant-read", "hungarian-gradient", "partial-neurons"])
def test_networks_of_one_layer_are_averaged(method):
    nets = [nn.Sequential(nn.Linear(6, 3)) for _ in range(2)]
    x = torch.randn(20, 6)
    result = fuse(nets, calibration=x, method=method, head="logits", fit=FitSettings(augment="none"), compare=False)
    torch.testing.assert_close(result.module(x), (nets[0](x) + nets[1](x)) / 2, rtol=1e-5, atol=1e-5)
