import copy
import dataclasses
import warnings

import pytest
import torch
import torchvision
from laws import assert_faithful
from torch import Tensor, nn

from fxfuse.errors import DataError, TraceError
from fxfuse.models_zoo import ZOO, randomise
from fxfuse.passes.checking import difference, plain
from fxfuse.passes.trace import trace

models = torchvision.models

FAMILIES = {
    "alexnet": 64,
    "densenet121": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "convnext_tiny": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "squeezenet1_0": 64,
    "shufflenet_v2_x0_5": 32,
    "mnasnet0_5": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
}
"""One small model per family, with the side of its input."""
SMALL = {
    "vgg": lambda: models.VGG(models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True), num_classes=10),
    "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10),
    "swin": lambda: models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10),
    "swin v2": lambda: models.SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10,
        block=models.swin_transformer.SwinTransformerBlockV2, downsample_layer=models.swin_transformer.PatchMergingV2,
    ),
    "maxvit": lambda: models.MaxVit((56, 56), 16, 7, [16, 32], [1, 1], 8, 0.1, num_classes=10),
}  # fmt: skip


def torchvision_model(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomise(torchvision.models.get_model(name), seed=1).eval()


EXPORTED = {
    "in_place",
    "tied_autoencoder",
    "volume",
    "pixel_shuffle",
    "packed_qkv",
    "transformer_encoder",
    "two_outputs",
}
CASES = [(name, "fx") for name in sorted(ZOO)] + [
    pytest.param(name, "export", marks=[] if name in EXPORTED else [pytest.mark.matrix]) for name in sorted(ZOO)
]
"""The export front end is slow: its whole sweep is part of the matrix."""


@pytest.mark.parametrize(("name", "front_end"), CASES)
def test_zoo_models_keep_their_function_and_their_names(name, front_end):
    entry = ZOO[name]
    model = randomise(entry.factory(), seed=1).eval()
    program = trace(model, entry.example(), front_end=front_end)
    assert program.front_end == front_end
    assert_faithful(model, program.module, entry.example(4, seed=3))


@pytest.mark.parametrize("name", SMALL)
def test_families_that_are_large_in_a_small_size(name):
    model = SMALL[name]()
    if name == "vgg":
        model.classifier[0] = nn.Linear(16 * 7 * 7, 32)
        model.classifier[3], model.classifier[6] = nn.Linear(32, 32), nn.Linear(32, 10)
    model = randomise(model, seed=1).eval()
    side = 56 if name == "maxvit" else 32
    program = trace(model, torch.randn(2, 3, side, side))
    assert program.front_end == "fx"
    assert_faithful(model, program.module, (torch.randn(4, 3, side, side),))


@pytest.mark.parametrize("name", FAMILIES)
def test_one_torchvision_model_per_family(name):
    model = torchvision_model(name)
    side = FAMILIES[name]
    program = trace(model, torch.randn(2, 3, side, side))
    assert program.front_end == "fx"
    assert_faithful(model, program.module, (torch.randn(4, 3, side, side),))


@pytest.mark.matrix
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_classifier(name):
    model = torchvision_model(name)
    side = 224 if "vit" in name or "maxvit" in name or "swin" in name else 75 if "inception" in name else 64
    program = trace(model, torch.randn(2, 3, side, side))
    assert program.front_end == "fx"
    assert_faithful(model, program.module, (torch.randn(2, 3, side, side),))


# torch.export says so of every nn.LSTM that was copied, traced by us or not
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")
@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize("name", ["resnet20", "vit", "lstm", "language_model"])
def test_a_program_trains_copies_and_exports_again(name, front_end):
    entry = ZOO[name]
    module = trace(randomise(entry.factory(), seed=1), entry.example(), front_end=front_end).module
    twin = copy.deepcopy(module)
    inputs = entry.example(4)
    assert torch.equal(plain(twin(*inputs)), plain(module(*inputs)))
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint({p.data_ptr() for p in module.parameters()})
    twin.train()
    twin(*inputs).square().mean().backward()
    assert all(p.grad is not None for p in twin.parameters())
    twin.eval()
    with torch.no_grad():
        exported = torch.export.export(twin, entry.example(2), strict=False)
        assert difference(exported.module()(*entry.example(2)), twin(*entry.example(2)))[0] < 1e-5


def test_train_and_eval_switch_batch_norm_from_both_front_ends():
    for front_end in ("fx", "export"):
        entry = ZOO["resnet20"]
        module = trace(randomise(entry.factory(), seed=1), entry.example(), front_end=front_end).module
        before = module.state_dict()["stem.1.running_mean" if "stem.1.running_mean" in module.state_dict() else
                                     next(k for k in module.state_dict() if "running_mean" in k)].clone()  # fmt: skip
        key = next(k for k in module.state_dict() if "running_mean" in k)
        module.train()
        module(*entry.example(4))
        assert not torch.equal(module.state_dict()[key], before)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(3, 3)
        self.register_buffer("scale", torch.full((8,), 2.0))
        self.register_buffer("scratch", torch.ones(8), persistent=False)

    def forward(self, ids: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(ids) * self.scale * self.scratch
        if shift is not None:
            x = x + shift
        return {"logits": self.head(x), "hidden": x}


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_state_survives_tied_unused_and_non_persistent(front_end):
    model = randomise(Tied(), seed=1).eval()
    ids = torch.randint(20, (2, 5))
    module = trace(model, ids, front_end=front_end).module
    assert_faithful(model, module, (ids,))
    assert module.get_submodule("embed").weight is module.get_submodule("head").weight
    assert "scratch" in dict(module.named_buffers())
    twin = copy.deepcopy(module)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert twin.get_submodule("embed").weight is twin.get_submodule("head").weight


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_a_mapping_binds_by_name_and_the_rest_takes_its_default(front_end):
    model = randomise(Tied(), seed=1).eval()
    ids, shift = torch.randint(20, (2, 5)), torch.randn(2, 5, 8)
    program = trace(model, {"shift": shift, "ids": ids}, front_end=front_end)
    names = [node.name for node in program.module.graph.nodes if node.op == "placeholder"]
    assert names == ["ids", "shift"]  # the order of forward
    assert program.example[1].shape == shift.shape
    alone = trace(model, {"ids": ids}, front_end=front_end)
    assert [n.name for n in alone.module.graph.nodes if n.op == "placeholder"] == ["ids"]
    out = alone.module(ids)
    assert set(out) == {"logits", "hidden"}


def test_what_was_done_to_the_graph_is_one_note():
    class Untidy(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu_().add_(1)

    notes = trace(Untidy(3, 2), torch.randn(2, 3)).notes
    (note,) = (note for note in notes if note.startswith("the graph was brought into one form: "))
    assert "in-place operators made functional (2)" in note


def test_one_sample_is_repeated_and_said():
    program = trace(nn.Linear(3, 2), torch.randn(1, 3))
    assert program.example[0].shape == (2, 3)
    assert any("one sample" in note for note in program.notes)


class Repeated(nn.Module):
    """Constants with as many rows as there are samples, in methods that ask torch for numbers."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.eye(4)[None].expand(x.shape[0], -1, -1)
        start = torch.ones(()).new_zeros(x.shape[0], 4) + torch.ones(()).new_ones((x.size(0), 4))
        return start + torch.bmm(table, x.unsqueeze(2)).squeeze(2)


def test_constants_repeated_for_every_sample_are_followed_by_torch_fx():
    model = Repeated()
    program = trace(model, torch.randn(2, 4), front_end="fx")
    assert not any("opaque" in note for note in program.notes)
    assert_faithful(model, program.module, (torch.randn(7, 4),))
    assert "expand" not in vars(Tensor)  # what is inherited is inherited again


def test_an_input_that_the_model_rejects_is_one_sentence():
    with pytest.raises(DataError, match=r"parent rejects inputs of shape \(2, 4\)"):
        trace(nn.Linear(3, 2), torch.randn(2, 4))


def test_an_unknown_argument_is_named():
    with pytest.raises(DataError, match="no argument 'id'; did you mean 'ids'"):
        trace(Tied(), {"id": torch.randint(20, (2, 5))})


def test_compiled_parts_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler is deprecated, what it made is still around
        module = nn.Sequential(nn.Linear(3, 4), torch.jit.script(nn.Linear(4, 2)))
    with pytest.raises(TraceError, match=r"compiled TorchScript at 1, .* give the Python module"):
        trace(module, torch.randn(2, 3))


def test_a_fixed_batch_size_is_refused():
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, 3, 2)

    with pytest.raises(TraceError, match="no other batch size"):
        trace(Fixed(), torch.randn(2, 6))


class Cache:
    """What no graph can give."""

    def __init__(self, values):
        self.values = values


class Remembering(nn.Module):
    """Returns its answer and, beside it, an object; or the object alone."""

    def __init__(self, alone=False):
        super().__init__()
        self.first, self.second, self.alone = nn.Linear(4, 6), nn.Linear(6, 3), alone

    def forward(self, x):
        hidden = self.first(x).relu()
        return Cache(hidden) if self.alone else {"answer": self.second(hidden), "cache": Cache(hidden)}


def test_an_object_among_the_outputs_is_left_out_and_said():
    net, x = Remembering(), torch.randn(5, 4)
    program = trace(net, x)
    found = program.module(x)
    assert found["cache"] is None
    assert torch.equal(found["answer"], net(x)["answer"])
    assert any("output['cache'], an object of the class Cache, is left out" in note for note in program.notes)


def test_parameters_that_share_memory_in_different_shapes_are_said():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    assert not any("share memory" in note for note in trace(net, torch.randn(5, 4)).notes)
    net[1].weight = nn.Parameter(net[0].weight.detach().t())
    notes = trace(net, torch.randn(5, 4)).notes
    assert any("0.weight and 1.weight share memory in different shapes" in note for note in notes)


def test_outputs_without_a_tensor_are_refused():
    with pytest.raises(TraceError, match="returns no tensors: output, an object of the class Cache"):
        trace(Remembering(alone=True), torch.randn(5, 4))


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x[:, torch.rand(4).argsort()])


def test_a_network_that_draws_at_random_is_refused_as_such():
    with pytest.raises(TraceError, match="answers the same inputs differently each time: output changes"):
        trace(Drawing(), torch.randn(5, 4))


def test_an_unknown_front_end_is_refused():
    with pytest.raises(TraceError, match=r"must be one of 'auto', 'fx', 'export'\. Got 'jit'"):
        trace(nn.Linear(3, 2), torch.randn(2, 3), front_end="jit")


def test_the_parent_is_not_touched():
    model = randomise(ZOO["resnet20"].factory(), seed=1).train()
    before = copy.deepcopy(model.state_dict())
    trace(model, ZOO["resnet20"].example())
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert any(getattr(m, "inplace", False) for m in copy.deepcopy(nn.ReLU(True)).modules())


def test_nodes_say_where_they_come_from():
    module = trace(Tied(), torch.randint(20, (2, 5))).module
    places = {n.name: n.meta["where"] for n in module.graph.nodes if n.op == "call_function"}
    assert places
    assert all(place.startswith("test_trace.py:") for place in places.values())


TIMM = [
    "vit_tiny_patch16_224", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "convnext_atto", "convnextv2_atto",
    "levit_128s", "swin_tiny_patch4_window7_224", "tf_efficientnet_b0", "mobilevit_xxs", "mobilevitv2_050",
    "resnetv2_50x1_bit", "resnest14d", "seresnet18", "hrnet_w18_small", "dla34", "ghostnet_100", "repvgg_a0",
    "poolformer_s12", "pvt_v2_b0", "xcit_nano_12_p16_224", "cait_xxs24_224", "coat_tiny", "crossvit_tiny_240",
    "edgenext_xx_small", "efficientformer_l1", "fastvit_t8", "focalnet_tiny_srf", "inception_next_tiny", "nfnet_l0",
    "tnt_s_patch16_224", "visformer_tiny", "volo_d1_224", "botnet26t_256", "halonet26t", "lambda_resnet26t",
    "eva02_tiny_patch14_224", "res2net50_26w_4s", "maxvit_pico_rw_256", "tresnet_m"
]  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize(
    "name",
    TIMM,
)
def test_timm(name):
    timm = pytest.importorskip("timm")
    model = randomise(timm.create_model(name), seed=1).eval()
    side = model.pretrained_cfg["input_size"][-1]
    program = trace(model, torch.randn(2, 3, side, side))
    assert_faithful(model, program.module, (torch.randn(2, 3, side, side),))


def test_parameters_tied_by_their_memory_are_one():
    model = randomise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6)), seed=1)
    model[4].weight.data = model[0].weight.data
    for front_end in ("fx", "export"):
        module = trace(model, torch.randn(2, 4), front_end=front_end).module
        state = module.state_dict(keep_vars=True)
        assert state["4.weight"] is state["0.weight"]
        assert state["4.weight"] is not model[0].weight
        assert state.keys() == model.state_dict().keys()
    assert model[4].weight is not model[0].weight


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 5)
        self.b = torch.compile(nn.Sequential(nn.ReLU(), nn.Linear(5, 3)), backend=refuse)
        self.step = torch.compile(self._step, backend=refuse)

    def _step(self, x: Tensor) -> Tensor:
        return x.sin() * x

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.b(self.a(x)))


def refuse(*_):
    raise AssertionError("nothing is compiled in order to be traced")


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_what_torch_compile_wraps_is_traced_as_it_was_written(front_end):
    model = Compiled()
    program = trace(model, torch.randn(2, 4), front_end=front_end)
    assert program.front_end == front_end
    assert list(program.module.state_dict()) == ["a.weight", "a.bias", "b._orig_mod.1.weight", "b._orig_mod.1.bias"]


class Vectorised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = nn.Parameter(torch.randn(3, 5, 4)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        every = torch.vmap(lambda weight: (x @ weight.mT).relu())(self.experts).sum(0)
        return torch.vmap(lambda sample: self.head(sample).tanh())(every)


def test_vmap_is_written_out_and_leaves_nothing_behind():
    model = Vectorised()
    program = trace(model, torch.randn(2, 4))
    assert_faithful(model, program.module, (torch.randn(3, 4),))
    assert torch.randn(2).shape == (2,)  # which torch refuses inside vmap


class Kept(dict):
    """A mapping of one's own, whose other fields are no items."""


@dataclasses.dataclass
class Answer(Kept):
    """A record that is a mapping too, of what was given."""

    loss: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None})


def test_a_record_that_is_a_mapping_comes_out_by_its_items():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Answer:
            return Answer(logits=self.a(x))

    model = Named()
    program = trace(model, torch.randn(2, 4), front_end="fx")
    assert list(program.module(torch.randn(2, 4))) == ["logits"]
    assert_faithful(model, program.module, (torch.randn(3, 4),))
