import re
from itertools import pairwise
from pathlib import Path

import pytest

from amc.errors import RunError
from amc.report import render_report
from amc.report.charts.drawing import NARROW, WIDE
from amc.report.charts.rounds import RoundPoint, RoundsCurve, describe_rounds, rounds_chart
from amc.report.schedule import render_schedule, schedule_rows
from tests.report.pages import Page, render, words
from tests.report.runs import make_schedule


def test_every_round_has_its_row_its_mark_and_its_link(tmp_path: Path) -> None:
    page = render(make_schedule(tmp_path / "run"))
    text = words(page)
    assert "finished: 4 of 4 rounds" in text
    assert "fine-grained pruning in 4 rounds, to 50%, 35%, 25%, 20%, 100 episodes a round, seed 0" in text
    assert "dense 40.55 M 269.7 k 1.084 MB 88.41% 87.90%" in text
    assert "round 1 50% 55.00% 50.00% 560.0 kB 85.00% 88.20% 87.60%" in text
    assert "round 4 20% 25.00% 20.00% 224.0 kB 76.00% 87.00% 86.40%" in text
    assert "Parameters left 20.00% 53.94 k of 269.7 k 5.00× fewer" in text
    links = [value for name, value in page.attributes if name == "href"]
    assert links == [f"round-{number}/report.html" for number in (1, 2, 3, 4)]
    assert all((tmp_path / "run" / str(link)).is_file() for link in links)
    assert "on most runtimes it runs no faster" in text


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_schedule_under_way_shows_what_there_is(tmp_path: Path, finished: int) -> None:
    run = make_schedule(tmp_path / "run", finished=finished, method="channel")
    page = render(run)
    text = words(page)
    assert f"not finished: {finished} of 4 rounds" in text
    assert ("No round is finished yet" in text) == (finished == 0)
    assert "round 4 20% – – – – – –" in text
    assert len([name for name, _ in page.attributes if name == "href"]) == finished
    assert "runs no faster" not in text


def test_a_round_with_a_page_but_no_result_is_linked(tmp_path: Path) -> None:
    run = make_schedule(tmp_path / "run", finished=1)
    (run.path / "round-2").mkdir()
    (run.path / "round-2" / "report.html").write_text("<p>searching")
    assert [value for name, value in render(run).attributes if name == "href"] == [
        "round-1/report.html",
        "round-2/report.html",
    ]


@pytest.mark.parametrize("name", ["javascript:alert(1)//", "../other", "/etc", "http://a/b"])
def test_only_directories_of_the_run_are_linked(tmp_path: Path, name: str) -> None:
    run = make_schedule(tmp_path / "run", finished=1)
    summary = run.read_json("summary.json")
    summary["rounds"][0]["run"] = name
    run.write_json("summary.json", summary)
    assert "href" not in [attribute for attribute, _ in render(run).attributes]


def test_one_offline_page_without_scripts_that_can_be_read_aloud(tmp_path: Path) -> None:
    run = make_schedule(tmp_path / "run")
    page = render(run)
    html = run.file("report.html").read_text(encoding="utf-8")
    assert "://" not in html
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = {part for name, value in page.attributes if name == "aria-labelledby" for part in (value or "").split()}
    assert referred <= set(ids)
    assert page.tags.count("table") == page.tags.count("thead")


def test_either_function_renders_a_schedule_and_twice_is_the_same(tmp_path: Path) -> None:
    run = make_schedule(tmp_path / "run")
    first = render_report(run).read_bytes()
    assert render_schedule(str(run.path)).read_bytes() == first
    run.write_text("summary.json", "{")
    with pytest.raises(RunError, match=r"summary.json' is not valid JSON in line 1"):
        render_report(run)
    assert run.file("report.html").read_bytes() == first


def test_scores_that_are_no_fractions_are_no_percentages() -> None:
    rows = schedule_rows({"schedule": [0.5], "dense": {"macs": 4}, "rounds": [{"macs": 2, "score_finetuned": 31.25}]})
    assert (rows[0].macs, rows[0].tuned, rows[0].link) == ("50.00%", "31.25", "")


CURVE = RoundsCurve([RoundPoint(1, 0.5, 0.7, 0.85), RoundPoint(2, 0.25, None, 0.8)], 0.9, "MACs", percent=True)


def test_rounds_go_to_the_right_by_equal_factors() -> None:
    svg = str(rounds_chart(CURVE, WIDE, name="rounds-wide"))
    dots = [float(x) for x in re.findall(r'class="c-tuned" cx="([\d.]+)"', svg)]
    start = float(re.search(r'class="c-best" d="M([\d.]+) ', svg)[1])  # type: ignore[index]
    assert dots[0] - start == pytest.approx(dots[1] - dots[0], abs=0.11)
    assert re.findall(r"<title>(round[^<]*)</title>", svg) == [
        "round 1, as pruned: 70.00%",
        "round 1, fine-tuned: 85.00%",
        "round 2, fine-tuned: 80.00%",
    ]
    assert svg.count('class="c-gain"') == 1  # round 2 does not say where it came from


def test_rounds_in_words() -> None:
    assert describe_rounds(CURVE) == (
        "The dense network scores 90.00%. Round 1, 50.0% of the MACs: 70.00% as pruned, 85.00% fine-tuned. "
        "Round 2, 25.0% of the MACs: – as pruned, 80.00% fine-tuned."
    )
    assert describe_rounds(RoundsCurve([], None, "MACs", percent=True)) == "No round is finished yet."


@pytest.mark.parametrize("frame", [WIDE, NARROW])
@pytest.mark.parametrize("shares", [[], [1.0], [0.5], [0.5 * 0.9**n for n in range(30)], [1e-6]])
def test_every_mark_is_inside_the_drawing_and_shares_do_not_overlap(frame: object, shares: list[float]) -> None:
    points = [RoundPoint(number, share, 0.1, 0.9) for number, share in enumerate(shares, start=1)]
    assert frame in (WIDE, NARROW)
    size = WIDE if frame is WIDE else NARROW
    svg = str(rounds_chart(RoundsCurve(points, None, "MACs", percent=True), size, name="a-wide"))
    Page(svg)
    assert all(size.left <= float(x) <= size.end for x in re.findall(r'cx="([\d.-]+)"', svg))
    marks = [float(x) for x in re.findall(rf'x="([\d.]+)" y="{size.floor + 17}"', svg)]
    assert all(right - left >= 35 for left, right in pairwise(marks))
