import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_parents import CPU, zoo_parents

from fxfuse.errors import DataError
from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.verify import compare, score
from fxfuse.samples import TensorSamples


class Fixed(nn.Module):
    """Says what it is told: the input is the row to read off a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: Tensor) -> Any:
        return self.table[rows]


def rows(n: int, labels: Tensor | None = None) -> TensorSamples:
    return TensorSamples((torch.arange(n),), labels)


def test_classification_figures() -> None:
    logits, labels = torch.randn(50, 5), torch.randint(5, (50,))
    found = score("net", Fixed(logits), rows(50, labels), device=CPU, batch_size=7)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert (found.agreement, found.error, found.parameters) == (None, None, 0)


@pytest.mark.parametrize("shape", [(12, 4, 3, 3), (12, 6, 4), (12, 4, 6)])
def test_dense_and_token_level_outputs(shape: tuple[int, ...]) -> None:
    axis = 1 if len(shape) == 4 or shape[1] == 4 else 2
    logits = torch.randn(shape)
    labels = torch.randint(4, shape[:axis] + shape[axis + 1 :])
    labels[0] = -100
    found = score("net", Fixed(logits), rows(12, labels), device=CPU, batch_size=5)
    flat, known = logits.movedim(axis, -1).reshape(-1, 4), labels.reshape(-1) != -100
    expected = (flat.argmax(1) == labels.reshape(-1))[known].float().mean()
    assert found.accuracy == pytest.approx(float(expected))
    assert found.loss == pytest.approx(float(F.cross_entropy(flat, labels.reshape(-1))), rel=1e-5)


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_one_logit_is_a_binary_classifier(shape: tuple[int, ...]) -> None:
    logit, labels = torch.randn(shape), torch.randint(2, (20,))
    found = score("net", Fixed(logit), rows(20, labels), device=CPU)
    assert found.accuracy == pytest.approx(float(((logit.view(-1) > 0) == labels).float().mean()))
    expected = F.binary_cross_entropy_with_logits(logit.view(-1), labels.float())
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


def test_probabilities_and_log_probabilities_are_taken_as_such() -> None:
    logits, labels = torch.randn(30, 4), torch.randint(4, (30,))
    losses = [
        score("net", Fixed(output), rows(30, labels), device=CPU).loss
        for output in (logits, logits.softmax(1), logits.log_softmax(1))
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_regression_has_a_mean_squared_error_and_no_accuracy() -> None:
    output, target = torch.randn(10, 3), torch.randn(10, 3)
    found = score("net", Fixed(output), rows(10, target), device=CPU, reference=Fixed(2 * output))
    assert found.accuracy is None
    assert found.agreement is None
    assert found.loss == pytest.approx(float(F.mse_loss(output, target)), rel=1e-5)
    assert found.error == pytest.approx(0.25, rel=1e-5)


def test_the_table_of_zoo_networks() -> None:
    parents = [parent.program for parent in zoo_parents("mlp", (None, None, None))]
    (x,) = ZOO["mlp"].example(40)
    labels = torch.randint(7, (40,), generator=torch.Generator().manual_seed(0))
    weights = (1.0, 2.0, 5.0)
    fused, average = parents[0].module, parents[1].module
    table = compare(
        parents, fused, TensorSamples((x,), labels), weights=weights, device=CPU, average=average, batch_size=16
    )
    names = [row.name for row in table]
    ensembles = ["ensemble (probabilities)", "ensemble (logits)"]
    assert names == ["parent 0", "parent 1", "parent 2", *ensembles, "average", "fused"]
    with torch.no_grad():
        z = torch.stack([program.module(x) for program in parents])
    w = torch.tensor(weights).view(3, 1, 1) / 8
    expected = [*z, (z.softmax(2) * w).sum(0).log(), (z * w).sum(0), z[1], z[0]]
    vote = expected[3].argmax(1)
    for row, logits in zip(table, expected, strict=True):
        assert row.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
        assert row.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
        assert row.agreement == pytest.approx(float((logits.argmax(1) == vote).float().mean()))
    assert table[3].agreement == 1.0
    own = sum(p.numel() for p in fused.parameters())
    assert [row.parameters for row in table] == [own, own, own, 3 * own, 3 * own, own, own]


def test_without_labels_there_is_agreement_and_error() -> None:
    z = [torch.randn(20, 4), torch.randn(20, 4)]
    table = compare_fixed(z, z[0], None)
    mean = (z[0] + z[1]) / 2
    assert all(row.accuracy is None and row.loss is None for row in table)
    assert table[-1].error == pytest.approx(float((z[0] - mean).square().sum() / mean.square().sum()), rel=1e-5)
    assert {row.name: row.error for row in table}["ensemble (logits)"] == 0.0
    assert table[-1].agreement is not None


def test_outputs_without_classes_have_an_error_alone() -> None:
    z = [torch.randn(20, 1), torch.randn(20, 1)]
    table = compare_fixed(z, (z[0] + z[1]) / 2, None)
    assert [row.name for row in table] == ["a", "b", "ensemble (mean output)", "fused"]
    assert table[-1].error == pytest.approx(0.0, abs=1e-12)
    assert table[-1].agreement is None


def compare_fixed(parents: list[Tensor], fused: Tensor, labels: Tensor | None) -> Any:
    programs: Any = [Named(name, Fixed(z)) for name, z in zip("ab", parents, strict=True)]
    return compare(programs, Fixed(fused), rows(len(fused), labels), weights=(1, 1), device=CPU, batch_size=6)


class Named:
    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module


@pytest.mark.parametrize("name", ["two_outputs", "dict_output", "unet", "language_model", "lstm"])
def test_other_outputs_give_a_table_too(name: str) -> None:
    parents = [parent.program for parent in zoo_parents(name)]
    samples = TensorSamples(ZOO[name].example(5))
    table = compare(parents, parents[0].module, samples, weights=(0.5, 0.5), device=CPU)
    assert all(row.error is None or math.isfinite(row.error) for row in table)
    assert table[-1].agreement == table[0].agreement
    assert table[-1].error == table[0].error


def test_networks_keep_their_mode_and_functions_can_be_scored() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    module[1].eval()
    samples = TensorSamples((torch.randn(9, 3),), torch.randint(4, (9,)))
    first = score("net", module, samples, device=CPU)
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
    second = score("function", module[0].forward, samples, device=CPU)
    assert (first.loss, first.parameters, second.parameters) == (second.loss, 16, None)


def test_labels_that_cannot_be_right_are_told() -> None:
    net = Fixed(torch.randn(4, 3))
    with pytest.raises(DataError, match=r"must lie in 0\.\.2.*Got 3"):
        score("net", net, rows(4, torch.tensor([0, 1, 3, 2])), device=CPU)
    with pytest.raises(DataError, match=r"Got -1"):
        score("net", net, rows(4, torch.tensor([0, -1, 1, 2])), device=CPU)
    with pytest.raises(DataError, match=r"labels of shape \[4, 2\] do not fit the output of net, \[4, 3\]"):
        score("net", net, rows(4, torch.zeros(4, 2, dtype=torch.long)), device=CPU)
    with pytest.raises(DataError, match="targets of shape"):
        score("net", net, rows(4, torch.zeros(4, 2)), device=CPU)
    with pytest.raises(DataError, match="nothing to compare on"):
        score("net", net, TensorSamples((torch.zeros(0),)), device=CPU)
