import json
from pathlib import Path

import torch

from fxfuse.provenance import manifest, sha256_of, versions


def test_hashes_are_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_versions_leave_out_what_is_not_installed() -> None:
    found = versions(("torch", "no-such-package"))
    assert list(found) == ["torch"]


def test_the_manifest_is_json_and_holds_what_it_was_given() -> None:
    made = manifest({"a.pt": "00"}, torch.device("cpu"), 7, timings={"fit": 1.5})
    assert json.loads(json.dumps(made)) == made
    assert (made["seed"], made["inputs"], made["timings"]) == (7, {"a.pt": "00"}, {"fit": 1.5})
    assert made["environment"]["versions"]["torch"] == versions(("torch",))["torch"]
    assert made["environment"]["device"] == "cpu"
