"""How the PyTorch side of a benchmark runs: on which device, in which type, compiled or not."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TorchSetup:
    """PyTorch as its users would run it on a device.

    Attributes:
        device: Device of the networks and the data, "cpu" or "cuda".
        precision: "bfloat16" for automatic mixed precision, else "float32".
        compiled: Whether networks go through `torch.compile`.
    """

    device: str = "cpu"
    precision: str = "float32"
    compiled: bool = False

    def network(self, net: Any) -> Any:
        """The network on the device; its images are channels last there, but for CPUs."""
        net = net.to(self.device)
        if self.device != "cpu":
            net = net.to(memory_format=torch.channels_last)
        return torch.compile(net) if self.compiled else net

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] as the network takes them."""
        x = x.to(self.device)
        return x if self.device == "cpu" else x.contiguous(memory_format=torch.channels_last)

    def adam(self, net: Any, rate: float, **options: Any) -> torch.optim.Optimizer:
        """Adam in its quickest form on the device."""
        options |= {} if self.device == "cpu" else {"fused": True}
        return torch.optim.Adam(net.parameters(), lr=rate, **options)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a network's calls."""
        is_mixed = self.precision == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16, enabled=is_mixed)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def __str__(self) -> str:
        threads = f", {torch.get_num_threads()} threads" if self.device == "cpu" else ""
        form = ", compiled" if self.compiled else ""
        return f"torch {torch.__version__} on {self.device}, {self.precision}{form}{threads}"
