"""Packed sequences: the graph is a recurrence over padded ones, exact for all lengths; spaces obey the law."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fxfuse
from fxfuse.data import samples_from
from fxfuse.errors import TraceError
from fxfuse.export import to_onnx
from fxfuse.models_zoo import randomise
from fxfuse.passes.axes import axes
from fxfuse.passes.axis_law import permutation_error
from fxfuse.passes.trace import trace


class Packed(nn.Module):
    """A classifier of sequences as they are usually written; ``answer`` is what it reads."""

    def __init__(self, kind=nn.LSTM, answer="outputs", batch_first=True, total=None, **options) -> None:
        super().__init__()
        self.rnn = kind(4, 6, batch_first=batch_first, **options)
        width = (options.get("proj_size") or 6) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3)
        self.answer, self.batch_first, self.total = answer, batch_first, total

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=self.batch_first, enforce_sorted=False)
        packed, state = self.rnn(packed)
        if self.answer == "state":
            hidden = state[0] if isinstance(state, tuple) else state
            last = [hidden[-2], hidden[-1]] if self.rnn.bidirectional else [hidden[-1]]
            return self.head(torch.cat(last, 1))
        if self.answer == "cell":
            return self.head(state[1][-1])
        y, found = pad_packed_sequence(packed, batch_first=self.batch_first, total_length=self.total)
        steps = 1 if self.batch_first else 0
        return self.head(torch.relu(y).sum(steps) / found.to(y)[:, None])


X, LENGTHS = torch.randn(4, 7, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 7, 1, 5])
CASES = {
    "lstm": {},
    "gru, both directions": {"kind": nn.GRU, "bidirectional": True},
    "tanh, time first, two layers": {"kind": nn.RNN, "batch_first": False, "num_layers": 2},
    "lstm, state of two layers and directions": {"answer": "state", "num_layers": 2, "bidirectional": True},
    "gru, state, no biases": {"kind": nn.GRU, "answer": "state", "bias": False},
    "projected, time first, both directions": {"proj_size": 5, "batch_first": False, "bidirectional": True},
    "padded further": {"total": 9},
}


def law(network: nn.Module, front_end: str) -> None:
    network = randomise(network, seed=1).eval()
    program = trace(network, (X, LENGTHS), front_end=front_end)
    for lengths in ([7, 2, 3, 7], [3, 1, 2, 2], [1, 1, 1, 1]):
        given = torch.tensor(lengths)
        torch.testing.assert_close(program.module(X, given), network(X, given))
    found = axes(program)
    assert not found.opaque
    assert 6 in {space.size for space in found.spaces if space.outer is None}
    assert permutation_error(program, found) < 1e-12
    assert list(program.module.state_dict()) == list(network.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_packed_recurrences_are_followed(name):
    law(Packed(**CASES[name]), "fx")


@pytest.mark.parametrize("name", ["gru, both directions", "lstm, state of two layers and directions"])
def test_packed_recurrences_are_followed_by_the_other_front_end(name):
    law(Packed(**CASES[name]), "export")


def test_packed_recurrences_are_written_as_onnx(tmp_path):
    program = trace(randomise(Packed(), seed=1), {"lengths": LENGTHS, "x": X})
    report = to_onnx(program.module, program.example, tmp_path / "m.onnx")
    assert report.inputs == ("x", "lengths")
    assert report.max_rel < 1e-5


def test_functions_are_as_before_afterwards():
    before = (nn.LSTM.forward, torch._VF._pack_padded_sequence)
    trace(Packed(), (X, LENGTHS))
    assert (nn.LSTM.forward, torch._VF._pack_padded_sequence) == before
    assert "_pack_padded_sequence" not in vars(torch._VF)


def test_what_the_graph_does_otherwise_is_noted():
    notes = " ".join(trace(Packed(), (X, LENGTHS)).notes)
    assert "keep the input's length" in notes
    assert "keep the input's length" not in " ".join(trace(Packed(total=7), (X, LENGTHS)).notes)


def test_a_mean_over_the_longest_is_not_followed():
    class Mean(Packed):
        def forward(self, x, lengths):
            packed, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            return self.head(pad_packed_sequence(packed, batch_first=True)[0].mean(1))

    with pytest.raises(TraceError, match=r"(?s)differs from the network.*--leaf"):
        trace(Mean(), (X, torch.tensor([4, 2, 1, 5])), front_end="fx")


class Around(nn.Module):
    """A part that reads the cell state, which cannot be followed, inside a network that can."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.reader = nn.Linear(4, 4), Packed(answer="cell")

    def forward(self, x, lengths):
        return self.reader(torch.relu(self.before(x)), lengths)


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_what_has_no_padded_form_names_the_line_and_the_way_out(front_end):
    with pytest.raises(
        TraceError, match=r"final cell state .* as a leaf .*test_packing\.py:\d+ `return self\.head\(st"
    ):
        trace(Packed(answer="cell"), (X, LENGTHS), front_end=front_end)


def test_a_leaf_packs_as_ever():
    network = randomise(Around(), seed=1).eval()
    program = trace(network, (X, LENGTHS))
    assert any("reader is kept as one opaque node" in note for note in program.notes)
    given = torch.tensor([7, 2, 3, 7])
    torch.testing.assert_close(program.module(X, given), network(X, given))


def test_fusing_gives_the_parent_back_and_other_widths_work():
    network = randomise(Packed(kind=nn.GRU, bidirectional=True), seed=1).eval()
    data = (torch.randn(16, 7, 4), torch.randint(1, 8, (16,)))
    samples = samples_from(data, inputs=(0, 1), labels=False)  # lengths look like labels
    same = fxfuse.fuse([network, network], calibration=samples, method="rebasin", compare=False)
    torch.testing.assert_close(same.module(*data), network(*data), rtol=1e-4, atol=1e-5)
    half = fxfuse.fuse([network, network], calibration=samples, method="hungarian-linear", target=0.5, compare=False)
    assert half.module.state_dict()["rnn.weight_hh_l0"].shape == (9, 3)
    assert half.module(*data).isfinite().all()
