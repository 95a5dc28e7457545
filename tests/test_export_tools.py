import math
import os
from pathlib import Path

import pytest
import torch

from fxfuse.errors import OutputError
from fxfuse.export.tools import Sink, at_least_two, batched, differences, first_line, random_inputs, staged

GENERATOR = torch.Generator().manual_seed(0)


def test_random_inputs_keep_kind_range_and_unbatched_inputs():
    example = (torch.rand(2, 3), torch.tensor([[1, 5], [5, 1]]), torch.arange(4.0), torch.ones(2, 2, dtype=torch.bool))
    floats, tokens, fixed, mask = random_inputs(example, 17, GENERATOR)
    assert (floats.shape, tokens.shape, mask.shape) == ((17, 3), (17, 2), (17, 2))
    assert floats.min() >= 0
    assert floats.max() <= 1
    assert set(tokens.flatten().tolist()) == {1, 5}
    assert torch.equal(fixed, example[2])
    assert mask.all()


def test_constant_floats_are_replaced_by_noise():
    (drawn,) = random_inputs((torch.zeros(2, 500),), 3, GENERATOR)
    assert drawn.std() == pytest.approx(1.0, abs=0.1)


def test_one_sample_becomes_two():
    x, ids, fixed = at_least_two((torch.ones(1, 3), torch.ones(1), torch.ones(4)))
    assert (x.shape, ids.shape, fixed.shape) == ((2, 3), (2,), (4,))
    assert batched((torch.tensor(1.0), torch.ones(2, 1), torch.ones(3))) == (False, True, False)


def test_differences_are_relative_to_the_largest_entry_of_the_same_output():
    y = [torch.tensor([10.0, -20.0]), torch.tensor([0.1])]
    z = [torch.tensor([10.0, -19.0]), torch.tensor([0.11])]
    assert differences(y, z) == (pytest.approx(1.0), pytest.approx(0.1))
    assert differences(y, y) == (0.0, 0.0)


def test_nan_and_infinity_only_match_themselves():
    y = [torch.tensor([math.nan, math.inf, -math.inf, 1.0])]
    assert differences(y, [y[0].clone()]) == (0.0, 0.0)
    for other in ([math.nan, math.inf, -math.inf, math.nan], [0.0, math.inf, -math.inf, 1.0], [math.nan] + 3 * [1.0]):
        assert differences(y, [torch.tensor(other)])[1] == math.inf


def test_other_shapes_or_counts_are_infinitely_far():
    assert differences([torch.ones(2)], [torch.ones(1)]) == (math.inf, math.inf)
    assert differences([torch.ones(2)], []) == (math.inf, math.inf)
    assert differences([torch.ones(0)], [torch.ones(0)]) == (0.0, 0.0)


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    with staged(tmp_path / "m.onnx") as path:
        path.write_text("model")
        path.with_name("m.onnx.data").write_text("weights")
        assert not (tmp_path / "m.onnx").exists()
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "n.onnx") as path:
        1 // (path.write_text("half") - len("half"))
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    with pytest.raises(OutputError, match="cannot write"), staged(tmp_path / "none" / "m.onnx"):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no file of the system that is always full")
def test_a_full_disk_is_told_when_the_file_is_closed(tmp_path):
    sink = Sink(Path("/dev/full"))
    assert [sink.write(memoryview(bytes(1 << 20))) for _ in range(2)] == [1 << 20] * 2
    sink.seek(0)
    with pytest.raises(OutputError, match=r"cannot write .*model\.pt2: No space left"), staged(tmp_path / "model.pt2"):
        sink.close()
    assert not list(tmp_path.iterdir())
    with Sink(tmp_path / "whole") as sink:
        sink.write(b"abd")
        assert sink.seek(2) == 2
        sink.write(b"c")
    sink.close()
    assert (tmp_path / "whole").read_bytes() == b"abc"


def test_the_first_line_has_no_colours_and_never_is_empty():
    assert first_line(ValueError("\n\n \x1b[96mbad\x1b[0m thing\nmore")) == "bad thing"
    assert first_line(ValueError()) == "ValueError"
