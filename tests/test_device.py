import pytest
import torch

from fxfuse.device import autocast, describe, deterministic, pick_device
from fxfuse.errors import DeviceError


def test_auto_is_the_cpu_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="There is no CUDA device here, but 'cuda:1' was asked for"):
        pick_device("cuda:1")


def test_cuda_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"no device 'cuda:2'; there is cuda:0 \(card 0\), cuda:1 \(card 1\)"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "CPU"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'"):
        pick_device(name)


def test_the_cpu_computes_in_full_precision() -> None:
    with autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert describe(torch.device("cpu")).startswith("cpu (")


def test_deterministic_restores_what_it_found() -> None:
    def settings() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)

    before = settings()

    def failing() -> None:
        with deterministic(strict=True):
            assert settings() == (True, True, False)
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise ValueError

    with pytest.raises(ValueError):
        failing()
    assert settings() == before


@pytest.mark.gpu
def test_cuda_computes_in_bfloat16_where_it_can_and_repeats_itself() -> None:
    device = pick_device("cuda")
    layer = torch.nn.Conv2d(3, 8, 3).to(device)

    def gradient() -> torch.Tensor:
        torch.manual_seed(0)
        layer.zero_grad()
        layer(torch.randn(64, 3, 32, 32, device=device)).square().sum().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    with deterministic():
        assert torch.equal(gradient(), gradient())
    with autocast(device):
        expected = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
        assert layer(torch.randn(2, 3, 8, 8, device=device)).dtype == expected
    assert "GiB" in describe(device)
