"""A comparison of methods: its table from made-up runs, and a small one from the command line, resumed."""

import csv
import json

import pytest
import yaml
from run_cases import entries, workspace

from fxfuse.cli import main
from fxfuse.comparison import cell
from fxfuse.comparison.cell import Run
from fxfuse.comparison.driver import check_options, one_run
from fxfuse.comparison.table import spread, summary, write
from fxfuse.errors import MethodError
from fxfuse.finetuning import BEFORE, CONTROL
from fxfuse.recipe import Recipe


def row(accuracy, **more):
    return {"accuracy": accuracy, "loss": 0.5, "agreement": 0.9, "error": None, "parameters": 10, **more}


def run(method, seed, accuracy, tuned=None):
    rows = {"a": row(0.5), "ensemble (probabilities)": row(0.9), "average": row(0.2)}
    if tuned is None:
        rows["fused"] = row(accuracy)
    else:
        rows |= {BEFORE: row(accuracy), CONTROL: row(0.55), "fused": row(tuned)}
    return Run(method, seed, rows, "", 3.0 + seed, 4.0, 100.0)


def test_means_and_sample_deviations_over_seeds():
    head, rows = summary([run("ot", 0, 0.7), run("ot", 1, 0.8), run("zip", 0, 0.6), run("zip", 1, 0.6)])
    assert head == ("network", "one-shot accuracy, %", "CPU s", "wall s", "peak MiB")
    assert rows[0] == ("a", "50.00", "-", "-", "-")
    assert rows[-2] == ("`ot`", "75.00 ±7.07", "4", "4", "100")
    assert rows[-1][1] == "60.00"


def test_fine_tuning_has_a_column_and_its_control_stands_in_it():
    head, rows = summary([run("ot", 0, 0.7, 0.8)])
    assert head[1:3] == ("one-shot accuracy, %", "fine-tuned")
    table = {r[0]: r[1:3] for r in rows}
    assert table[CONTROL] == ("-", "55.00")
    assert table["`ot`"] == ("70.00", "80.00")
    assert table["a"] == ("50.00", "-")


def test_a_failure_is_a_row_and_a_lost_seed_is_said():
    _, rows = summary([run("ot", 0, 0.7), Run("ot", 1, {}, "no", 1.0, 1.0, 1.0), Run("kl", 0, {}, "needs a")])
    table = {r[0]: r[1] for r in rows}
    assert table["`kl`"] == "failed: needs a"
    assert table["`ot`"] == "70.00 (1 of 2 seeds failed)"


def test_without_labels_the_agreement_is_shown():
    bare = {name: {**value, "accuracy": None} for name, value in run("ot", 0, 0.7).rows.items()}
    assert summary([Run("ot", 0, bare)])[0][1] == "one-shot agrees with the ensemble, %"


def test_a_base_model_and_a_router_stay_with_the_methods_that_use_them():
    recipe = Recipe(parents=["a.py:f", "b.py:f"], base="c.py:f", router="gate", onnx=True)
    ties, select, plain = (one_run(recipe, method, 3) for method in ("ties", "select", "average"))
    assert (ties.base, ties.router, ties.method, ties.seed, ties.onnx) == (recipe.base, None, "ties", 3, False)
    assert (select.base, select.router) == (None, "gate")
    assert (plain.base, plain.router, plain.parents) == (None, None, recipe.parents)


@pytest.mark.parametrize(("values", "text"), [([], "-"), ([0.5], "0.5000"), ([2.0, 4.0], "3.00 ±1.41")])
def test_spread(values, text):
    assert spread(values) == text


def test_files(tmp_path):
    written = write([run("ot", 0, 0.7, 0.8), Run("kl", 0, {}, "needs a", 1.0, 2.0, 3.0)], tmp_path, "title")
    assert [path.name for path in written] == ["compare.md", "compare.csv", "compare.png"]
    assert all(path.stat().st_size for path in written)
    table = list(csv.DictReader(written[1].read_text().splitlines()))
    assert [r["network"] for r in table if r["method"] == "ot"][-1] == "fused"
    assert table[-1]["reason"] == "needs a"
    assert "![comparison](compare.png)" in written[0].read_text()


def test_from_the_command_line_and_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workspace(tmp_path))
    text = yaml.safe_dump(entries(finetune=1))
    (tmp_path / "recipe.yaml").write_text(text)
    arguments = ["compare", "recipe.yaml", "--methods", "hungarian", "--out", "compared"]
    executed = []
    original = cell.execute

    def counted(recipe, folder):
        executed.append(recipe.method)
        return original(recipe, folder)

    monkeypatch.setattr(cell, "execute", counted)
    assert main(arguments) == 0
    assert executed == ["hungarian"]
    assert "fine-tuned" in capsys.readouterr().out
    run = json.loads((tmp_path / "compared/runs/hungarian-0.json").read_text())
    assert CONTROL in run["rows"]
    assert run["cpu"] > 0
    assert run["memory"] > 50
    assert main([*arguments, "--quiet"]) == 0
    assert len(executed) == 1
    assert capsys.readouterr().out == ""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(entries(granularity="block", finetune=1)))
    assert main(arguments) == 2
    assert "`granularity` was 'layer' and is 'block'" in capsys.readouterr().err


def test_options_go_to_the_methods_that_take_them():
    recipe = Recipe(parents=["a", "b"], options={"metric": "cosine", "within": True})
    given = {name: one_run(recipe, name, 0).options for name in ("ot", "zip", "hungarian")}
    assert given == {"ot": {"metric": "cosine"}, "zip": {"within": True}, "hungarian": {}}
    check_options(recipe.options, ["ot", "zip"])
    with pytest.raises(MethodError, match=r"none of the methods compared has the option 'within': Known: marginals"):
        check_options(recipe.options, ["ot", "hungarian"])
    with pytest.raises(MethodError, match="they have none"):
        check_options(recipe.options, ["hungarian"])


def test_where_no_method_can_run_the_table_says_why_and_the_status_is_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workspace(tmp_path))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(entries()))
    assert main(["compare", "recipe.yaml", "--methods", "ties", "--out", "compared"]) == 2
    assert "base" in capsys.readouterr().out
    assert "base" in (tmp_path / "compared/compare.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"), [(["--methods", "hungarain"], "hungarian"), (["--seeds", "0,x"], "--seeds must be numbers")]
)
def test_bad_options(tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(workspace(tmp_path))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(entries()))
    assert main(["compare", "recipe.yaml", *changes]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "fxfuse-compare").exists()
