"""Grading runs: what is on disk, what is counted, what continues; counts against swebench 5.0.2's run report."""

import json
import random
from pathlib import Path

import pytest
from grading_doubles import END, START, FolderFactory, make_instance, to_row

from harness.errors import UserError
from harness.grading.predictions import Prediction, read_predictions
from harness.grading.results import Graded, grade_all
from harness.grading.run_report import build_run_report, render_run_report
from harness.grading.runs import grade, regrade
from harness.grading.verdict import find_infra_sign, judge
from harness.sandbox.namespace import probe

LOGS = Path(__file__).parent / "logs"


def grade_tiny(tiny, factory, root, patch):
    prediction = Prediction(tiny.instance_id, "m", patch)
    seen = []
    graded = grade_all(
        [tiny],
        {tiny.instance_id: prediction},
        factory,
        root,
        workers=1,
        timeout=60,
        on_graded=lambda *item: seen.append(item),
    )
    assert seen == list(graded.items())
    return graded[tiny.instance_id]


def test_finished_instances_are_kept(tiny, tmp_path):
    factory = FolderFactory(tmp_path / "sandboxes")
    first = grade_tiny(tiny, factory, tmp_path / "run", tiny.patch)
    folder = tmp_path / "run" / "instances" / tiny.instance_id / "0"
    assert sorted(path.name for path in folder.iterdir()) == ["patch.diff", "report.json", "test_output.txt"]
    assert json.loads((folder / "report.json").read_text()) == first.verdict.report()
    assert grade_tiny(tiny, factory, tmp_path / "run", tiny.patch) == first
    assert len(factory.made) == 1
    with pytest.raises(UserError, match=r"patch\.diff: this run id graded another patch"):
        grade_tiny(tiny, factory, tmp_path / "run", tiny.patch + " ")


def test_sandbox_failures_are_errors_and_tried_again(tiny, tmp_path):
    factory = FolderFactory(tmp_path / "sandboxes", failures=1)
    failed = grade_tiny(tiny, factory, tmp_path / "run", tiny.patch)
    report = build_run_report([tiny.instance_id], {tiny.instance_id: failed})
    assert report["error_ids"] == report["infra_failure_ids"] == [tiny.instance_id]
    assert report["failure_reasons"] == {tiny.instance_id: "container_unavailable"}
    lines = list(render_run_report(report, {tiny.instance_id: failed}))
    assert lines[-1] == "sweq__tiny-1: sandbox failed (Cannot connect to the Docker daemon) (container_unavailable)"
    assert grade_tiny(tiny, factory, tmp_path / "run", tiny.patch).verdict.resolved


def test_run_report_equals_official(tmp_path, monkeypatch):
    from swebench.harness.reporting import make_run_report

    monkeypatch.chdir(tmp_path)
    rng = random.Random(5)
    instances = [make_instance(instance_id=f"o__r-{number}") for number in range(60)]
    graded, predictions = {}, {}
    for instance in instances[:50]:
        name = instance.instance_id
        patch = rng.choice(("diff", "diff", "diff", "", None))
        predictions[name] = {"instance_id": name, "model_name_or_path": "org/m", "model_patch": patch}
        ending = rng.choice(("", "Killed", "collected 0 items", "Timeout error: 5 seconds exceeded."))
        word = rng.choice(("PASSED", "FAILED"))
        failed = rng.random() < 0.2
        head = ">>>>> Patch Apply Failed" if failed else ""
        log = f"{head}\n{START}\n{word} tests/test_a.py::test_one\n{END}\n{ending}"
        verdict = judge(instance, log if patch else "", patch)
        graded[name] = Graded(verdict, find_infra_sign(log))
        if patch:
            folder = tmp_path / "logs" / "run_evaluation" / "run" / "org__m" / name
            folder.mkdir(parents=True)
            (folder / "test_output.txt").write_text(log)
            if not failed:
                (folder / "report.json").write_text(json.dumps(verdict.report()))
    official = make_run_report(predictions, [to_row(instance) for instance in instances], "run")
    assert build_run_report([item.instance_id for item in instances], graded) == json.loads(official.read_text())


@pytest.fixture
def stored(tmp_path):
    """The rows of the stored logs as a dataset file."""
    rows = [json.loads(line) for line in (LOGS / "rows.jsonl").read_text().splitlines()]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**to_row(make_instance()), **row}) + "\n" for row in rows))
    return str(path)


def test_regrade_a_stored_log(stored, tmp_path):
    empty = tmp_path / "empty.diff"
    empty.write_text("")
    resolved = regrade(stored, "pallets__flask-5014", LOGS / "own" / "pallets__flask-5014.2.txt")
    assert {key: resolved[key] for key in ("instance_id", "resolved", "resolved_v4", "status")} == {
        "instance_id": "pallets__flask-5014",
        "resolved": True,
        "resolved_v4": True,
        "status": "resolved",
    }
    assert resolved["tests_status"]["FAIL_TO_PASS"]["failure"] == []
    unresolved = regrade(stored, "pallets__flask-5014", LOGS / "own" / "pallets__flask-5014.1.txt", empty)
    assert (unresolved["resolved"], unresolved["status"]) == (False, "empty_patch")
    assert json.dumps(resolved)


def test_regrade_of_what_is_not_a_log(stored):
    verdict = regrade(stored, "pallets__flask-5014", LOGS / "README.md")
    assert (verdict["status"], verdict["tests_status"]) == ("ungradable", None)
    with pytest.raises(UserError, match=r"nothing\.txt: cannot be read"):
        regrade(stored, "pallets__flask-5014", LOGS / "nothing.txt")


@pytest.mark.namespace
@pytest.mark.skipif(probe() is not None, reason=probe() or "")
def test_grade_starter_instances(tmp_path, capsys):
    ids = ["sweq__slugtext-1"]
    printed = []
    options = {"sandbox": "namespace", "results": tmp_path, "as_json": True, "echo": printed.append}
    assert grade("starter", "gold", ids, "gold", **options) == 0
    assert grade("starter", "empty", ids, "empty", **options) == 0
    assert grade("starter", "gold", ids, "gold", **(options | {"sandbox": "docker"})) == 0, "nothing is left to run"
    gold, empty, again = map(json.loads, printed)
    assert again == gold
    assert (gold["resolved_ids"], empty["resolved_ids"], empty["empty_patch_ids"]) == (ids, [], ids)
    assert json.loads((tmp_path / "gold" / "gold.gold.json").read_text()) == gold
    stored = read_predictions(str(tmp_path / "gold" / "predictions.jsonl"), [make_instance(instance_id=ids[0])])
    assert stored[0].model_name_or_path == "gold"
    with pytest.raises(UserError, match="key predictions: is `gold`, now `empty`"):
        grade("starter", "empty", ids, "gold", **options)
    assert capsys.readouterr().out == ""


def test_grade_needs_a_prediction(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"instance_id": "sweq__backoff-1", "model_name_or_path": "m", "model_patch": ""}))
    with pytest.raises(UserError, match=r"p\.jsonl: no prediction for the instances asked for: sweq__slugtext-1"):
        grade("starter", str(path), ["sweq__slugtext-1"], results=tmp_path)
