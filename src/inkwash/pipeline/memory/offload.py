"""Networks that are on the device only while they work."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Offload:
    """Keeps the weights of networks in main memory, and one network at a time on the device.

    A network comes when it, or a part of it that has parameters of its own, is called, and stays until another is;
    its arguments come with it. Its weights are copied to the device, never back, so they must not be changed there.
    """

    def __init__(self, device: torch.device | str, networks: Sequence[nn.Module] = ()):
        self.device = torch.device(device)
        self.resident: nn.Module | None = None
        self.home: list[tuple[nn.Module, str, Tensor]] = []  # where the resident's weights belong
        self.add(networks)

    def add(self, networks: Sequence[nn.Module]) -> None:
        """Take care of these too."""
        for network in networks:
            # the autoencoder is called by its parts
            for part in (network, *network.children()):
                part.register_forward_pre_hook(self.entering(network), with_kwargs=True)

    def entering(self, network: nn.Module) -> Any:
        def enter(
            part: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            self.enter(network)
            return tuple(map(self.moved, args)), {key: self.moved(value) for key, value in kwargs.items()}

        return enter

    def moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def enter(self, network: nn.Module) -> None:
        """Bring a network to the device, in place of the one that is there."""
        if network is self.resident:
            return
        self.leave()
        with torch.inference_mode(False):  # the weights outlive the drawing
            for module in network.modules():
                for name, weight in (
                    *module.named_parameters(recurse=False),
                    *module.named_buffers(recurse=False),
                ):
                    self.home.append((module, name, weight))
                    copy = weight.detach().to(self.device)
                    is_parameter = isinstance(weight, nn.Parameter)
                    setattr(module, name, nn.Parameter(copy, requires_grad=False) if is_parameter else copy)
        self.resident = network

    def leave(self) -> None:
        """Empty the device."""
        for module, name, weight in self.home:
            setattr(module, name, weight)
        self.home.clear()
        self.resident = None
