"""The tensors of a scene as trainable parameters, and how fast each of them learns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.optim import Adam, Optimizer

from compress3d.splats.scene import SplatScene


@dataclass(frozen=True, slots=True)
class LearningRates:
    """Adam's step sizes by tensor, in the tensors' raw storage; those of the means in units of the cameras' extent.

    The defaults are those of 3DGS training (Kerbl et al. 2023; gsplat's simple_trainer).
    """

    means: float = 1.6e-4
    quats: float = 1e-3
    scales: float = 5e-3
    opacities: float = 5e-2
    sh0: float = 2.5e-3
    shN: float = 1.25e-4


class TrainableScene(nn.Module):
    """The parameters `means`, `quats`, `scales`, `opacities`, `sh0` and `shN` of a scene, which is copied."""

    def __init__(self, scene: SplatScene) -> None:
        super().__init__()
        self._like = scene
        for name, tensor in scene.tensors().items():
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))

    def scene(self) -> SplatScene:
        """The scene of the parameters as they are, which renders differentiably."""
        return self._like.with_tensors(**dict(self.named_parameters()))

    def frozen(self) -> SplatScene:
        """A copy of the scene, without gradients."""
        return self._like.with_tensors(**{name: tensor.detach().clone() for name, tensor in self.named_parameters()})

    def optimizers(self, rates: LearningRates, extent: float) -> dict[str, Optimizer]:
        """One Adam a tensor, by name, as gsplat's strategies want them; arguments as `optimizer`."""
        return {group["name"]: self._adam([group]) for group in self._groups(rates, extent)}

    def optimizer(self, rates: LearningRates, extent: float) -> Optimizer:
        """One Adam for all tensors, a group each; those without elements have none.

        Args:
            rates: see there.
            extent: of the cameras, in world units; see `extent`.
        """
        return self._adam(self._groups(rates, extent))

    def _groups(self, rates: LearningRates, extent: float) -> list[dict[str, Any]]:
        lr = asdict(rates) | {"means": rates.means * extent}
        named = ((name, parameter) for name, parameter in self.named_parameters() if parameter.numel())
        return [{"name": name, "params": [parameter], "lr": lr[name]} for name, parameter in named]

    def _adam(self, groups: list[dict[str, Any]]) -> Optimizer:
        return Adam(groups, eps=1e-15, fused=self.get_parameter("means").device.type in ("cpu", "cuda"))
