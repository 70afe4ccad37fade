"""Two rows of SWE-bench Verified: images built from release archives, graded with the official script, verbatim."""

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.grading.evaluate import evaluate
from harness.instances import load_instances
from harness.sandbox.docker import DockerFactory, connect
from harness.sandbox.images.sdist import build
from harness.sandbox.select import choose, describe

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1200)]

INSTANCES = {
    instance.instance_id: instance for instance in load_instances(str(Path(__file__).parent / "real/rows.jsonl"))
}


@pytest.fixture(scope="module", params=sorted(INSTANCES))
def instance(request):
    try:
        connect().close()
    except UserError as error:
        pytest.skip(str(error))
    assert build([request.param], INSTANCES.values(), "sdist", print).failures == {}
    return INSTANCES[request.param]


def test_gold_is_resolved(instance):
    verdict = evaluate(instance, instance.patch, DockerFactory(), timeout=600).verdict
    failed = [group["failure"] for group in verdict.tests_status.values()]
    assert verdict.resolved, (verdict.status, failed)


def test_a_patch_that_repairs_nothing_is_not(instance):
    idle = "diff --git a/NOTE b/NOTE\nnew file mode 100644\n--- /dev/null\n+++ b/NOTE\n@@ -0,0 +1 @@\n+nothing\n"
    verdict = evaluate(instance, idle, DockerFactory(), timeout=600).verdict
    assert verdict.status == "unresolved"
    assert set(verdict.tests_status["FAIL_TO_PASS"]["failure"]) == set(instance.fail_to_pass)
    assert verdict.tests_status["PASS_TO_PASS"]["failure"] == []


def test_the_image_says_where_it_comes_from(instance):
    record = describe(choose("auto", [instance]), [instance])
    image = record["images"][instance.instance_id]
    assert record["names"] == ["docker"]
    assert (image["image"], image["source"]) == (instance.image, "sdist")
    assert image["digest"].startswith("sha256:")


def test_building_again_does_nothing(instance):
    lines = []
    build([instance.instance_id], [instance], "sdist", lines.append)
    assert lines == [f"1/1 {instance.instance_id}: {instance.image} is here already"]
