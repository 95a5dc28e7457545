from pathlib import Path

import pytest

from fxfuse.errors import MethodError, RecipeError
from fxfuse.options import data_of, granularity_of, methods_of, parents_of, recipe_of, seeds_of, target_of
from fxfuse.presets import METHODS

NONE: dict[str, object] = {"fit": {}, "parents": None}


def test_weights_go_to_the_parents_in_order() -> None:
    wanted = [{"source": "m:f", "weights": "a.pt"}, {"source": "m:g", "weights": "b.pt"}]
    assert parents_of(["m:f", "m:g"], ["a.pt", "b.pt"], []) == wanted
    assert parents_of(["m:f=a.pt", "m:g=b.pt"], [], []) == wanted
    assert parents_of(["m:f"], ["a.pt", "b.pt"], [2, 1]) == [
        {"source": "m:f", "weights": "a.pt", "share": 2},
        {"source": "m:f", "weights": "b.pt", "share": 1},
    ]
    assert parents_of([], [], []) is None


def test_label_maps_go_to_the_parents_in_order() -> None:
    maps = parents_of(["m:f", "m:g"], [], [], ["cat, dog", "0,3-5"])
    assert maps == [{"source": "m:f", "labels": ["cat", "dog"]}, {"source": "m:g", "labels": [0, 3, 4, 5]}]
    with pytest.raises(RecipeError, match=r"must go upwards\. Got 9-0; write other orders out"):
        parents_of(["m:f"], [], [], ["0,9-0"])
    with pytest.raises(RecipeError, match="one --labels per --parent"):
        parents_of(["m:f", "m:g"], [], [], ["a,b"])


@pytest.mark.parametrize("path", ["net.py", "net.py:build", "torchvision:resnet18", "a.safetensors", "images.npz"])
def test_what_is_no_recipe_is_told_by_its_name(path: str) -> None:
    with pytest.raises(RecipeError, match=r"is no recipe, which is a YAML file\. A parent is named by --parent"):
        recipe_of(path, dict(NONE))


def test_an_equals_sign_in_a_call_belongs_to_the_call() -> None:
    assert parents_of(["n.py:f(width=3)"], [], []) == [{"source": "n.py:f(width=3)"}]
    assert parents_of(["n.py:f(width=3, b='x')=a.pt"], [], []) == [
        {"source": "n.py:f(width=3, b='x')", "weights": "a.pt"}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["m:f", "m:g"], ["a.pt"], []), "one --weights per --parent. Got 1 for 2"),
        ((["m:f=a.pt"], ["b.pt"], []), "not by both"),
        ((["m:f"], [], [1, 2]), "one --share per --parent"),
        (([], ["a.pt"], []), "belong to --parent"),
    ],
)
def test_parents_and_weights_must_agree(arguments: tuple[list[str], list[str], list[float]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parents_of(*arguments)


def test_words_become_values() -> None:
    assert data_of("images") == "images"
    assert data_of("{source: images, limit: 4}") == {"source": "images", "limit": 4}
    assert target_of("0.5") == 0.5
    assert target_of("m:f") == "m:f"
    assert [granularity_of(text) for text in ("layer", "7", "a,b")] == ["layer", 7, ["a", "b"]]
    with pytest.raises(RecipeError, match="a source or a mapping in YAML"):
        data_of("{source: [")


def test_options_win_over_the_file_and_keep_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "r.yaml"
    file.write_text("parents: [{source: net.py:f, weights: a.pt}]\nseed: 4\nfit: {steps: 9, lr: 0.1}\nonnx: true\n")
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(str(file), {**NONE, "fit": {"steps": 2, "lr": None}, "output": "out", "onnx": False})
    assert (recipe.seed, recipe.fit.steps, recipe.fit.lr, recipe.onnx) == (4, 2, 0.1, False)
    assert recipe.parents[0].weights == str(tmp_path / "sub" / "a.pt")  # the file's folder
    assert recipe.output == str(tmp_path / "out")  # the working folder


def test_a_source_alone_is_read_as_the_recipe_says_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "parents: [m:f]\ncalibration: {source: a.npz, inputs: x, labels: z, limit: 9, preprocessing: {mean: 0.5}}\n"
    )
    monkeypatch.chdir(tmp_path)
    own = recipe_of(str(file), dict(NONE)).calibration
    recipe = recipe_of(str(file), {**NONE, "calibration": "b.npz", "evaluation": "c.npz"})
    assert own is not None
    for found, name in ((recipe.calibration, "b.npz"), (recipe.evaluation, "c.npz")):
        assert found is not None
        assert found.source == str(tmp_path / name)
        assert (found.inputs, found.labels, found.preprocessing) == (own.inputs, own.labels, own.preprocessing)
        assert found.limit is None
    anew = recipe_of(str(file), {**NONE, "calibration": {"source": "b.npz"}}).calibration
    assert anew is not None
    assert anew.preprocessing.mean is None
    assert anew.labels is True


def test_lists_of_methods_and_seeds_hold_each_once() -> None:
    assert methods_of(" ot, zip,ot,") == ["ot", "zip"]
    assert methods_of("") == list(METHODS)
    assert seeds_of("3, 1,3") == [3, 1]
    with pytest.raises(MethodError, match="did you mean 'zip'"):
        methods_of("ot,zap")
    for wrong in ("", "-1", "1,,2", "1.5", "one", "9" * 30):
        with pytest.raises(RecipeError, match="--seeds must be numbers"):
            seeds_of(wrong)
