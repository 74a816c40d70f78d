"""Runs side by side from their files: what is read, what is refused, which network is taken, what the page says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from amc.errors import AmcError, RunError
from amc.report.charts.drawing import NARROW, WIDE
from amc.report.charts.front import FrontChart, FrontPoint, describe_front, front_chart
from amc.report.compare.choice import Answers, choose, front
from amc.report.compare.compared import Compared, compared
from amc.report.compare.entries import label_of, read_entries
from amc.report.compare.page import network_rows, write_comparison
from amc.run.directory import RunDir
from amc.search.statistics import PairedDrop
from tests.report.pages import Page, words
from tests.report.runs import FRACTIONS, make_guaranteed_run, make_run, make_schedule, make_unfinished_run


def change(run: RunDir, **changes: Any) -> Path:
    """The run with other fields in its summary; those of `slim` and `dense` are added to what is there."""
    summary = run.read_json("summary.json")
    for name, value in changes.items():
        summary[name] = {**summary[name], **value} if name in ("slim", "dense") else value
    run.write_json("summary.json", summary)
    return run.path


def two(tmp_path: Path, **second: Any) -> list[Path]:
    """Two finished runs; the second is smaller and worse."""
    slim = {"macs": 12_000_000, "params": 90_000, "score_finetuned": 0.8511, "test_finetuned": 0.8490}
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", budget="macs<=30%")
    return [a.path, change(b, **{"slim": slim, "budget": "macs<=30%", **second})]


def answers(*lost: int, images: int = 400, right: int = 360, unseen: bool | None = True) -> Answers:
    """The first network is right on `right` images, and each other on so many fewer, none of them gained."""
    labels = [label_of(index) for index in range(len(lost) + 1)]
    wrong = dict(zip(labels, (0, *lost), strict=True))

    def pair(one: str, other: str) -> PairedDrop:
        less = wrong[other] - wrong[one]
        return PairedDrop(images, max(0, less), max(0, -less))

    return Answers(
        images,
        unseen,
        {label: (right - wrong[label]) / images for label in labels},
        {label: ((right + 4) / images, PairedDrop(images, wrong[label] + 4, 0)) for label in labels},
        {(one, other): pair(one, other) for one in labels for other in labels if one != other},
    )


def test_the_front_is_what_no_other_beats_in_both() -> None:
    points = [("A", 9.0, 0.9), ("B", 5.0, 0.8), ("C", 6.0, 0.7), ("D", 3.0, 0.8), ("E", 3.0, 0.8), ("F", 1.0, 0.2)]
    assert front(points) == ("F", "D", "A")

    def beaten(label: str, cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for other, c, s in points if other != label)

    assert set(front(points)) == {point[0] for point in points if not beaten(*point)} - {"E"}


def test_the_cheapest_within_one_standard_error_of_the_best_is_taken() -> None:
    costs = {"A": 9.0, "B": 5.0, "C": 2.0}
    # 2 images of 400: 0.5 points, and the standard error is sqrt(2 + 4 - 4 / 400) / 400 = 0.61 points.
    close = answers(2, 20)
    assert close.pairs["A", "B"].standard_error == pytest.approx(math.sqrt(5.99) / 400)
    found = choose(close.scores, costs, close)
    assert (found.taken, found.best, found.equals) == ("B", "A", ("A", "B"))
    # 3 images: 0.75 points, and sqrt(3 + 4 - 9 / 400) / 400 = 0.66.
    far = answers(3, 20)
    assert choose(far.scores, costs, far).taken == "A"
    assert choose(far.scores, costs, far).equals == ("A",)


def test_without_answers_the_best_score_is_taken_and_equal_scores_by_cost() -> None:
    assert choose({"A": 0.9, "B": 0.8999}, {"A": 9.0, "B": 1.0}, None).taken == "A"
    assert choose({"A": 0.9, "B": 0.9}, {"A": 9.0, "B": 1.0}, None).taken == "B"


def test_labels_go_on_after_z() -> None:
    assert [label_of(index) for index in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_entries_have_the_scores_and_costs_of_the_files(tmp_path: Path) -> None:
    a, b = read_entries(two(tmp_path))
    assert (a.label, a.goal, a.score, a.test, a.slim("macs")) == ("A", "macs<=50%", 0.8622, 0.8574, 20_158_912)
    assert (b.label, b.goal, b.score, b.test, b.slim("macs")) == ("B", "macs<=30%", 0.8511, 0.8490, 12_000_000)
    assert (a.dense("score"), a.baseline("uniform")) == (0.8841, 0.7236)
    assert [(kept.kept, kept.size) for kept in a.groups.values()] == [
        (group["kept"], group["size"]) for group in RunDir(a.run.path).read_json("summary.json")["groups"]
    ]


def test_a_schedule_is_its_last_round_beside_the_first_dense_network(tmp_path: Path) -> None:
    schedule = make_schedule(tmp_path / "rounds")
    last = RunDir(schedule.file("round-4"))
    change(last, dense={"macs": 22_000_000}, slim={"macs": 10_000_000}, budget="macs<=9000")
    other = make_run(tmp_path / "a")
    change(RunDir(schedule.file("round-1")), method="fine-grained")
    entry = read_entries([schedule.path, other.path])[0]
    assert (entry.name, entry.run.path, entry.first.path) == (
        str(schedule.path), schedule.file("round-4"), schedule.file("round-1"),
    )  # fmt: skip
    assert (entry.slim("macs"), entry.dense("macs")) == (10_000_000, 40_551_808)
    assert entry.goal == f"macs<={100 * FRACTIONS[-1]:g}%"
    assert entry.summary["seconds"] == pytest.approx(4 * 214.8)
    assert entry.summary["episodes"] == 4 * 30


def sweep(path: Path, *, points: int = 2, planned: int = 2) -> Path:
    """A sweep; its points are runs of their own."""
    run = RunDir.create(path, {"sweep": {"metric": "macs", "start": "50%", "end": "30%", "points": planned}})
    made = [make_run(path / f"point-{number}", budget=f"macs<={60 - 10 * number}%") for number in range(1, points + 1)]
    for number, point in enumerate(made, start=1):
        change(point, budget=f"macs<={60 - 10 * number}%")
    rows = [{"budget": "macs", "run": point.path.name, "slim": {"macs": 1}} for point in made]
    run.write_json("summary.json", {"points": rows})
    return path


def test_every_point_of_a_sweep_is_an_entry(tmp_path: Path) -> None:
    entries = read_entries([sweep(tmp_path / "curve"), make_run(tmp_path / "a").path])
    assert [entry.name for entry in entries] == [
        str(tmp_path / "curve" / "point-1"), str(tmp_path / "curve" / "point-2"), str(tmp_path / "a"),
    ]  # fmt: skip
    assert [entry.goal for entry in entries] == ["macs<=50%", "macs<=40%", "macs<=50%"]


def refused(*paths: Path) -> str:
    with pytest.raises(RunError) as error:
        read_entries(paths)
    return str(error.value)


def test_unfinished_runs_are_refused(tmp_path: Path) -> None:
    done, cut = make_run(tmp_path / "a").path, make_unfinished_run(tmp_path / "cut", scored=12)
    assert refused(done, cut.path) == (
        f"'{cut.path}' is not finished (12 of 100 episodes); run `amc resume {cut.path}` first, or leave it out"
    )
    curve, rounds = sweep(tmp_path / "curve", points=1), make_schedule(tmp_path / "rounds", finished=3).path
    assert "is not finished (1 of 2 points)" in refused(done, curve)
    assert "is not finished (3 of 4 rounds)" in refused(done, rounds)
    RunDir(done).write_json(
        "finetune-state.json", {"settings": {}, "candidates": 1, "candidate_epochs": 1, "measured": []}
    )
    assert f"finish it with `amc finetune {done}`" in refused(done, rounds / "round-1")


def test_a_run_is_compared_with_another_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a").path
    assert refused(run) == (
        f"'{run}' alone cannot be compared; name two runs or more, or a sweep of two points or more"
    )
    assert refused(run, tmp_path / "a" / ".." / "a").startswith("one run is given twice: as ")
    curve = sweep(tmp_path / "curve")
    assert "given twice" in refused(curve, curve / "point-1")
    assert "no run directory" in refused(run, tmp_path / "nowhere")
    assert "holds no run" in refused(run, tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    run = RunDir(b)
    change(run, files=dict(run.digests(["model.safetensors"])))
    read_entries([a, b])
    (b / "model.safetensors").write_bytes(b"another network")
    assert "is not the file that summary.json describes" in refused(a, b)


@pytest.mark.parametrize("key", ["macs", "score"])
def test_a_summary_without_a_figure_that_must_be_there_is_refused(tmp_path: Path, key: str) -> None:
    a, b = two(tmp_path)
    change(RunDir(b), slim={key: None})
    assert refused(a, b) == f"'{b / 'summary.json'}' has no slim.{key}; restore the file from a copy"


def configured(path: Path, **config: Any) -> Path:
    run = make_run(path)
    run.write_json("config.json", {**run.config(), **config})
    return path


@pytest.mark.parametrize(
    ("config", "difference"),
    [
        ({"data": "imagefolder:other"}, "the data (cifar10:data and imagefolder:other)"),
        ({"data": None}, "the data (cifar10:data and that of resnet20)"),
        ({"data": None, "model": None}, "the data (cifar10:data and given in Python)"),
        ({"evaluate": "mine:score"}, "the score's function (a named score and mine:score)"),
    ],
)
def test_what_differs_is_said(tmp_path: Path, config: Mapping[str, Any], difference: str) -> None:
    a, b = make_run(tmp_path / "a").path, configured(tmp_path / "b", **config)
    assert refused(a, b) == (
        f"'{a}' and '{b}' cannot be compared: they differ in {difference}; compare runs on the same data with the same "
        "score"
    )


def test_another_score_is_said_and_so_are_several_differences(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a").path, configured(tmp_path / "b", data="digits", score="top5")
    assert "in the data (cifar10:data and digits) and in the score (top-1 accuracy and top-5 accuracy);" in refused(
        a, b
    )


def test_two_spellings_of_one_folder_are_the_same_data(tmp_path: Path) -> None:
    a = configured(tmp_path / "a", data=f"cifar10:{tmp_path / 'data'}")
    b = configured(tmp_path / "b", data=f"cifar10:{tmp_path}/x/../data")
    assert [entry.label for entry in read_entries([a, b])] == ["A", "B"]


def with_images(path: Path, digest: str, **config: Any) -> Path:
    """A run whose journal names its search images by this digest."""
    configured(path, **config)
    journal = path / "journal.jsonl"
    header, *lines = journal.read_text().splitlines()
    origin = {"environment": {}, "dense_score": 0.9, "data": {"search": digest}}
    journal.write_text("\n".join([json.dumps({**json.loads(header), "origin": origin}), *lines, ""]))
    return path


def test_moved_data_is_known_by_its_images(tmp_path: Path) -> None:
    a, b = (with_images(tmp_path / name, "same", data=f"cifar10:{name}") for name in "ab")
    assert len(read_entries([a, b])) == 2
    c = with_images(tmp_path / "c", "other", data="cifar10:c")
    assert "they differ in the data" in refused(a, c)
    d, e = (with_images(tmp_path / name, name, data=None, model=None) for name in "de")
    assert "in the data (given in Python and given in Python)" in refused(d, e)


def compare(paths: list[Path], found: Answers | None = None, **options: Any) -> Compared:
    return compared(read_entries(paths), found, **options)


def test_the_sentence_names_the_rule_and_the_figures(tmp_path: Path) -> None:
    runs = two(tmp_path)
    assert compare(runs, answers(2)).sentence() == (
        f"Take B ({runs[1]}): of the 2 networks within one standard error of the best score it has the fewest MACs "
        f"(12.00 M); it scores 89.50%, −0.50 ± 0.61 points against A ({runs[0]})."
    )
    assert compare(runs, answers(20)).sentence() == (
        f"Take A ({runs[0]}): it has the best score, 90.00%, and no other is within one standard error of it."
    )
    assert (
        compare(runs[::-1], answers(2))
        .sentence()
        .endswith("it has the fewest MACs (12.00 M), and the best score itself, 90.00%.")
    )
    unsure = compare(runs).sentence()
    assert unsure.startswith(f"Take A ({runs[0]}): it has the best score, 86.22%.")
    assert "differences have no uncertainty" in unsure


def test_the_cost_that_decides(tmp_path: Path) -> None:
    runs = two(tmp_path)
    assert compare(runs).cost == "macs"
    assert compare(runs, cost="params").cost == "params"
    assert compare(runs, cost="FLOPs").cost == "macs"
    masked = make_guaranteed_run(tmp_path / "masked").path
    for run in (*runs, masked):
        change(RunDir(run), slim={"size": 400_000})
    assert compare([runs[0], masked]).cost == "size"
    change(RunDir(runs[0]), budget="params<=50%")
    assert compare([runs[0], masked]).cost == "params"  # both searched for parameters
    with pytest.raises(AmcError, match=r"not every run has the cost 'latency', measured alike; .*: macs, params, size"):
        compare(runs, cost="latency")


def timed(run: Path, milliseconds: float, **place: Any) -> None:
    change(RunDir(run), slim={"latency": milliseconds}, latency={"runtime": "onnxruntime", "threads": 1, **place})


def test_latencies_are_compared_only_if_measured_alike(tmp_path: Path) -> None:
    runs = two(tmp_path)
    timed(runs[0], 4.0)
    timed(runs[1], 2.5)
    same = compare(runs, answers(2), cost="latency")
    assert same.costs("latency") == {"A": 4.0, "B": 2.5}
    assert "it has the lowest latency (2.5 ms)" in same.sentence()
    timed(runs[1], 2.5, threads=4)
    other = compare(runs, answers(2))
    assert other.costs("latency") == {}
    assert "Latencies were measured on different runtimes or machines, so that they are not compared." in other.notes


def test_what_amc_latency_measured_last_is_compared(tmp_path: Path) -> None:
    """With the weights that it was measured of, and unless the search measured for itself."""
    runs = two(tmp_path)
    for run, milliseconds in zip(map(RunDir, runs), (4.0, 2.5), strict=True):
        timing = {"runtime": "onnxruntime", "runtime_version": "1.31", "threads": 1, "batch": 1, "precision": "float32"}
        networks = {"dense": {"latency_ms": 8.0}, "slim": {"latency_ms": milliseconds}}
        weights = run.digests(["model.safetensors"])["model.safetensors"]
        kept = {"first": {**timing, "threads": 2}, "last": {**timing, "networks": networks, "weights": weights}}
        kept["of others"] = {**kept["last"], "weights": "0" * 64}
        run.write_json("latency.json", {"records": kept})
    assert compare(runs, answers(2), cost="latency").costs("latency") == {"A": 4.0, "B": 2.5}
    timed(runs[0], 3.0)
    assert compare(runs).costs("latency") == {}  # one by its search, elsewhere
    assert compare(runs).entry("A").slim("latency") == 3.0


def test_cautions(tmp_path: Path) -> None:
    runs = two(tmp_path)
    assert compare(runs, answers(2, images=100_000, right=90_000)).notes == ()
    assert compare(runs, answers(20, images=100, right=90)).notes == ()  # the best is taken: nothing is doubtful
    assert "On 100 images the standard error is 2.2 points" in compare(runs, answers(1, images=100, right=90)).notes[0]
    plain = make_run(tmp_path / "plain", finetuned=False).path
    masked = make_guaranteed_run(tmp_path / "masked").path
    notes = compare([runs[0], plain, masked]).notes
    assert "B, C: not fine-tuned, unlike the others; fine-tuning may raise the score." in notes
    assert any(note.startswith("C: masked; MACs and parameters count nonzero weights only") for note in notes)
    other = configured(tmp_path / "other", weights_digest="2:x")
    another = configured(tmp_path / "another", weights_digest="2:y")
    assert "The runs began with different dense networks." in compare([other, another]).notes
    assert compare([other, plain]).shared_dense


def test_groups_that_differ_most_come_first(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    for run, kept in ((a, (8, 4, 1)), (b, (6, 4, 8))):
        groups = [{"name": n, "size": 8, "kept": k} for n, k in zip("xyz", kept, strict=True)]
        change(RunDir(run), groups=groups if run == a else [*groups, {"name": "only", "size": 4, "kept": 1}])
    rows = compare([a, b]).groups()
    assert [(row.name, row.shares) for row in rows] == [
        ("z", (0.125, 1.0)), ("x", (1.0, 0.75)), ("y", (0.5, 0.5)), ("only", (None, 0.25)),
    ]  # fmt: skip
    assert [row.spread for row in rows] == [0.875, 0.25, 0, 0]


def test_the_record_is_plain_json_with_all_figures(tmp_path: Path) -> None:
    record = json.loads(json.dumps(compare(two(tmp_path), answers(2)).to_json()))
    assert (record["score"], record["images"], record["unseen"], record["shared_dense"]) == ("top1", 400, True, True)
    assert [network["compared"] for network in record["networks"]] == [0.9, 0.895]
    against = record["networks"][1]["against_dense"]
    assert (against["dense"], against["difference"], against["lost"], against["gained"]) == (0.91, -0.015, 6, 0)
    error = math.sqrt(5.99) / 400
    assert record["differences"][0] == {
        "of": "B", "against": "A", "difference": -0.005, "standard_error": error, "lost": 2, "gained": 0,
    }  # fmt: skip
    assert record["fronts"]["macs"] == ["B", "A"]
    assert record["recommendation"]["network"] == "B"
    assert record["groups"][0].keys() == {"name", "kept"}


def page(found: Compared, path: Path) -> tuple[str, Page]:
    html = write_comparison(found, path).read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_shows_figures_with_their_uncertainty(tmp_path: Path) -> None:
    runs = two(tmp_path)
    text = words(page(compare(runs, answers(2)), tmp_path / "compare.html")[1])
    assert f"Take B ({runs[1]})" in text
    assert "The rule: take the cheapest network whose score is no more than one standard error below the best" in text
    assert "on 400 images that no search scored" in text
    # uniform, random, pruned, fine-tuned, test, compared, against dense, against the best
    assert re.search(r"A 72\.36% \d\d\.\d\d% 76\.42% 86\.22% 85\.74% 90\.00% −1\.00 ± 0\.71 the best", text)
    assert re.search(r"B 72\.36% \d\d\.\d\d% 76\.42% 85\.11% 84\.90% 89\.50% −1\.50 ± 0\.79 −0\.50 ± 0\.61", text)
    assert "A 20.16 M 49.71% 141.3 k 52.39%" in text
    assert "Settings that differ Setting A B budget macs<=50% macs<=30%" in text


def test_costs_that_only_some_runs_have_are_shown_but_not_drawn(tmp_path: Path) -> None:
    runs = two(tmp_path)
    change(RunDir(runs[1]), dense={"memory": 8192}, slim={"memory": 4096, "latency": 2.5})
    found = compare(runs, answers(2))
    html, made = page(found, tmp_path / "compare.html")
    text = words(made)
    assert "Network MACs Parameters File Memory Latency dense 40.55 M 269.7 k – 8.192 kB –" in text
    assert "A 20.16 M 49.71% 141.3 k 52.39% – – – B 12.00 M 29.59% 90.00 k 33.37% – 4.096 kB 50.00% 2.5 ms" in text
    assert html.count('<svg class="chart') == 4  # MACs and parameters
    change(RunDir(runs[0]), slim={"memory": 8192})
    assert compare(runs, answers(2), cost="memory").sentence().count("it has the least memory (4.096 kB)") == 1


def test_a_difference_within_its_error_is_grey(tmp_path: Path) -> None:
    html, _ = page(compare(two(tmp_path), answers(2)), tmp_path / "compare.html")
    assert '<span class="soft">−0.50 ± 0.61</span>' in html
    assert '<span class="">−1.50 ± 0.79</span>' in html


def test_without_answers_the_page_shows_no_uncertainty(tmp_path: Path) -> None:
    text = words(page(compare(two(tmp_path), notes=["No data here."]), tmp_path / "compare.html")[1])
    assert "No data here." in text
    assert "±" not in text
    assert "−1.11" in text
    assert "one standard error" not in text


def test_the_page_is_one_offline_file_with_the_data_of_every_chart(tmp_path: Path) -> None:
    runs = two(tmp_path)
    RunDir(runs[0]).write_text("report.html", "<p>a run")
    html, made = page(compare(runs, answers(2)), tmp_path / "compare & see.html")
    assert "://" not in html
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(made.tags)
    assert [value for name, value in made.attributes if name == "href"] == ["a/report.html"]
    ids = [value for name, value in made.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert html.count('<svg class="chart') == 4  # two costs, each wide and narrow
    assert html.count("The chart's data") == 2
    assert words(made).count("A 20.16 M 90.00% on the front") == 1
    assert made.tags.count("table") == made.tags.count("thead")


def test_a_row_is_linked_only_to_a_page_that_exists(tmp_path: Path) -> None:
    runs = two(tmp_path)
    RunDir(runs[0]).write_text("report.html", "<p>a run")
    assert [row.link for row in network_rows(compare(runs), tmp_path / "b")] == ["../a/report.html", ""]


def test_a_lower_error_is_better(tmp_path: Path) -> None:
    runs = two(tmp_path)
    for run, score in zip(runs, (-0.25, -0.5), strict=True):
        change(RunDir(run), score="mse", slim={"score": score, "score_finetuned": score}, dense={"score": -0.2})
    found = compare(runs)
    assert found.sentence().startswith(f"Take A ({runs[0]}): it has the lowest error, 0.25.")
    assert network_rows(found)[1].from_best.text == "+0.25"


CHART = FrontChart(
    [
        FrontPoint("A", 20e6, 0.99, None, on_front=True),
        FrontPoint("B", 12e6, 0.985, 0.02, on_front=True, taken=True),
        FrontPoint("C", 20.1e6, 0.98, 0.02, on_front=False),
    ],
    0.995, "MACs", "macs", percent=True,
)  # fmt: skip


def drawn(name: str = "macs-wide") -> ET.Element:
    return ET.fromstring(str(front_chart(CHART, WIDE if name.endswith("wide") else NARROW, name=name)))


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in svg.iter() if element.get("class") == name]


def test_the_chart_joins_the_front_and_rings_the_one_to_take() -> None:
    svg = drawn()
    dots = {str(dot[0].text)[0]: dot for kind in ("c-tuned", "c-explore") for dot in of_class(svg, kind)}
    assert set(dots) == {"A", "B", "C"}
    assert [str(dot[0].text) for dot in of_class(svg, "c-explore")] == ["C: 98.00% at 20.10 M"]
    places = [(float(dots[label].get("cx", "")), float(dots[label].get("cy", ""))) for label in "BA"]
    assert of_class(svg, "c-best")[0].get("d") == "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    assert [float(ring.get("cx", "")) for ring in of_class(svg, "c-chosen")] == [places[0][0]]
    assert places[0][0] < places[1][0]  # cheaper is further left
    assert places[0][1] > places[1][1]  # better is higher


def test_no_axis_and_no_error_goes_above_100_percent() -> None:
    svg = drawn()
    marks = [str(mark.text) for mark in of_class(svg, "tick")]
    assert "100%" in marks
    assert not [mark for mark in marks if mark.startswith("10") and mark not in ("100%", "10 M")]
    assert all(float(bar.get("y2", "")) >= WIDE.top for bar in of_class(svg, "c-gain"))
    assert len(of_class(svg, "c-gain")) == 2


@pytest.mark.parametrize("name", ["macs-wide", "macs-narrow"])
def test_letters_do_not_cover_each_other(name: str) -> None:
    letters = [label for label in of_class(drawn(name), "label") if label.text in ("A", "B", "C")]
    places = [(float(letter.get("x", "")), float(letter.get("y", ""))) for letter in letters]
    assert len(places) == 3
    assert all(
        abs(x - a) >= 12 or abs(y - b) >= 12
        for index, (x, y) in enumerate(places)
        for a, b in places[index + 1 :]
    )  # fmt: skip


def test_the_description_says_what_the_chart_shows() -> None:
    assert describe_front(CHART) == (
        "The dense network scores 99.50%. B: 98.50% at 12.00 M, on the front. A: 99.00% at 20.00 M, on the front. "
        "C: 98.00% at 20.10 M, behind the front."
    )
