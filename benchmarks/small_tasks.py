"""Small tasks that are no classification of images: generated data, a network that learns it in a minute, its score.

Everything is drawn from fixed seeds. `TASKS` has them by name; `trained` trains the network of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 50
SIZE = 32  # pixels of a side
Data = tuple[Any, Any]  # inputs and labels, of any number of examples
Loss = Callable[[Any, Any], Tensor]  # outputs, labels -> loss


@dataclass(frozen=True)
class Task:
    """A task, from its data to its score."""

    network: Callable[[], nn.Module]
    draw: Callable[[int, int], Data]  # count, seed -> examples
    loss: Loss
    score: str  # a name of `amc.run.settings.scores.SCORES`
    what: str  # of the network and its data, for the table
    part: str | None = None  # that is pruned; None: the whole network
    rate: float = 3e-3

    def batches(self, count: int, seed: int) -> list[Data]:
        """Examples in batches, as a loader gives them."""
        return list(_batches(*self.draw(count, seed)))

    def example(self) -> Any:
        """An example input."""
        inputs = self.draw(1, 0)[0]
        return inputs if isinstance(inputs, dict | list) else inputs[:1]


def trained(task: Task, steps: int) -> nn.Module:
    """The network after so many steps of Adam, each on new examples; its learning rate falls as a cosine."""
    torch.manual_seed(0)
    network = task.network().train()
    optimiser = torch.optim.Adam(network.parameters(), lr=task.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        inputs, labels = task.draw(BATCH, 10_000 + step)
        optimiser.zero_grad()
        torch.autograd.backward(task.loss(_called(network, inputs), labels))
        optimiser.step()
        schedule.step()
    return network.eval()


def _called(network: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, list):  # a detector: boxes come after what is trained
        return network.maps(inputs)  # type: ignore[operator]
    return network(**inputs) if isinstance(inputs, dict) else network(inputs)


def _batches(inputs: Any, labels: Any) -> Iterator[Data]:
    for at in range(0, len(labels), BATCH):
        part = slice(at, at + BATCH)
        if isinstance(inputs, dict):
            yield {name: tensor[part] for name, tensor in inputs.items()}, labels[part]
        else:
            yield inputs[part], labels[part]


# Scenes: coloured discs, squares and crosses on noise

SHAPES = 3


def scenes(count: int, seed: int, shown: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 3, 32, 32] in [0, 1], their masks [N, shown, 32, 32], kinds [N, shown], and boxes [N, shown, 4].

    A later shape hides the earlier ones. A kind is 1, 2 or 3, or 0 for a shape that is left out.
    """
    draw = torch.Generator().manual_seed(seed)
    images = 0.4 + 0.12 * torch.randn(count, 3, SIZE, SIZE, generator=draw)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    kinds = torch.randint(SHAPES + 1, (count, shown), generator=draw)
    middles = torch.randint(6, SIZE - 6, (count, shown, 2), generator=draw)
    radii = torch.randint(4, 7, (count, shown), generator=draw)
    colours = torch.rand(count, shown, 3, generator=draw)
    down = (y - middles[..., 0, None, None]).abs()
    across = (x - middles[..., 1, None, None]).abs()
    radius = radii[..., None, None]
    forms = torch.stack([
        torch.zeros_like(down, dtype=torch.bool), down**2 + across**2 <= radius**2,
        (down <= radius - 1) & (across <= radius - 1), ((down <= 1) | (across <= 1)) & (down + across <= radius),
    ])  # fmt: skip
    masks = torch.gather(forms, 0, kinds[None, ..., None, None].expand(1, -1, -1, SIZE, SIZE))[0]
    for number in range(shown):
        mask = masks[:, number, None]
        images = torch.where(mask, 0.7 * colours[:, number, :, None, None] + 0.3 * images, images)
    reach = torch.where(kinds == 2, radii - 1, radii)[..., None]
    corners = torch.cat([middles.flip(-1) - reach, middles.flip(-1) + reach + 1], -1).float()
    return images.clamp(0, 1), masks, kinds, corners.clamp(0, SIZE)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


# Segmentation


