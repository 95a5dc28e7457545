import torch

from fxfuse.fingerprints import data_hashes, fingerprint
from fxfuse.provenance import sha256_of
from fxfuse.recipe import DataSpec
from fxfuse.samples import TensorSamples


def test_the_fingerprint_is_of_the_values() -> None:
    x, y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0])
    assert fingerprint(TensorSamples((x,), y)) == fingerprint(TensorSamples((x.clone(),), y, "elsewhere"))
    different = [(x + 1, y), (x.double(), y), (x, 1 - y), (x, None), (x.view(3, 2, 1), y)]
    prints = {fingerprint(TensorSamples((a,), b)) for a, b in different}
    assert len(prints) == len(different)
    assert fingerprint(TensorSamples((x,), y)) not in prints


def test_files_modules_and_folders_of_data_are_hashed(tmp_path, monkeypatch):
    images = tmp_path / "images"
    for name in ("b", "a"):
        (images / name).mkdir(parents=True)
        (images / name / "0.png").write_bytes(name.encode())
    (tmp_path / "data.py").write_text("")
    labels = tmp_path / "labels.npy"
    labels.write_bytes(b"1")
    files = data_hashes(DataSpec(source=f"{tmp_path / 'data.py'}:make", labels=str(labels)))
    assert files == {str(path): sha256_of(path) for path in (tmp_path / "data.py", labels)}
    assert list(data_hashes(DataSpec(source="fxfuse.samples:batches"))) == [samples_file()]
    assert data_hashes(DataSpec(source="torchvision:MNIST")) == {}
    (whole,) = data_hashes(DataSpec(source=str(images))).values()
    assert whole.startswith("contents:")
    (images / "a" / "0.png").write_bytes(b"c")
    (other,) = data_hashes(DataSpec(source=str(images))).values()
    assert other != whole
    monkeypatch.setattr("fxfuse.fingerprints.WHOLE", 0)
    (named,) = data_hashes(DataSpec(source=str(images))).values()
    assert named.startswith("names and sizes:")


def samples_file():
    import fxfuse.samples

    return fxfuse.samples.__file__
