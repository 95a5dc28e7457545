import json
from dataclasses import replace

import pytest
from analyses import result
from rich.console import Console

from fxfuse.errors import OutputError
from fxfuse.report import levels_json, report_text, result_table, write_report
from fxfuse.types import LevelReport, Score

UNLABELLED = (Score("parent 0", None, None, 0.9), Score("fused", None, None, 0.97), Score("ensemble", None, None, 1.0))


def shown(table) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_report_stands_with_its_pictures(tmp_path):
    write_report(result(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "accuracy.svg", "levels.json", "levels.svg", "partition.svg", "report.md",
    ]  # fmt: skip
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "reaches **95.71 %** accuracy; the best parent 88.69 %, the ensemble 96.62 %, plain weight averaging" in text
    assert "Fitting lowered the error of 2 of 2 measured levels" in text
    assert "0.31, at `block`" in text
    for name in ("accuracy.svg", "levels.svg", "partition.svg", "levels.json"):
        assert f"({name})" in text
    assert "| torch.roll | roll_1 | swin.py:142 | no rule |" in text
    assert "- used 400 images" in text
    assert "| fit | 2.00 |" in text


def test_levels_json_joins_the_report_with_the_partition():
    data = levels_json(result())
    assert (data["format"], data["version"]) == ("fxfuse.levels", 1)
    assert [row["level"] for row in data["levels"]] == ["stem", "block", "head"]
    assert data["levels"][1]["after"] == 0.31
    assert data["levels"][1]["partition"]["boundary"] == "add"
    json.dumps(data, allow_nan=False)


def test_levels_without_a_report_are_listed_too():
    data = levels_json(result(levels=(LevelReport("elsewhere", None, None, ()),)))
    assert [row["level"] for row in data["levels"]] == ["elsewhere", "stem", "block", "head"]
    assert data["levels"][0]["partition"] is None


def test_without_labels_nothing_is_claimed_about_accuracy():
    text = report_text(result(scores=UNLABELLED), scored=True, fitted=True)
    assert "97.00 %** agreement with the ensemble; the best parent 90.00 %." in text
    assert "Not measured: plain weight averaging." in text
    assert "not how often the answer is right" in text
    assert "accuracy of" not in text
    table = shown(result_table(result(scores=UNLABELLED)))
    assert "without labels" in table
    assert "accuracy" not in table


def test_a_comparison_on_the_calibration_data_is_not_called_held_out():
    seen = replace(result(), settings={"evaluation": None})
    text = report_text(seen, scored=True, fitted=True)
    assert "On the calibration data, which fusion has seen, the fused network reaches **95.71 %** accuracy" in text
    assert "On held-out data" not in text
    assert "calibration data, which fusion has seen" in shown(result_table(seen))
    apart = replace(result(), settings={"evaluation": "360 samples: test.npz"})
    assert "On held-out data the fused network" in report_text(apart, scored=True, fitted=True)


def test_outputs_without_classes_are_judged_by_their_distance():
    scores = (
        Score("parent 0", None, None, None, 100, error=0.5),
        Score("ensemble (mean output)", None, None, None, 200, error=0.0),
        Score("fused", None, None, None, 100, error=0.025),
    )
    text = report_text(result(scores=scores), scored=False, fitted=True)
    assert "relative to its energy: the fused network 0.025, the nearest parent 0.5. 0 is that output." in text
    assert "| network | error | parameters |" in text
    table = shown(result_table(result(scores=scores)))
    assert "0.025" in table
    assert "accuracy" not in table


def test_networks_with_targets_are_judged_by_their_squared_error():
    losses = {"parent 0": 0.5, "ensemble (mean output)": 0.25, "average": 2.0, "fused": 0.3}
    scores = tuple(Score(name, None, loss, None, 100, error=0.1) for name, loss in losses.items())
    text = report_text(result(scores=scores), scored=False, fitted=True)
    assert (
        "squared error to the targets: the fused network 0.3, the best parent 0.5, plain weight averaging 2, " in text
    )
    assert "the ensemble 0.25." in text
    assert "the loss is the mean squared error" in shown(result_table(result(scores=scores)))


def test_without_scores_the_report_says_so(tmp_path):
    write_report(result(scores=(), levels=()), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["levels.json", "partition.svg", "report.md"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "nothing is known about how well the fused network does" in text
    assert "## Networks" not in text
    assert "## Levels" not in text
    assert "nothing was measured" in shown(result_table(result(scores=())))


@pytest.mark.parametrize(
    ("ensemble", "fused", "said"),
    [(0.6, 0.5, "has nothing to gain"), (0.9, 0.5, "although the ensemble is not"), (0.9, 0.8, "")],
)
def test_a_network_below_its_best_parent_comes_with_advice(ensemble, fused, said):
    figures = {"a": 0.7, "b": 0.4, "ensemble (probabilities)": ensemble, "fused": fused}
    scores = tuple(Score(name, value, 1.0, 0.9, 10) for name, value in figures.items())
    text = report_text(result(scores=scores), scored=False, fitted=False)
    assert said in text
    assert ("nothing to gain" in text or "wider target, more" in text) == bool(said)


def test_one_parent_is_named_as_such():
    assert "nothing to merge" in report_text(result(parents=1), scored=True, fitted=True)


def test_many_levels_are_folded_away():
    levels = tuple(LevelReport(f"level{i}", "s", 8, (8, 8), 0.1, 0.2, 0.1) for i in range(200))
    assert "<details><summary>200 levels</summary>" in report_text(result(levels=levels), scored=True, fitted=True)


def test_the_terminal_table_shows_every_network():
    table = shown(result_table(result()))
    for word in ("parent 0", "ensemble (probabilities)", "average", "fused", "95.71", "0.1500", "1,000"):
        assert word in table


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_report(result(), tmp_path / "none")