class UNet(nn.Module):
    """Images [N, 3, 32, 32] -> logits [N, 4, 32, 32] of no shape and three shapes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(3, width), conv(width, width))
        self.second = nn.Sequential(conv(width, 2 * width, 2), conv(2 * width, 2 * width))
        self.third = nn.Sequential(conv(2 * width, 4 * width, 2), conv(4 * width, 4 * width))
        self.up2 = conv(6 * width, 2 * width)
        self.up1 = conv(3 * width, width)
        self.head = nn.Conv2d(width, SHAPES + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        middle = self.second(fine)
        up = F.interpolate(self.third(middle), scale_factor=2.0)
        up = self.up2(torch.cat([middle, up], 1))
        logits: Tensor = self.head(self.up1(torch.cat([fine, F.interpolate(up, scale_factor=2.0)], 1)))
        return logits


def segmented(count: int, seed: int) -> Data:
    images, masks, kinds, _ = scenes(count, seed)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for number in range(kinds.shape[1]):
        labels = torch.where(masks[:, number], kinds[:, number, None, None], labels)
    return images, labels


# Super-resolution


class Upscaler(nn.Module):
    """Images [N, 3, 16, 16] -> images [N, 3, 32, 32]: residual blocks, then a pixel shuffle."""

    def __init__(self, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.leave = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.enter(x)
        for block in self.blocks:
            features = features + block(features)
        return F.interpolate(x, scale_factor=2.0) + F.pixel_shuffle(self.leave(features), 2)


def shrunk(count: int, seed: int) -> Data:
    draw = torch.Generator().manual_seed(seed)
    clean = scenes(count, seed)[0]
    clean = F.avg_pool2d(F.pad(clean, (1, 1, 1, 1), mode="replicate"), 3, 1)  # what remains can be guessed
    return F.avg_pool2d(clean, 2) + 0.01 * torch.randn(count, 3, SIZE // 2, SIZE // 2, generator=draw), clean


# Regression and several labels, with one body


class Body(nn.Module):
    """Images [N, 3, 32, 32] -> [N, outputs]."""

    def __init__(self, outputs: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, width), conv(width, 2 * width, 2), conv(2 * width, 2 * width), conv(2 * width, 4 * width, 2),
            conv(4 * width, 4 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        numbers: Tensor = self.head(self.features(x))
        return numbers


def areas(count: int, seed: int) -> Data:
    """The share of the image that each kind of shape covers, in percent."""
    images, labels = segmented(count, seed)
    return images, 100 * F.one_hot(labels, SHAPES + 1)[..., 1:].float().mean((1, 2))


def present(count: int, seed: int) -> Data:
    """Which kinds of shape can be seen: 0 or 1 each."""
    images, labels = segmented(count, seed)
    return images, F.one_hot(labels, SHAPES + 1)[..., 1:].amax((1, 2))


# Keyword spotting


class Keywords(nn.Module):
    """Spectrograms [N, 20, 48], bands by time -> logits [N, 6]: gated convolutions, then a GRU."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Conv1d(20, 2 * width, 5, padding=2)
        self.second = nn.Conv1d(width, 2 * width, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(x), 1)
        x = self.norm(F.glu(self.second(x), 1))
        states, _ = self.gru(x.transpose(1, 2))
        logits: Tensor = self.head(states[:, -1])
        return logits


def spoken(count: int, seed: int) -> Data:
    """Three tones after each other; the word is the order of their heights."""
    draw = torch.Generator().manual_seed(seed)
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    words = torch.randint(6, (count,), generator=draw)
    heights = torch.rand(count, 1, generator=draw) * 4 + 2 + 5 * orders[words]  # of bands
    starts = 3 + 14 * torch.arange(3) + torch.randint(0, 6, (count, 3), generator=draw)
    band = torch.arange(20).view(1, 1, 20, 1)
    time = torch.arange(48).view(1, 1, 1, 48)
    near = torch.exp(-((band - heights[..., None, None]) ** 2) / 2)
    during = (time >= starts[..., None, None]) & (time < starts[..., None, None] + 8)
    sound = (near * during).sum(1)
    return sound + 0.8 * torch.randn(count, 20, 48, generator=draw), words


# Text

WORDS, LENGTH = 40, 24


