"""Pruning a part of a network: the part is sliced or masked, and the whole is scored, counted, stored and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import amc
from amc.compression.inputs import Inputs
from amc.compression.settings import SearchConfig
from amc.errors import AmcError, BudgetError, DataError, ModelError, RunError
from amc.structure import inspect
from amc.structure.part import Part
from amc.zoo._torchvision import import_torchvision
from tests.commands import contents
from tests.detector import Detector, scenes, share_found, trained
from tests.fixtures.runs import make

EXAMPLE = [torch.zeros(1, 16, 16)]
QUICK: dict[str, Any] = {
    "episodes": 4,
    "recover": "none",
    "baselines": ("none",),
    "agent": "random",
    "part": "backbone",
}
DENSE_MACS = 16 * 256 * 9 + 24 * 64 * 9 * 16 + 8 * 64 * 9 * 24 + 8 * 16 * 9 * 24
REST_MACS = 8 * 16 * 8 + 64 * 8  # the convolutions `context` and `objects`; nothing is found in the empty example


def batches(count: int = 128) -> list[Any]:
    """Lists of images, as detectors take them, and targets of any kind."""
    images = scenes(count, 1)[0]
    return [([*part], [{"boxes": None}] * len(part)) for part in images.split(48)]


def compress(model: nn.Module | None = None, **changes: Any) -> amc.Result:
    given = {"calibration": batches(), "evaluate": share_found, "budget": "macs<=50%", **QUICK, **changes}
    return amc.compress(trained() if model is None else model, EXAMPLE, **given)


def torch_macs(network: nn.Module, *args: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*args)
    return counter.get_total_flops() // 2


def test_the_backbone_of_a_detector_is_pruned_and_recovered_and_the_whole_scored(tmp_path: Path) -> None:
    dense = trained()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    settings = {"recover": "calibration", "recover_time": 2.0, "budget": "macs<=30%", "episodes": 6}
    result = compress(run_dir=tmp_path / "run", test=lambda network: share_found(network, 77), **settings)
    slim: Any = result.model
    assert type(slim) is Detector
    assert not slim.training
    images = torch.stack(EXAMPLE)
    assert torch_macs(dense.backbone, images) == DENSE_MACS == result.summary["dense"]["macs"]
    assert torch_macs(slim.backbone, images) == result.summary["slim"]["macs"] <= 0.3 * DENSE_MACS
    assert torch_macs(slim, EXAMPLE) == torch_macs(slim.backbone, images) + REST_MACS
    for name in ("fine", "coarse"):  # what the rest reads keeps its channels
        assert slim.backbone.get_submodule(name).out_channels == 8
    slim_figures = result.summary["slim"]
    scored = slim_figures.get("score_recovered", slim_figures["score"])
    assert share_found(slim) == scored >= 0.5 < share_found(dense) == result.summary["dense"]["score"]
    assert slim_figures.get("test_recovered", slim_figures["test"]) == share_found(slim, 77)
    assert result.summary["recovery"]["outcome"] in ("recovered", "no nearer", "scores less")
    assert result.summary["certificate"]["passed"]
    assert result.summary["model"] == "Detector"
    costs = {"dense": DENSE_MACS, "slim": slim_figures["macs"]}
    for which, macs in costs.items():
        assert result.summary["pruned_part"]["part"][which]["macs"] == macs
        assert result.summary["pruned_part"]["whole"][which]["macs"] == macs + REST_MACS
    assert result.summary["pruned_part"] == json.loads((tmp_path / "run/summary.json").read_text())["pruned_part"]
    assert json.loads((tmp_path / "run/policy.json").read_text())["part"] == result.policy.part == "backbone"
    loaded = amc.load_run(tmp_path / "run", Detector(), EXAMPLE)
    assert type(loaded) is Detector
    assert all(torch.equal(value, slim.state_dict()[name]) for name, value in loaded.state_dict().items())
    page = (tmp_path / "run/report.html").read_text()
    assert "only &#39;backbone&#39; was pruned; costs and budgets are those of the part" in page
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("budget", ["macs<=60%", "params<=60%", "size<=65%"])
@pytest.mark.parametrize("method", ["channel", "fine-grained"])
def test_a_budget_may_be_that_of_the_whole_network(method: str, budget: str, tmp_path: Path) -> None:
    dense = trained()
    result = compress(budget=budget, method=method, count="whole", run_dir=tmp_path / "run", episodes=2)
    slim, metric = result.model, budget.partition("<=")[0]
    share = int(budget[-3:-1]) / 100
    counted, whole = result.summary["slim"], result.summary["dense"]
    assert whole["macs"] == torch_macs(dense, EXAMPLE)
    assert whole["params"] == sum(value.numel() for value in dense.parameters())
    assert "memory" not in counted  # nobody knows it of the whole
    assert counted[metric] <= share * whole[metric]
    nonzero = sum(int(torch.count_nonzero(value)) for value in slim.parameters())
    file = (tmp_path / "run/model.safetensors").stat().st_size
    assert file <= counted["size"]
    if method == "channel":
        assert counted["macs"] == torch_macs(slim, EXAMPLE)
        assert counted["params"] == sum(value.numel() for value in slim.parameters())
    else:
        assert torch_macs(slim, EXAMPLE) == whole["macs"]
        assert counted["params"] == nonzero
        assert set(result.masks) == {name for name in result.masks if name.startswith("backbone.")}
        assert set(result.masks) <= {name for name, _ in slim.named_parameters()}
    loaded = amc.load_run(tmp_path / "run", Detector(), EXAMPLE)
    assert all(torch.equal(value, slim.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_budget_that_only_the_part_could_hold_is_refused_for_the_whole() -> None:
    least = 1 - 0.9  # of the part; the rest adds to it
    with pytest.raises(BudgetError, match="cannot be reached"):
        compress(budget=f"macs<={100 * REST_MACS / (DENSE_MACS + REST_MACS) * least:.2f}%", count="whole")


@pytest.mark.parametrize("method", ["channel", "fine-grained"])
def test_a_stopped_search_is_resumed_to_the_same_bytes(method: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": method, "episodes": 6, "budget": "macs<=50%"}
    compress(run_dir=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        compress(run_dir=tmp_path / "run", **settings, observer=make.Watch(episode=3, agent="random"))
    assert (tmp_path / "run/prepared.safetensors").exists()
    compress(run_dir=tmp_path / "run", **settings, resume=True)
    whole, run = contents(tmp_path / "whole"), contents(tmp_path / "run")
    assert whole.keys() == run.keys()
    for name in ("journal.jsonl", "policy.json", "model.safetensors", "config.json"):
        assert whole[name] == run[name], name


def test_a_run_goes_on_with_its_own_part_and_count_only(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(run_dir=tmp_path / "run", observer=make.Watch(episode=2, agent="random"))
    for changes, message in (
        ({"part": "backbone.body"}, "started with part 'backbone', not 'backbone.body'"),
        ({"count": "whole"}, "started with count 'part', not 'whole'"),
    ):
        with pytest.raises(RunError, match=message):
            compress(run_dir=tmp_path / "run", resume=True, **changes)


class Gated(nn.Module):
    """A classifier whose control flow depends on its input; `trunk` is an ordinary network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 3, stride=2)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x).mean((2, 3))
        logits: Tensor = self.head(features if float(x.mean()) > -1e6 else -features)
        return logits


