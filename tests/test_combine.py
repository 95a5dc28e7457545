"""Combiners say what the formulas say."""

import torch

from fxfuse.label_space import label_space
from fxfuse.passes.combine import MeanOutput, MeanProbabilities, UnionLogits, UnionProbabilities
from fxfuse.passes.label_ensemble import Completion, LabelEnsemble

GENERATOR = torch.Generator().manual_seed(0)
A, B = (torch.randn(6, 5, generator=GENERATOR) for _ in range(2))


def test_means():
    assert torch.allclose(MeanOutput((0.25, 0.75))(A, B), 0.25 * A + 0.75 * B)
    expected = (0.25 * A.softmax(1) + 0.75 * B.softmax(1)).log()
    assert torch.allclose(MeanProbabilities((0.25, 0.75), 1)(A, B), expected, atol=1e-6)
    image = MeanProbabilities((0.25, 0.75), 1)(A.T[None, :, :, None], B.T[None, :, :, None])
    assert torch.allclose(image[0, :, :, 0].T, expected, atol=1e-6)
    assert torch.equal(MeanProbabilities((1.0, 0.0), 1)(A, B), A.log_softmax(1))


def test_unions_are_those_of_the_label_ensemble():
    labels = label_space([[0, 1, 2], [2, 3, 4, 5, 6]], ("a", "b"), (0.5, 0.5))
    own = LabelEnsemble(labels, (0.5, 0.5), (3.0, 2.0))
    values = [A[:, :3], B]
    for axis, given in ((1, values), (1, [v.T[None, :, :, None] for v in values])):
        logs = UnionProbabilities(Completion(own).float(), axis, False)(*given)
        assert torch.allclose(logs.exp(), own.probabilities(given), atol=1e-5)
        assert torch.allclose(UnionLogits(Completion(own).float(), axis)(*given), own.logits(given), atol=1e-6)
    chances = [v.softmax(1) for v in values]
    assert torch.allclose(
        UnionProbabilities(Completion(own).float(), 1, True)(*chances), own.probabilities(values), atol=1e-5
    )
