import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from amc.errors import RunError
from amc.report import render_report
from amc.run.directory import RunDir
from amc.search import EpisodeRecord, Journal
from tests.report.pages import render, words
from tests.report.runs import (
    SIZES,
    SLIM,
    episode,
    make_guaranteed_run,
    make_run,
    make_unfinished_run,
    write_journal,
)


def test_full_run_shows_budget_scores_and_baselines(tmp_path: Path) -> None:
    text = words(render(make_run(tmp_path / "run")))
    assert "macs<=50%: 49.71% recounted: held" in text
    assert "20.16 M of 40.55 M 2.01× fewer" in text
    assert "Score, test split 87.90% 75.71% 85.74% −2.16 points" in text
    assert "2 of 100 episodes failed" in text
    assert "The first 25 episodes were warm-up." in text
    assert "Nothing was chosen on the test split." in text
    assert "uniform policy 72.36%" in text
    assert "best of 100 random policies" in text
    assert "5 0.4 0.01 86.00%" in text  # the last epoch of fine-tuning
    assert "score 1.9 s 97.7%" in text  # 1.93 of 1.975 seconds an episode


def test_page_is_one_offline_file_without_scripts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = render(run)
    html = run.file("report.html").read_text(encoding="utf-8")
    assert "://" not in html
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {"src", "xlink:href", "srcset", "action"} & {name for name, _ in page.attributes}
    links = [str(value) for name, value in page.attributes if name == "href"]
    assert "journal.jsonl" in links
    assert all(run.file(unquote(link)).is_file() for link in links)  # of the run's own files
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html


def answers(**changes: Any) -> dict[str, Any]:
    example = {"image": 3, "label": 1, "answer": 0, "picture": "iVBORw0KGgo="}
    slim = {"right": [90, 60], "lost": [2, 30], "examples": [example]}
    dense = {"right": [91, 88], "mask": ""}
    return {"images": 200, "classes": [100, 100], "names": ["cat", "<dog>"], "dense": dense, "slim": slim} | changes


def test_classes_that_lose_most_come_first_and_differences_within_noise_are_grey(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finetuned=False)
    run.write_json("answers.json", answers())
    page = render(run)
    text = words(page)
    assert "Of 200 images of the test split, the resulting network loses 32 that the dense one has right, and" in text
    assert "gains 3." in text
    assert "<dog> 100 88.00% 60.00% −28.00 ± " in text  # 30 lost, 2 gained
    assert text.index("<dog> 100") < text.index("cat 100 91.00% 90.00% −1.00 ± ")
    html = run.file("report.html").read_text()
    assert re.search(r'bad-text">−28\.00 ± 5\.31<', html)
    assert re.search(r'soft">−1\.00 ± 2\.64<', html)
    assert "data:image/png;base64,iVBORw0KGgo=" in html
    assert "&lt;dog&gt;" in html
    tuned = {"right": [92, 86], "lost": [0, 3], "examples": []}
    run = make_run(tmp_path / "tuned")
    run.write_json("answers.json", answers())
    assert "Class by class" not in words(render(run))  # of another network than the last
    run.write_json("answers.json", answers(finetuned=tuned))
    assert "the fine-tuned network loses 3 that" in words(render(run))


def test_many_classes_are_folded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finetuned=False)
    slim = {"right": [9] * 30, "lost": [1] * 30, "examples": []}
    record = answers(classes=[10] * 30, names=[], dense={"right": [10] * 30, "mask": ""}, slim=slim, images=300)
    run.write_json("answers.json", record)
    text = words(render(run))
    assert "All 30 classes" in text
    assert text.count(" 10 100.00% 90.00% −10.00") == 40


def test_what_each_group_saves_stands_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = run.read_json("summary.json")
    for group in summary["groups"]:
        group["saves"] = {"macs": 4_055_180.8, "latency": 0.25}
    run.write_json("summary.json", summary)
    text = words(render(run))
    assert "MACs saved Time saved" in text
    assert text.count("10.0% 0.25 ms") + text.count("10.0% 250 µs") == len(SIZES)


def test_the_commands_that_repeat_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", repeat="amc search resnet20 --data 'cifar10:/a b'")
    summary = run.read_json("summary.json")
    summary["finetuning"] = {"epochs": 3, "repeat": "amc finetune NEW --epochs 3"}
    run.write_json("summary.json", summary)
    text = words(render(run))
    assert "amc search resnet20 --data 'cifar10:/a b' --out NEW amc finetune NEW --epochs 3" in text
    assert "--out NEW" not in words(render(make_run(tmp_path / "python")))


