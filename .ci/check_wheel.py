"""Check what the wheel contains: the packages of pyproject.toml with every one of their modules, and nothing else.

Usage: ``check_wheel.py DIST``, a folder that holds one wheel and the source distribution that it was built from.
"""

import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"fxfuse": ROOT / "fxfuse", "fxfuse.passes": ROOT / "passes", "fxfuse.models_zoo": ROOT / "models_zoo"}


def expected() -> set[str]:
    """Files of the wheel, by the packages that the project lists and the files that the repository holds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found, packages = {"fxfuse/py.typed"}, set()
    for package, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):  # does not follow the links in fxfuse/
            inside = file.relative_to(folder).as_posix()
            found.add(f"{package.replace('.', '/')}/{inside}")
            packages.add(".".join([package, *file.relative_to(folder).parent.parts]))
    if packages != listed:
        sys.exit(f"pyproject.toml lists other packages than the repository holds: {sorted(packages ^ listed)}")
    return found


def main(dist: Path) -> None:
    """Compare, and say in one line what is wrong."""
    (wheel,) = dist.glob("*.whl")
    (source,) = dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    files = {name for name in names if ".dist-info/" not in name}
    if files != (wanted := expected()):
        sys.exit(f"{wheel.name}: missing {sorted(wanted - files)}; unexpected {sorted(files - wanted)}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        sys.exit(f"{wheel.name}: the licence is missing")
    with tarfile.open(source) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    if not {"fxfuse", "passes", "models_zoo", "pyproject.toml", "README.md", "LICENSE"} <= tops:
        sys.exit(f"{source.name}: holds only {sorted(tops)}")
    print(f"{wheel.name}: {len(files)} files, exactly the project's packages")


main(Path(sys.argv[1]))
