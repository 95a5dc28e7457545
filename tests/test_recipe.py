from pathlib import Path

import pytest

from fxfuse.errors import RecipeError
from fxfuse.recipe import (
    DataSpec,
    FinetuneSettings,
    FitSettings,
    Limit,
    ParentSpec,
    Preprocessing,
    Recipe,
    TargetSpec,
    dump_recipe,
    identity,
    load_recipe,
    map_paths,
    parse_recipe,
    resolve,
    split_source,
)

FULL = """
parents:
  - source: zoo/net.py:build(width=32)
    weights: a.safetensors
    share: 3
  - {source: "torchvision:resnet18", args: {num_classes: 10}, weights: ../b.pt, name: second}
  - program.pt2
target: 1.5
calibration:
  source: data/train
  limit: 400
  labels: y.npy
  preprocessing: {scale: 1/255, mean: 0.1307, std: [0.3081], resize: 32, flatten: true}
evaluation: {source: "torchvision:MNIST", root: data, split: test}
method: kmeans-linear
granularity: [layer1, layer2]
fit: {steps: 100, lr: 1e-3, augment: [shift]}
device: cpu
seed: 7
output: runs/out
onnx: true
"""


def test_a_recipe_is_read_from_yaml() -> None:
    recipe = parse_recipe(FULL)
    assert recipe.parents[0] == ParentSpec(source="zoo/net.py:build(width=32)", weights="a.safetensors", share=3)
    assert recipe.parents[2] == ParentSpec(source="program.pt2")
    assert recipe.target == TargetSpec(width=1.5)
    assert recipe.calibration is not None
    assert recipe.calibration.limit == Limit(count=400)
    assert recipe.calibration.preprocessing.scale == 1 / 255
    assert recipe.fit == FitSettings(steps=100, lr=1e-3, augment=("shift",))
    assert recipe.shares() == pytest.approx((0.6, 0.2, 0.2))
    assert recipe.names() == ("a", "second", "program")


def test_dump_and_parse_are_inverse() -> None:
    recipe = parse_recipe(FULL)
    assert parse_recipe(dump_recipe(recipe)) == recipe
    least = Recipe(parents=("m:f",))
    assert parse_recipe(dump_recipe(least)) == least
    assert dump_recipe(least) == "parents:\n- source: m:f\nmethod: hungarian-gradient\nseed: 0\n"


def test_relative_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(FULL)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert [p.source for p in recipe.parents] == [
        f"{tmp_path}/zoo/net.py:build(width=32)",
        "torchvision:resnet18",
        f"{tmp_path}/program.pt2",
    ]
    assert [p.weights for p in recipe.parents] == [f"{tmp_path}/a.safetensors", f"{tmp_path.parent}/b.pt", None]
    assert recipe.calibration is not None
    assert recipe.evaluation is not None
    assert recipe.calibration.source == f"{tmp_path}/data/train"
    assert recipe.calibration.labels == f"{tmp_path}/y.npy"
    assert (recipe.evaluation.source, recipe.evaluation.root) == ("torchvision:MNIST", f"{tmp_path}/data")
    assert recipe.output == f"{tmp_path}/runs/out"
    back = parse_recipe(dump_recipe(recipe, relative_to=tmp_path / "elsewhere"))
    assert back.parents[0].source == "../zoo/net.py:build(width=32)"
    assert resolve(back, tmp_path / "elsewhere") == recipe


def test_module_names_are_not_paths() -> None:
    recipe = Recipe(parents=("pkg.net:build",), calibration="pkg.data:make", target="pkg.net:wide")
    assert map_paths(recipe, lambda _: "changed") == recipe


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.b:f", ("a.b", "", "f")),
        ("a.b:C.make", ("a.b", "", "C.make")),
        ("d/e.py:f(x='a:b(c)')", ("d/e.py", "(x='a:b(c)')", "f")),
        ("C:/d/e.py:f", ("C:/d/e.py", "", "f")),
        ("model.pt2", ("model.pt2", "", "")),
        ("C:/d/model.pt2", ("C:/d/model.pt2", "", "")),
        ("my (copy)/net.py:f(3)", ("my (copy)/net.py", "(3)", "f")),
        ("my (copy)/net.py:f", ("my (copy)/net.py", "", "f")),
    ],
)
def test_sources_are_split_into_place_call_and_factory(source: str, expected: tuple[str, str, str]) -> None:
    assert split_source(source) == expected


