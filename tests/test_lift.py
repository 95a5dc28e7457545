import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxfuse.errors import TraceError
from fxfuse.models_zoo import ZOO, randomise
from fxfuse.passes.checking import difference, plain
from fxfuse.passes.trace import trace

ALIKE = [
    "otfusion_mlp", "digits_net", "functional_conv", "shared_layers", "mobile_se", "wavenet", "lstm", "gru"
]  # fmt: skip
ALIKE_TOO = [
    "mlp", "vgg11_bn", "resnet20", "resnet18", "functional_mlp", "unet", "dense", "two_inputs", "two_outputs",
    "mixer", "convnext", "gated_mlp"
]  # fmt: skip


def shape_of(module):
    """Operations with the layers that they call, in order."""
    return [
        (n.op, n.target if n.op == "call_module" else getattr(n.target, "__name__", n.target))
        for n in module.graph.nodes
        if n.op not in {"placeholder", "output", "get_attr"}
    ]


@pytest.mark.parametrize("name", [*ALIKE, *(pytest.param(name, marks=pytest.mark.matrix) for name in ALIKE_TOO)])
def test_both_front_ends_give_the_same_graph(name):
    entry = ZOO[name]
    model = randomise(entry.factory(), seed=1)
    lifted = trace(model, entry.example(), front_end="export").module
    traced = trace(model, entry.example(), front_end="fx").module
    assert sorted(map(str, shape_of(lifted))) == sorted(map(str, shape_of(traced)))


@pytest.mark.matrix
@pytest.mark.parametrize("name", sorted(ZOO))
def test_lifted_programs_hold_few_aten_operators_and_no_guards(name):
    entry = ZOO[name]
    module = trace(randomise(entry.factory(), seed=1), entry.example(), front_end="export").module
    aten = [n for n in module.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert len(aten) <= 0.1 * len(module.graph.nodes) + 2
    assert not [n for n in module.graph.nodes if "assert" in str(n.target) or "guard" in str(n.target)]


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.frozen(x))
            x += 1
        return self.last(x)


def test_regions_without_gradients_are_inlined():
    model = randomise(NoGrad(), seed=1).eval()
    module = trace(model, torch.randn(2, 4), front_end="export").module
    x = torch.randn(5, 4)
    assert torch.allclose(module(x), model(x))
    assert [n.target for n in module.graph.nodes if n.op == "call_module"] == ["frozen", "last"]


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 2.0, extra: Tensor | None = None) -> dict[str, object]:
        y = self.layer(x) * scale
        return {"y": y, "parts": (y[:, :2], [y[:, 2:]]), "nothing": extra}


def test_the_structure_of_the_output_is_restored():
    model = randomise(Structured(), seed=1).eval()
    for front_end in ("fx", "export"):
        program = trace(model, {"x": torch.randn(2, 4), "scale": 3.0}, front_end=front_end)
        x = torch.randn(5, 4)
        assert difference(plain(model(x, scale=3.0)), program.module(x))[0] < 1e-6
        assert [n.name for n in program.module.graph.nodes if n.op == "placeholder"] == ["x"]


def test_scopes_and_source_lines_are_the_users():
    module = trace(randomise(NoGrad(), seed=1), torch.randn(2, 4), front_end="export").module
    nodes = {n.name: n for n in module.graph.nodes if n.op not in {"placeholder", "output"}}
    assert all(n.meta["where"].startswith("test_lift.py:") for n in nodes.values() if n.op != "get_attr")
    assert nodes["frozen"].meta["scope"] == "frozen"


def test_a_baked_in_batch_size_is_refused():
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([row * 2 for row in x])

    with pytest.raises(TraceError, match="one batch size"):
        trace(Loop(), torch.randn(2, 3), front_end="export")


def test_devices_are_not_baked_in():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            start = torch.zeros(x.shape[0], 1, 4, device=x.device)
            return torch.cat([start, x + self.embed(torch.arange(x.shape[1], device=x.device))], 1)

    module = trace(randomise(Positions(), seed=1), torch.randn(2, 5, 4), front_end="export").module
    assert not [n for n in module.graph.nodes if isinstance(n.kwargs.get("device"), torch.device)]
    assert module.to("meta")(torch.empty(3, 5, 4, device="meta")).shape == (3, 6, 4)


transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 24}


def hugging_face(name):
    ids = torch.randint(3, 50, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    if name == "bert":
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))
        return model, {"input_ids": ids, "attention_mask": mask}
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=24)
        return transformers.GPT2LMHeadModel(config), {"input_ids": ids}
    if name == "t5":
        config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
        return transformers.T5EncoderModel(config), {"input_ids": ids}
    config = transformers.ViTConfig(image_size=16, patch_size=8, **SMALL)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


@pytest.mark.parametrize("front_end", ["auto", "export"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit"])
def test_hugging_face(name, front_end):
    model, example = hugging_face(name)
    model = randomise(model, seed=1).eval()
    module = trace(model, example, front_end=front_end).module
    assert list(module.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        want = {k: v for k, v in plain(model(**example)).items() if v is not None}
        have = {k: v for k, v in plain(module(*example.values())).items() if v is not None}
        assert difference(want, have)[0] < 1e-5
    module.train()
    next(v for v in module(*example.values()).values() if isinstance(v, Tensor)).sum().backward()
