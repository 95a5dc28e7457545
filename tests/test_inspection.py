"""A network by itself: inputs are stated, taken from data, or guessed."""

from pathlib import Path

import numpy as np
import pytest

from fxfuse.errors import DataError, RecipeError
from fxfuse.inspection import inspect
from fxfuse.recipe import DataSpec, ParentSpec

CODE = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, tokens, mask):
        return self.head(self.inner(self.embed(tokens) * mask[..., None]).relu())
"""


@pytest.fixture
def tagger(tmp_path: Path) -> ParentSpec:
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    tokens = np.random.default_rng(0).integers(0, 20, (9, 5))
    np.savez(tmp_path / "data.npz", mask=np.ones((9, 5), np.float32), tokens=tokens, labels=tokens % 3)
    np.savez(tmp_path / "empty.npz", mask=np.ones((0, 5), np.float32), tokens=tokens[:0])
    return ParentSpec(source=f"{tmp_path / 'net.py'}:Tagger")


def test_inputs_from_data_have_their_names_and_sizes(tagger: ParentSpec, tmp_path: Path) -> None:
    spec = DataSpec(source=str(tmp_path / "data.npz"), inputs=("tokens", "mask"))
    found = inspect(tagger, data=spec)
    assert found.guessed is None
    assert found.analysis.program.inputs == ("tokens", "mask")
    assert [tuple(x.shape[1:]) for x in found.analysis.program.example] == [(5,), (5,)]
    assert [level.name for level in found.analysis.partition.levels]


def test_tokens_stated_as_floats_are_told_with_what_to_say(tagger: ParentSpec) -> None:
    words = r"^Tagger takes whole numbers.*say --input tokens=2,5:int64 --input mask=2,5:float32$"
    with pytest.raises(DataError, match=words):
        inspect(tagger, ["tokens=2,5", "mask=2,5:float32"])
    with pytest.raises(DataError, match="rejects inputs of shape"):
        inspect(tagger, ["tokens=2,5:int64", "mask=2,6"])


def test_mistakes_are_explained(tagger: ParentSpec, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="by --input or by --data, not by both"):
        inspect(tagger, ["2,5"], str(tmp_path / "data.npz"))
    with pytest.raises(DataError, match=r"no usual input fits Tagger.forward\(tokens, mask\); say what it takes"):
        inspect(tagger)
    with pytest.raises(DataError, match="are empty"):
        inspect(tagger, data=str(tmp_path / "empty.npz"))
