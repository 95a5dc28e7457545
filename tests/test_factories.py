import sys
from pathlib import Path

import pytest

from fxfuse.errors import DataError, SourceError
from fxfuse.factories import Reference


def reference(text: str) -> Reference:
    return Reference(text, "parent 'a'", SourceError)


def failure(text: str, **args: object) -> str:
    with pytest.raises(SourceError) as caught:
        reference(text).make(args)
    assert str(caught.value).startswith("parent 'a': ")
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(
        "ready = [1, 2]\n"
        "def build(width=1, *, depth=2):\n"
        "    return ('built', width, depth)\n"
        "def fail():\n"
        "    raise ValueError('no such thing')\n"
        "class Box:\n"
        "    @classmethod\n"
        "    def make(cls, x):\n"
        "        return x\n"
        "def leave():\n"
        "    raise SystemExit(3)\n"
    )
    return path


def test_functions_of_files_are_called_with_literals_and_args(file: Path) -> None:
    assert reference(f"{file}:build").make().value == ("built", 1, 2)
    assert reference(f"{file}:build(3, depth=[4])").make().value == ("built", 3, [4])
    assert reference(f"{file}:build(3)").make({"depth": "x"}).value == ("built", 3, "x")
    assert reference(f"{file}:Box.make(x={{'a': 1}})").make().value == {"a": 1}
    assert reference(f"{file}:build").make().file == file


def test_ready_objects_are_taken_as_they_are(file: Path) -> None:
    assert reference(f"{file}:ready").make().value == [1, 2]


def test_modules_are_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference("math:sqrt(4)").make().value == 2
    (tmp_path / "mod_in_cwd.py").write_text("def f(): return 5\n")
    monkeypatch.chdir(tmp_path)
    assert reference("mod_in_cwd:f").make().value == 5
    sys.modules.pop("mod_in_cwd")


def test_files_of_equal_name_stay_apart_and_so_do_their_neighbours(tmp_path: Path) -> None:
    path = list(sys.path)
    for number in (1, 2, 1):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "neighbour_of_net.py").write_text(f"value = {number}\n")
        (folder / "net.py").write_text("from neighbour_of_net import value\ndef f(): return value\n")
        assert reference(f"{folder}/net.py:f").make().value == number
    assert sys.path == path


def test_what_is_not_there_is_named_with_the_nearest(file: Path) -> None:
    assert f"there is no file {file.parent}/nte.py; did you mean 'net.py'?" in failure(f"{file.parent}/nte.py:build")
    assert "nor a folder" in failure("/no/such/net.py:build")
    assert f"{file} has no 'biuld'; did you mean 'build'?" in failure(f"{file}:biuld")
    assert "there is no module 'fxfuse.sampels'; did you mean 'samples'?" in failure("fxfuse.sampels:f")
    assert "there is no module 'no_such_package'" in failure("no_such_package.x:f")
    assert "not of the form 'module:factory' or 'file.py:factory'" in failure("just_a_name")


def test_errors_of_the_users_code_come_with_its_line(file: Path, tmp_path: Path) -> None:
    assert f"fail() failed: ValueError: no such thing at {file}:5." in failure(f"{file}:fail")
    assert "leave() failed: SystemExit: 3" in failure(f"{file}:leave")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ny = 1 / 0\n")
    assert f"cannot be imported: ZeroDivisionError: division by zero at {broken}:2." in failure(f"{broken}:f")
    broken.write_text("x = 1\ndef (:\n")
    assert f"SyntaxError: invalid syntax (broken.py, line 2) at {broken}:2." in failure(f"{broken}:f")
    broken.write_text("import no_such_module_at_all\n")
    assert "No module named 'no_such_module_at_all'" in failure(f"{broken}:f")


def test_arguments_are_literals_and_fit_the_signature(file: Path) -> None:
    for call in ("(open('x'))", "(**{'width': 3})", "(width=)", "([i for i in (1,)])"):
        assert f"the arguments {call} must be literals such as" in failure(f"{file}:build{call}")
    assert "the argument 'width' is in both the source and `args`" in failure(f"{file}:build(width=3)", width=4)
    message = failure(f"{file}:build(depht=3)")
    assert "build(width=1, *, depth=2) cannot be called so" in message
    assert "'depht'" in message
    assert "'ready' is a list and takes no arguments" in failure(f"{file}:ready(3)")


def test_the_caller_chooses_the_error(file: Path) -> None:
    with pytest.raises(DataError, match="data 'd': there is no file"):
        Reference(f"{file}x.py:f", "data 'd'", DataError).make()