def encoder() -> nn.Module:
    """A small BERT of the package transformers, with dicts as inputs."""
    from amc.zoo._torchvision import import_torchvision

    import_torchvision()  # transformers imports it
    from transformers import BertConfig, BertForSequenceClassification

    config: Any = BertConfig(
        vocab_size=WORDS, max_position_embeddings=LENGTH, hidden_size=64, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.num_labels = 4
    model: nn.Module = BertForSequenceClassification(config)
    return model


def sentences(count: int, seed: int) -> Data:
    """Words, some of them hidden by the mask; the class says whether word 1 occurs, and whether 2 comes before 3."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(4, WORDS, (count, LENGTH), generator=draw)
    places = torch.rand(count, LENGTH - 6, generator=draw).argsort(1)[:, :3]
    rows = torch.arange(count)
    occurs = torch.randint(2, (count,), generator=draw).bool()
    words[rows[occurs], places[occurs, 0]] = 1
    words[rows, places[:, 1]], words[rows, places[:, 2]] = 2, 3
    ends = torch.randint(LENGTH - 6, LENGTH + 1, (count, 1), generator=draw)
    mask = (torch.arange(LENGTH) < ends).long()
    labels = 2 * occurs.long() + (places[:, 1] < places[:, 2]).long()
    return {"input_ids": words, "attention_mask": mask}, labels


# Detection


class Centres(nn.Module):
    """A list of images [3, 32, 32] -> for each its boxes [n, 4], scores [n] and labels [n].

    For each cell of 4 x 4 pixels the head says which shape has its middle there, where exactly, and how large it is.
    The number of boxes depends on the image, so the backbone is what can be pruned.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv(3, width), conv(width, 2 * width, 2), conv(2 * width, 2 * width), conv(2 * width, 4 * width, 2),
            conv(4 * width, 4 * width), conv(4 * width, 2 * width),
        )  # fmt: skip
        self.kinds, self.places = nn.Conv2d(2 * width, SHAPES, 1), nn.Conv2d(2 * width, 3, 1)
        nn.init.constant_(self.kinds.get_parameter("bias"), -3.0)

    def maps(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, 3, 8, 8] of kinds, and [N, 3, 8, 8] of middles and radii in cells."""
        features = self.backbone(torch.stack([*images]))
        return self.kinds(features), self.places(features)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        logits, places = self.maps(images)
        scores = logits.sigmoid()
        peaks = (scores == F.max_pool2d(scores, 3, 1, 1)) & (scores > 0.05)
        answers = []
        for score, place, peak in zip(scores, places, peaks, strict=True):
            kind, row, column = peak.nonzero().T
            y, x, radius = place[:, row, column]
            middle = 4 * torch.stack([column + x, row + y], 1)
            reach = 4 * radius.unsqueeze(1)
            boxes = torch.cat([middle - reach, middle + reach], 1).clamp(0, SIZE)
            answers.append({"boxes": boxes, "scores": score[kind, row, column], "labels": kind + 1})
        return answers


def detected(count: int, seed: int) -> Data:
    """Two shapes at most: more would hide each other."""
    images, _, kinds, boxes = scenes(count, seed, shown=2)
    targets = [{"boxes": box[kind > 0], "labels": kind[kind > 0]} for kind, box in zip(kinds, boxes, strict=True)]
    return [*images], targets


def centre_loss(maps: tuple[Tensor, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """Cross-entropy of the kinds in every cell, and the distance of middles and radii where an object is."""
    logits, places = maps
    wanted, near = torch.zeros_like(logits), []
    for number, target in enumerate(targets):
        boxes = target["boxes"] / 4
        middle, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1) / 2
        column, row = middle.long().clamp(max=logits.shape[-1] - 1).T
        wanted[number, target["labels"] - 1, row, column] = 1
        exact = torch.stack([middle[:, 1] - row, middle[:, 0] - column, radius])
        near.append((places[number][:, row, column] - exact).abs().sum())
    found = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum", pos_weight=torch.tensor(4.0))
    return (found + torch.stack(near).sum()) / len(targets)


# All of them


def entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Cross-entropy of logits, or of an output with `logits`."""
    return F.cross_entropy(getattr(outputs, "logits", outputs), labels)


def several(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, labels.float())


TASKS = {
    "segmentation": Task(UNet, segmented, entropy, "miou", "U-Net, shapes on noise"),
    "super-resolution": Task(Upscaler, shrunk, F.l1_loss, "psnr", "residual blocks, twice the size"),
    "regression": Task(partial(Body, SHAPES), areas, F.l1_loss, "mae", "convolutions, areas of shapes in percent"),
    "several labels": Task(partial(Body, SHAPES), present, several, "macro-f1", "convolutions, which shapes are there"),
    "keywords": Task(Keywords, spoken, entropy, "top1", "gated Conv1d and a GRU, the order of three tones"),
    "text": Task(encoder, sentences, entropy, "top1", "BERT of transformers, 3 layers of 64", rate=1e-3),
    "detection": Task(Centres, detected, centre_loss, "map", "a list of images, boxes of shapes", part="backbone"),
}  # fmt: skip