def labelled(model: nn.Module, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Images with the classes that the network gives them."""
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return [(images, model.eval()(images).argmax(1))]


def test_a_loader_scores_the_whole_network_with_its_standard_error_and_answers(tmp_path: Path) -> None:
    model = Gated()
    held, test = labelled(model, 600, 2), labelled(model, 80, 3)
    found = amc.compress(
        model, torch.zeros(1, 1, 8, 8), calibration=labelled(model, 64, 1), evaluate=held, test=test,
        run_dir=tmp_path / "run", **{**QUICK, "part": "trunk", "budget": "macs<=60%"},
    )  # fmt: skip
    images, labels = test[0]
    slim = found.summary["slim"]
    with torch.no_grad():
        right = (found.model(images).argmax(1) == labels).float().mean()
    assert slim["test"] == pytest.approx(float(right))
    assert found.summary["dense"]["test"] == 1.0
    assert slim["score_error"] > 0
    assert found.summary["finalists"]["images"] == 150  # a quarter, on which the finalists were compared
    assert (tmp_path / "run/answers.json").exists()
    again = amc.load_run(tmp_path / "run", Gated(), torch.zeros(1, 1, 8, 8))
    with torch.no_grad():
        assert torch.equal(again(images), found.model(images))


def test_a_sweep_of_a_part(tmp_path: Path) -> None:
    model = Gated()
    example, held = torch.zeros(1, 1, 8, 8), labelled(model, 600, 2)
    settings = {name: value for name, value in QUICK.items() if name != "agent"} | {"part": "trunk", "points": 2}
    given = {"calibration": labelled(model, 64, 1), "evaluate": held, "start": "80%", "end": "60%", **settings}
    found = amc.sweep(model, example, run_dir=tmp_path / "sweep", **given)
    for point in found.points:
        _images, _labels = held[0]
        assert type(point.model) is Gated
        counted = torch_macs(point.model.get_submodule("trunk"), example)
        assert counted == point.record["slim"]["macs"]
        assert 0 <= point.record["slim"]["unseen"] <= 1
    again = amc.sweep(model, example, run_dir=tmp_path / "sweep", resume=True, **given)
    assert again.summary == found.summary


def test_a_part_that_is_called_several_times_counts_as_often_in_the_whole() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.trunk = Gated().trunk

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            ours, theirs = self.trunk(one), self.trunk(other)
            return (ours - theirs).mean((2, 3)) if float(ours.sum()) > -1e9 else ours

    model, images = Pairs(), torch.randn(32, 1, 8, 8)
    found = amc.compress(
        model, (images[:1], images[:1]), calibration=[(images, images.flip(0))],
        evaluate=lambda network: -float(network(images, images.flip(0)).square().mean()),
        **{**QUICK, "part": "trunk", "count": "whole", "budget": "macs<=60%"},
    )  # fmt: skip
    assert found.summary["pruned_part"]["calls"] == 2
    assert found.summary["dense"]["macs"] == torch_macs(model, images[:1], images[:1])
    assert found.summary["slim"]["macs"] == torch_macs(found.model, images[:1], images[:1])
    assert found.summary["slim"]["macs"] <= 0.6 * found.summary["dense"]["macs"]
    assert any("calls part 'trunk' 2 times" in warning for warning in found.summary["warnings"])


def test_the_users_function_gets_the_whole_network_in_eval_mode_and_may_change_it() -> None:
    seen = []

    def evaluate(network: nn.Module) -> float:
        seen.append((type(network), any(module.training for module in network.modules())))
        score = share_found(network)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        return score

    model = trained().train()
    try:
        result = compress(model, evaluate=evaluate)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert set(seen) == {(Detector, False)}
    assert share_found(result.model) == result.summary["slim"]["score"]


def test_a_loss_of_recovery_gets_the_outputs_of_the_part() -> None:
    seen = []

    def loss(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
        seen.append((*sorted(ours), *ours["fine"].shape[1:]))
        return (ours["fine"] - theirs["fine"]).square().mean()

    compress(distill_loss=loss, recover="calibration", recover_time=0.3, episodes=1, finalists=0)
    assert set(seen) == {("coarse", "fine", 8, 8, 8)}


BAD_SETTINGS = [
    ({"part": None, "count": "whole"}, "count whole is for a part of a network"),
    ({"part": ""}, "part is empty: name a submodule"),
    ({"part": 3}, "part must be text, got 3"),
    ({"part": "bakcbone"}, "Detector has no part 'bakcbone'; the nearest are backbone"),
    ({"part": "classify"}, "never calls its part 'classify' on the example input"),
    ({"part": "context"}, "there is nothing to prune in Conv2d"),
    ({"count": "both"}, "count must be part or whole, got 'both'"),
    ({"engine": "onnxruntime"}, "engine onnxruntime needs a network that can be exported as a whole"),
    ({"bf16": True}, "bf16 needs a network that can be exported as a whole"),
    ({"count": "whole", "budget": "memory<=50%"}, "latency and memory are measured of the part alone"),
    ({"count": "whole", "budget": "latency<=50%"}, "latency and memory are measured of the part alone"),
    ({"calibration": [torch.zeros(4, 16, 16)]}, "a calibration batch is a Tensor, and .* a list of images"),
    ({"calibration": [([torch.zeros(3, 16, 16)],)]}, "Detector fails on a calibration batch"),
    ({"calibration": []}, "the calibration set is empty"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS, ids=[text[:40] for _, text in BAD_SETTINGS])
def test_bad_input_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AmcError, match=message) as refusal:
        compress(**changes)
    assert "\n" not in str(refusal.value)


def test_calibration_batches_of_every_form_reach_the_part() -> None:
    images = scenes(6, 1)[0]
    forms: list[Any] = [images, [*images], tuple(images), (images, torch.zeros(6)), ([*images], ["a"] * 6)]
    inputs = Inputs(Detector(), EXAMPLE, forms).of_part("backbone")
    found, _ = inputs.batches(1000, pytest.fail)
    assert len(found) == len(forms)
    assert all(torch.equal(call.args[0], images) for call in found)
    limited, digest = inputs.batches(7, pytest.fail)
    assert len(limited) == 2  # whole batches, until there are seven images
    assert digest != inputs.batches(1000, pytest.fail)[1]


def test_recorded_inputs_are_limited_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("amc.compression.inputs.RECORDED", 2 * 48 * 16 * 16 * 4 + 100)
    inputs = Inputs(Detector(), EXAMPLE, batches(192)).of_part("backbone")
    assert [len(call.args[0]) for call in inputs.batches(1000, told.append)[0]] == [48, 48]
    assert told == ["the inputs of part 'backbone' fill 0 GiB after 96 calibration images; the others are left out"]


def test_a_part_that_no_calibration_image_reaches_is_refused() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Gated().trunk

        def forward(self, x: Tensor) -> Tensor:
            return self.trunk(x) if float(x.mean()) >= 0 else x

    inputs = Inputs(Choosy(), torch.zeros(1, 1, 8, 8), [-torch.ones(4, 1, 8, 8)]).of_part("trunk")
    with pytest.raises(DataError, match="no calibration batch reaches part 'trunk'"):
        inputs.batches(10, pytest.fail)


def test_settings_of_earlier_runs_have_no_part() -> None:
    old = {name: value for name, value in SearchConfig().to_json().items() if name not in ("part", "count")}
    assert SearchConfig.from_json(old) == SearchConfig()


def test_a_warm_start_needs_the_same_part(tmp_path: Path) -> None:
    trunk = Gated().trunk
    model = nn.Sequential(trunk, nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3))
    given = {**QUICK, "agent": "planner", "budget": "macs<=60%", "part": "0"}
    given |= {"calibration": labelled(model, 64, 1), "evaluate": labelled(model, 64, 2), "finalists": 0}
    example = torch.zeros(1, 1, 8, 8)
    amc.compress(model, example, run_dir=tmp_path / "first", **given)
    again = amc.compress(model, example, **given, warm_start=tmp_path / "first")
    assert again.summary["episodes"] == 4
    with pytest.raises(RunError, match=r"was scored with part '0', not None"):
        amc.compress(model, example, **{**given, "part": None}, warm_start=tmp_path / "first")


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """In plain torch: not every installation of torchvision has its compiled operators."""
    import torchvision.ops.boxes

    left, keep = scores.argsort(descending=True), []
    while len(left):
        keep.append(left[0])
        overlap = torchvision.ops.boxes.box_iou(boxes[left[:1]], boxes[left[1:]])[0]
        left = left[1:][overlap <= threshold]
    return torch.stack(keep) if keep else left


def torchvision_detector(name: str, monkeypatch: pytest.MonkeyPatch, **sizes: int) -> nn.Module:
    """With random weights; as the real one, it makes boxes inside its forward."""
    detection = import_torchvision().models.detection
    monkeypatch.setattr("torchvision.ops.boxes.nms", nms)
    torch.manual_seed(0)
    network: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3, **sizes)
    return network.eval()


IMAGES = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]


def test_the_backbone_of_an_ssd_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torchvision_detector("ssdlite320_mobilenet_v3_large", monkeypatch)
    seen = []

    def evaluate(whole: nn.Module) -> float:
        (found, other) = whole(IMAGES)
        seen.append({key: tuple(value.shape[1:]) for key, value in found.items()})
        return float(found["scores"].sum() + other["scores"].sum())

    cheap = {"episodes": 1, "finalists": 0, "keep_sets": 0, "bn_images": 0, "ranking": "magnitude"}
    result = amc.compress(
        network, IMAGES[:1], calibration=[IMAGES], evaluate=evaluate, **{**QUICK, **cheap}, reconstruct=False,
        budget="macs<=50%,params<=60%",
    )  # fmt: skip
    slim, dense = result.model.get_submodule("backbone"), network.get_submodule("backbone")
    image = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        ours, theirs = slim(image), dense(image)
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert torch_macs(slim, image) == result.summary["slim"]["macs"] <= 0.5 * torch_macs(dense, image)
    assert seen[0] == {"boxes": (4,), "scores": (), "labels": ()}
    assert result.summary["pruned_part"]["whole"]["dense"]["macs"] > result.summary["dense"]["macs"]


def test_the_backbone_of_a_retinanet_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50 with a pyramid; the weights of its batch norms are buffers."""
    network = torchvision_detector("retinanet_resnet50_fpn", monkeypatch, min_size=64, max_size=64)
    part = Part.of(network, IMAGES[:1], "backbone")
    structure = inspect(part.module, part.example)
    assert structure.prunable_macs() > 0.99
    assert structure.macs == torch_macs(part.module, *part.example.args)
    part.check(structure)
    policy = amc.Policy.of(
        {group.name: range(group.size // 2) for group in structure.groups},
        sizes={group.name: group.size for group in structure.groups}, part="backbone",
    )  # fmt: skip
    slim = amc.apply_policy(network, IMAGES[:1], policy, structure)
    assert torch_macs(slim.get_submodule("backbone"), *part.example.args) < 0.4 * structure.macs
    with torch.no_grad():
        assert [sorted(found) for found in slim(IMAGES)] == [["boxes", "labels", "scores"]] * 2


def test_what_cannot_be_exported_whole_gets_the_advice() -> None:
    with pytest.raises(ModelError, match=r"add part='backbone' \(--part backbone\)"):
        amc.inspect(Detector(), EXAMPLE)
