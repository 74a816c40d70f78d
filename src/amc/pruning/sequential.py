"""Least squares on the pruned network's own inputs: layer after layer, in one forward pass.

`reconstruction` fits every layer to the dense network's inputs, so that no layer knows the errors of the layers before
it. Here X are the inputs of a layer in the pruned network, whose earlier layers are refitted already, and Y the dense
network's outputs at the same places (He, Zhang and Sun, ICCV 2017, arXiv 1707.06168, the asymmetric reconstruction):

    (XᵀX + λI) w = XᵀY + λ w_S,    w_S: the dense weights of the inputs that stay

With X of the dense network it is the equation of `reconstruction`. A layer gets its new weight just before it runs.
Both networks run in the same mode, so batch norms that use the statistics of the batch do so in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.pruning.calibration import POSITIONS
from amc.pruning.reconstruction import damp, flat_weight
from amc.pruning.watching import Watch
from amc.structure import Layer
from amc.structure.batches import moved
from amc.structure.copying import copy_model, undisturbed
from amc.structure.modes import batch_statistics, device_of
from amc.structure.modules import attention_by_parts
from amc.structure.trace import Example, inference

DAMPING = 1e-2  # of the mean diagonal: there are fewer samples here than in the calibration
SAMPLES = 4  # for each column, below which a layer keeps its weight: a fit would follow the samples' noise

Place = Callable[[str, Tensor], None]  # puts the solution [groups, columns, dense outputs] of a layer into a network


@dataclass(frozen=True)
class DenseOutputs:
    """What the layers of the dense network put out on one batch, without their bias.

    `weights` [groups, columns, outputs] and `outputs` [groups, samples, outputs] by weight name, in double precision.
    """

    batch: Example
    layers: Mapping[str, Layer]
    weights: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    seed: int

    @classmethod
    def of(cls, dense: nn.Module, layers: Mapping[str, Layer], batch: Example, *, seed: int = 0) -> DenseOutputs:
        """The outputs of these layers of the network, which is untouched.

        A layer that runs more than once has none, nor has a recurrent one, whose inputs are its own outputs.
        """
        network = copy_model(dense)  # a forward may store state in its network
        named = dict(network.named_parameters())
        weights = {name: flat_weight(named[name], layer) for name, layer in layers.items()}
        outputs: dict[str, Tensor] = {}
        calls: Counter[str] = Counter()

        def seen(name: str, rows: Tensor) -> None:
            calls[name] += 1
            outputs[name] = rows.double().cpu() @ weights[name]

        _run(network, layers, batch, seen, seed)
        once = {name: value for name, value in outputs.items() if calls[name] == 1 and layers[name].kind != "recurrent"}
        return cls(batch, layers, weights, once, seed)

    def refit_(self, slim: nn.Module, columns: Mapping[str, Tensor], place: Place) -> None:
        """Refit the layers of `slim`, one after the other; `place` puts the weights in.

        columns: those of the dense weight that stay, by weight name. A layer with few samples keeps its weight, as does
        one whose solution is not finite.
        """

        def seen(name: str, rows: Tensor) -> None:
            target = self.outputs.get(name)
            if target is None or target.shape[1] != rows.shape[1] or rows.shape[1] < SAMPLES * rows.shape[2]:
                return
            if bool(torch.isfinite(rows).all()):
                place(name, fitted(rows, target, self.weights[name][:, columns[name]]))

        _run(slim, self.layers, self.batch, seen, self.seed)


def _run(
    network: nn.Module, layers: Mapping[str, Layer], batch: Example, seen: Callable[[str, Tensor], None], seed: int
) -> None:
    """One forward pass in eval mode, except that batch norms use the statistics of the batch."""
    inputs = moved(batch, device_of(network))
    watch = Watch(layers, dict(network.named_parameters()), seen, POSITIONS, seed)
    with undisturbed(network), inference(network), batch_statistics(network), attention_by_parts(network), watch:
        network(*inputs.args, **inputs.kwargs)


def fitted(rows: Tensor, target: Tensor, start: Tensor, damping: float = DAMPING) -> Tensor:
    """Weights [groups, n, outputs] with least squared error, pulled towards `start` of the same shape.

    rows [groups, samples, n]: inputs. target [groups, samples, outputs]: the outputs wanted, in double precision.
    """
    inputs = rows.double().cpu() / rows.shape[1] ** 0.5
    gram = inputs.mT @ inputs
    damped = damp(gram, damping)
    wanted = inputs.mT @ (target / rows.shape[1] ** 0.5) + (damped - gram) @ start
    solution: Tensor = torch.linalg.solve(damped, wanted)
    return solution