def test_every_chart_has_its_data(tmp_path: Path) -> None:
    text = words(render(make_run(tmp_path / "run")))
    assert "The data of this chart and of score and cost" in text
    assert "random 0 " in text
    assert "uniform 0 72.36%" in text


def test_figures_and_tables_can_be_read_aloud(tmp_path: Path) -> None:
    page = render(make_run(tmp_path / "run"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = {part for name, value in page.attributes if name == "aria-labelledby" for part in (value or "").split()}
    assert referred <= set(ids)
    assert page.tags.count("table") == page.tags.count("thead")
    assert ("lang", "en") in page.attributes


def test_kept_channels_and_the_uniform_mark(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = render(run)
    summary = run.read_json("summary.json")
    for group in summary["groups"]:
        assert f"{group['name']} {group['kept']} of {group['size']}" in words(page)
    marks = [value for name, value in page.attributes if name == "class" and value == "mark"]
    assert len(marks) == len(SIZES)
    assert ("style", "left:calc(50.00% - 1px)") in page.attributes


def test_what_comes_from_the_run_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model="<script>alert(1)</script>", weights='"><img src=x>')
    summary = run.read_json("summary.json")
    summary["groups"][0]["name"] = "<i>layer</i>"
    summary["model"] = "<script>alert(1)</script>"
    run.write_json("summary.json", summary)
    page = render(run)
    assert not {"script", "i", "img", "b"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert "<b>out of memory</b>" in page.text
    assert "<i>layer</i>" in page.text


def test_locks_and_the_certificate_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = run.read_json("summary.json")
    summary["locked"] = [{"name": f"layer{i}", "size": 16, "reason": f"zero padding <{i}>"} for i in range(14)]
    summary["certificate"] = {"keep_sets": 3, "worst_error": 2.4e-16, "locked": ["conv9"]}
    run.write_json("summary.json", summary)
    text = words(render(run))
    assert "layer11 16 zero padding <11>" in text
    assert "layer12" not in text
    assert "And 2 more in summary.json" in text
    assert "on 3 random keep sets; the largest difference was 2e-16 of the output" in text
    assert "Groups for which they differed, now locked: 1." in text


def test_exceeded_budget_is_not_called_held(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.write_json("summary.json", run.read_json("summary.json") | {"slim": SLIM | {"macs": 21_000_000}})
    text = words(render(run))
    assert "macs<=50%: 51.79% recounted: exceeded" in text
    assert "held" not in text


def test_search_that_loses_to_a_baseline_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "did not beat every baseline" not in words(render(run))
    write_journal(run.file("journal-uniform.jsonl"), [episode(0, 0.95)])
    text = words(render(run))
    assert "The search did not beat every baseline" in text
    assert re.search(r"uniform policy 95.00% −\d", text)


def test_unequal_numbers_of_policies_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_journal(run.file("journal-random.jsonl"), [episode(n, 0.5) for n in range(10)])
    assert "best of 10 random policies median 50.00%; compared with 100 episodes" in words(render(run))


def test_run_without_baselines_says_what_is_not_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("journal-uniform.jsonl", "journal-random.jsonl"):
        run.file(name).unlink()
    summary = run.read_json("summary.json")
    del summary["baselines"]
    run.write_json("summary.json", summary)
    assert "No baseline was run" in words(render(run))


def test_baselines_from_the_summary_serve_without_their_journals(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("journal-uniform.jsonl", "journal-random.jsonl"):
        run.file(name).unlink()
    text = words(render(run))
    assert "uniform policy 72.36%" in text
    assert "best of 100 random policies median 69.00%" in text


@pytest.mark.parametrize("scored", [0, 1, 37])
def test_unfinished_search_shows_what_there_is(tmp_path: Path, scored: int) -> None:
    run = make_unfinished_run(tmp_path / "run", scored=scored)
    page = render(run)
    text = words(page)
    assert f"search not finished: {scored} of 100 episodes" in text
    assert "macs<=50%: not recounted yet" in text
    assert ("No episode has been scored yet." in text) == (scored == 0)
    marks = [value for name, value in page.attributes if name == "class" and value in ("c-explore", "c-exploit")]
    legend = 2 if scored else 0
    assert len(marks) == 2 * scored + legend  # a wide and a narrow drawing


def test_search_of_which_every_episode_failed(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run")
    write_journal(run.file("journal.jsonl"), [episode(n, None, f"reason {n}") for n in range(25)])
    text = words(render(run))
    assert "25 of 25 episodes failed" in text
    assert "19 reason 19" in text
    assert "And 5 more in journal.jsonl." in text


@pytest.mark.parametrize(
    "summary",
    [
        {"model": "m"},
        {"dense": {"macs": 10}, "slim": {}},
        {"dense": {}, "slim": {"score": 0.5}},
        {"groups": [{"name": "a", "size": 4, "kept": 2}], "baselines": {"uniform": {}}},
        {"budget": None, "environment": None, "baselines": None},
        {"dense": {"macs": 4, "score": 3.5}, "slim": {"macs": 2, "score": 3.25}, "seconds": None},
    ],
)
def test_missing_fields_are_left_out(tmp_path: Path, summary: dict[str, Any]) -> None:
    run = RunDir.create(tmp_path / "run", {})
    run.write_json("summary.json", summary)
    page = render(run)
    assert "AMC run report" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower()


def test_policy_gives_the_groups_where_the_summary_has_none(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run")
    run.write_json("policy.json", {"method": "channel", "groups": [{"name": "conv1", "size": 8, "keep": [0, 3, 5]}]})
    assert "conv1 3 of 8" in words(render(run))


def test_torn_journal_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run", scored=3)
    journal = run.file("journal.jsonl")
    journal.write_text(journal.read_text() + '{"episode": 3, "ke')
    assert "3 of 100 episodes" in words(render(run))
    before = run.file("report.html").read_bytes()
    journal.write_text("{]\n" + journal.read_text())
    with pytest.raises(RunError, match=r"journal.jsonl is corrupt in line 1: it is not the JSON header"):
        render_report(run.path)
    assert run.file("report.html").read_bytes() == before


@pytest.mark.parametrize(("old", "new"), [('"score": 0.', '"score": 9.'), ('"keep": [4', '"keep": [-4'), ("{", "<")])
def test_a_report_refuses_the_journals_that_a_search_refuses_in_the_same_words(
    tmp_path: Path, old: str, new: str
) -> None:
    run = make_unfinished_run(tmp_path / "run")
    journal = Journal(run.file("journal.jsonl"), {"seed": 0})
    for number in range(3):
        journal.append(EpisodeRecord(number, (4, 8), {"macs": 50.0}, 0.5 + number / 10, -0.5))
    lines = run.file("journal.jsonl").read_text().split("\n")
    lines[2] = lines[2].replace(old, new, 1)
    run.file("journal.jsonl").write_text("\n".join(lines))
    with pytest.raises(RunError, match="is corrupt in line 3") as reported:
        render_report(run.path)
    with pytest.raises(RunError) as resumed:
        Journal(run.file("journal.jsonl"), {"seed": 0})
    assert str(reported.value) == str(resumed.value)


def test_rendering_twice_gives_the_same_page_and_no_other_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = render_report(run).read_bytes()
    names = sorted(path.name for path in run.path.iterdir())
    assert render_report(str(run.path)).read_bytes() == first
    assert sorted(path.name for path in run.path.iterdir()) == names


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory"):
        render_report(tmp_path / "absent")


def test_what_the_search_warned_of_is_repeated_and_escaped(tmp_path: Path) -> None:
    page = render(make_guaranteed_run(tmp_path / "run"))
    assert "Warnings few calibration samples: layer <fc> has 64 inputs and only 32 samples" in words(page)
    assert "Warnings" not in words(render(make_run(tmp_path / "other")))


def test_a_masked_network_is_called_masked_and_no_faster(tmp_path: Path) -> None:
    text = words(render(make_guaranteed_run(tmp_path / "run")))
    assert "Dense and masked Quantity Dense Masked Change MACs, nonzero 40.55 M 20.16 M" in text
    assert "File size 1.084 MB 402.1 kB 37.08% left (2.70× less)" in text
    assert "on most runtimes it runs no faster" in text
    assert "Layer Share kept Weights kept layer1.0.conv1 768 of 2,304" in text
    assert "the other weights of a layer are zero" in text
    assert "masked, of the same shape as the dense one" in text
    assert "Layer Reason fc locked by --lock" in text  # a layer has no number of channels
    assert "slim" not in text.lower()
    assert "channel" not in text.lower()


def test_a_slim_network_is_not_called_masked(tmp_path: Path) -> None:
    text = words(render(make_run(tmp_path / "run")))
    assert "Group Share kept Channels kept" in text
    assert "runs no faster" not in text
    assert "nonzero" not in text


@pytest.mark.parametrize(
    ("method", "counted"),
    [("2:4", "Weights"), ("n:8", "Weights"), ("rows", "Rows"), ("columns", "Columns"), ("blocks:4x4", "Blocks")],
)
def test_units_are_those_of_the_method(tmp_path: Path, method: str, counted: str) -> None:
    run = make_run(tmp_path / "run")
    run.write_json("summary.json", run.read_json("summary.json") | {"method": method})
    text = words(render(run))
    assert f"Layer Share kept {counted} kept" in text
    assert f"{method} pruning" in text


def test_a_confirmed_loss(tmp_path: Path) -> None:
    page = render(make_guaranteed_run(tmp_path / "run"))
    text = words(page)
    assert "resnet20 · cifar10:data · fewest parameters within 0.5 points" in text
    assert "loss of at most 0.5 points: confirmed" in text
    assert (
        "Confirmed: on 2,500 images that the search never scored the network loses 0.21 points, at most 0.46 points "
        "(confidence 80%); 0.5 points allowed."
    ) in text
    assert "Episode Parameters left Loss At most Confirmed 57 27.75% 0.61 0.88 no 52 29.00% 0.21 0.46 yes" in text


def test_a_loss_that_is_not_confirmed_is_said_so(tmp_path: Path) -> None:
    text = words(render(make_guaranteed_run(tmp_path / "run", confirmed=False)))
    assert "loss of at most 0.5 points: not confirmed" in text
    assert "Not confirmed: on 2,500 images" in text
    assert ": confirmed" not in text


def test_without_a_budget_scores_stand_beside_costs_and_rewards_are_compared(tmp_path: Path) -> None:
    page = render(make_guaranteed_run(tmp_path / "run", max_drop=None))
    text = words(page)
    assert "resnet20 · cifar10:data · reward r_params" in text
    assert "Score and cost" in text
    assert "not recounted" not in text
    assert re.search(r"The chosen one, of episode 17, keeps 37\.8% and scores 88\.2", text)
    assert re.search(r"best of 10 uniform policies 88\.31% 81\.82% −1\.581 \+0\.05", text)
    assert re.search(
        r"Best policies Episode Score, search split Parameters Reward 17 88\.22% 101\.8 k \(37\.75%\) −1\.528", text
    )
    chosen = [value for name, value in page.attributes if name == "class" and value == "c-chosen"]
    assert len(chosen) == 3  # the legend, a wide and a narrow drawing


def test_the_best_is_the_most_rewarded_not_the_best_scored(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run", budget="none", reward="r_flops")
    dense = episode(0, 0.9) | {"reward": -2.0}
    small = episode(1, 0.8) | {"reward": -1.0}
    write_journal(run.file("journal.jsonl"), [dense, small])
    assert re.search(r"Best policies .* Reward 1 80\.00% 20\.10 M −1 0 90\.00%", words(render(run)))


def test_candidates_are_shown_with_the_one_taken_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    tried = [
        {"episode": 96, "score": 0.76, "score_tuned": 0.841, "chosen": False},
        {"episode": 91, "score": 0.75, "score_tuned": 0.847, "chosen": True},
    ]
    run.write_json("summary.json", run.read_json("summary.json") | {"candidates": tried})
    page = render(run)
    assert "96 76.00% 84.10% 91 75.00% 84.70% taken on" in words(page)
    assert [value for name, value in page.attributes if value == "taken"].count("taken") >= 1


def test_a_size_budget_is_judged_on_the_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = run.read_json("summary.json") | {"budget": "size<=600KB"}
    summary["dense"] |= {"size": 1_084_312}
    summary["slim"] |= {"size": 570_111}
    run.write_json("summary.json", summary)
    text = words(render(run))
    assert "size<=600000: 570,111 bytes recounted: held" in text
    assert "File size left 52.58% 570.1 kB of 1.084 MB 1.90× smaller" in text


@pytest.mark.parametrize(
    "summary",
    [
        {"budget": "none"},
        {"budget": "none", "guarantee": {}},
        {"budget": "none", "guarantee": {"max_drop": 0.5, "images": None, "confirmed": False, "drop": -0.2}},
        {"budget": "none", "dense": {"macs": 4, "score": 0.5}, "slim": {}, "reward": "r_latency"},
        {"method": "n:8", "candidates": [{}], "warnings": None, "locked": [{"name": "a", "reason": "b"}]},
    ],
)
def test_missing_fields_of_a_search_without_a_budget(tmp_path: Path, summary: dict[str, Any]) -> None:
    run = make_unfinished_run(tmp_path / "run", scored=12, budget="none")
    run.write_json("summary.json", summary)
    text = words(render(run))
    assert "None" not in text
    assert "nan" not in text.lower()
