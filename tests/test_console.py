import io
import json
from pathlib import Path

import analyses
from rich.console import Console

from fxfuse.console import level_report_table, level_sentences, onnx_sentence, run_json, score_table, show_run
from fxfuse.export import OnnxReport
from fxfuse.run import RunOutcome
from fxfuse.types import LevelReport, Score

ONNX = OnnxReport(Path("m.onnx"), 20, 16, ("x",), ("y",), (1, 3, 17), 1.5e-6, 4e-7)


def printed(thing: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_level_in_a_sentence() -> None:
    full = LevelReport("block", "stream", 8, (8, 6), 0.1, 0.4, 0.25, "gradient", note="norm statistics recomputed")
    bare = LevelReport("head", None, None, ())
    assert level_sentences((full, bare)) == [
        "block: 8 + 6 neurons grouped into 8; the groups keep 90.0 % of their energy; fitting took the error "
        "from 0.4 to 0.25; norm statistics recomputed",
        "head: nothing to group or fit",
    ]


def test_columns_that_say_nothing_are_left_out() -> None:
    text = printed(level_report_table((LevelReport("head", None, None, (), None, 0.5, 0.2, "linear"),)))
    assert "before" in text
    assert "grouping" not in text.split("\n", 1)[1]
    many = tuple(LevelReport(f"level{i}", "s", 4, (4, 4)) for i in range(70))
    assert "10 more levels in report.md" in printed(level_report_table(many))


def test_a_run_is_shown_and_told_as_json(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_text("")
    outcome = RunOutcome(tmp_path, analyses.result(), ONNX)
    console = Console(file=io.StringIO(), width=160)
    show_run(console, outcome)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("ensemble (probabilities)", "95.71", "stem", "(model.pt2)", onnx_sentence(ONNX)):
        assert words in text
    values = json.loads(json.dumps(run_json(outcome)))
    assert [row["name"] for row in values["scores"]][-1] == "fused"
    assert values["onnx"]["max_abs"] == 1.5e-6


def test_one_network_has_only_the_figures_that_were_measured() -> None:
    text = printed(score_table(Score("fused", 0.5, None, None, 1234), "on x.npz"))
    assert "50.00" in text
    assert "1,234" in text
    assert "loss" not in text
    assert "at most 1.5e-06" in onnx_sentence(ONNX)