def test_parents_without_names_get_different_ones() -> None:
    recipe = Recipe(parents=("m:f", "m:f", ParentSpec(source="m:g", name="f-0"), "m:h"))
    assert recipe.names() == ("f-1", "f-2", "f-0", "h")


def test_the_identity_leaves_out_what_does_not_change_the_weights() -> None:
    recipe = parse_recipe(FULL)
    other = recipe.model_copy(update={"output": "x", "onnx": False, "evaluation": None})
    assert identity(other) == identity(recipe)
    assert identity(recipe.model_copy(update={"seed": 8})) != identity(recipe)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parents: [a]\nfit: {stpes: 3}", "`fit.stpes` is not a known key: did you mean 'steps'?"),
        ("parents: [{source: a, wieghts: b}]", "`parents[0].wieghts` is not a known key: did you mean 'weights'?"),
        ("parents: [a]\ncalibration: {source: x, preprocessing: {men: 1}}", "`calibration.preprocessing.men` is not a"),
        (
            "parents: [a]\ncalibration: {source: x, limit: {count: 3, how: last}}",
            "`calibration.limit.how` must be one of",
        ),
        ("parents: [a]\nhead: logit", "`head` must be one of 'probabilities', 'logits' or 'labels'. Got 'logit'."),
        ("parents: []", "`parents` must have 1 or more entries. Got []."),
        ("parents: [{source: a, share: -1}]", "`parents[0].share` must be at least 0. Got -1."),
        ("parents: [{source: a, share: 0}]", "`parents` must have a share above 0 at least once."),
        ("parents: [{source: a, name: u}, {source: b, name: u}]", "different names. Got 'u' twice."),
        ("parents: [a]\ntarget: {}", "`target` must have either `source` or `width`, and not both."),
        ("parents: [a]\ntarget: -1", "`target.width` must be greater than 0. Got -1."),
        ("parents: [a]\nseed: -1", "`seed` must be at least 0. Got -1."),
        ("parents: [a]\ndevice: gpu", "`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'. Got 'gpu'."),
        ("method: average", "`parents` is missing."),
        ("- a", "A recipe must be a mapping with the key `parents`. Got ['a']."),
        ("", "A recipe must be a mapping"),
        ("parents: [a", "not valid YAML: line 1"),
        ("parents: [a]\nseed: 1\nseed: 2", "not valid YAML: line 3, column 1: the key 'seed' occurs twice."),
        ("parents: [a]\nfit: {lr: 1, lr: 2}", "line 2, column 14: the key 'lr' occurs twice."),
        ("parents: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_bad_recipes_are_refused_with_place_and_cure(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no recipe at"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=r"is a folder; name the recipe in it\.$"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match=r"is a folder; name the recipe in it, .*recipe\.yaml\.$"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "recipe.yaml")


def test_preprocessing_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(RecipeError, match="together with `to_float: false`"):
        Preprocessing(to_float=False, mean=0.5)
    with pytest.raises(RecipeError, match=r"`preprocessing.std\[0\]` must be greater than 0"):
        DataSpec(source="x", preprocessing={"std": 0})


def test_momentum_is_the_default_of_sgd_alone():
    assert FinetuneSettings().options == FinetuneSettings(optimizer="SGD", lr=0.1).options == {"momentum": 0.9}
    assert FinetuneSettings(optimizer="AdamW").options == {}
    assert FinetuneSettings(optimizer="AdamW", options={"weight_decay": 0.1}).options == {"weight_decay": 0.1}
    recipe = parse_recipe("{parents: [a.pt2], finetune: {epochs: 1, optimizer: Adam}}")
    assert recipe.finetune.options == {}
    assert parse_recipe(dump_recipe(recipe)) == recipe
