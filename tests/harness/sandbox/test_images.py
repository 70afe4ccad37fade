"""The table of release archives, and the layers that it becomes."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.images import sdist
from harness.sandbox.images.releases import Release, load_releases
from harness.sandbox.images.sdist import ImageInfo, build, environment_layer, find_buildable, instance_layer

INSTANCE = Instance(
    instance_id="own__example-1",
    repo="own/example",
    base_commit="a" * 40,
    version="1",
    problem_statement="",
    patch="",
    test_patch="",
    fail_to_pass=(),
    pass_to_pass=(),
    eval_script="",
    log_parser="",
    eval_type="",
    image="official:latest",
)
RELEASE = Release(
    sdist="Example==1.0",
    python="3.9",
    pins=("pytest==7.3.1",),
    steps=("touch 'a file'",),
    instances=("own__example-1",),
)


def test_every_release_pins_all_that_it_names():
    releases = load_releases()
    known = {name for release in releases for name in release.instances}
    assert {"mwaskom__seaborn-3069", "pallets__flask-5014"} <= known
    assert len(known) >= 25
    assert all(pin.count("==") == 1 for release in releases for pin in release.pins)


def test_every_instance_is_on_the_page_of_proofs():
    page = (Path(__file__).parents[3] / "docs/sdist_images.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    for release in load_releases():
        for name in release.instances:
            assert f"| {release.sdist} | {release.python} | {len(release.pins)} |" in rows[name]
            assert "| resolved | unresolved |" in rows[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "must be a mapping"),
        ("a-1: {sdist: a==1, python: '3.9'}", "a-1.instances: Field required"),
        ("a-1: {sdist: a==1, python: '3.9', instances: [one__x-1], pin: []}", "a-1.pin: Extra inputs"),
        ("a-1: {sdist: a>1, python: '3.9', instances: [one__x-1]}", "a-1.sdist: String should match"),
        ("a-1: {sdist: a==1, python: '2.7', instances: [one__x-1]}", "a-1.python: must be one of 3.9, 3.11"),
        (
            "a-1: &a {sdist: a==1, python: '3.9', instances: [one__x-1]}\na-2: *a",
            "a-2.instances: one__x-1 is in a-1 already",
        ),
    ],
)
def test_a_bad_table_is_refused_by_file_and_key(tmp_path, text, message):
    path = tmp_path / "sdists.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_releases(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entries_share_what_a_dotted_key_holds(tmp_path):
    path = tmp_path / "sdists.yaml"
    path.write_text(".all: &all {python: '3.9', pins: [b==2]}\na-1: {<<: *all, sdist: a==1, instances: [one__x-1]}")
    assert load_releases(path) == [Release(sdist="a==1", python="3.9", pins=("b==2",), instances=("one__x-1",))]


@pytest.mark.parametrize("editable", [True, False])
def test_the_scripts_are_valid_shell_and_name_what_they_must(editable):
    release = RELEASE.model_copy(update={"editable": editable})
    environment = environment_layer(release, "base:1")
    layer = instance_layer(INSTANCE, "official:latest", release, environment.tag)
    for script in (environment.script, layer.script):
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""
    assert "touch 'a file'\n" in environment.script
    assert f"refs/replace/{INSTANCE.base_commit}" in layer.script
    assert layer.script.index("-R /build/") < layer.script.index("git commit") < layer.script.index("git prune")
    # A copy in site-packages that still had the fix would resolve every patch.
    assert ("pip install -q --no-deps -e ." in environment.script) == editable
    assert ("--no-build-isolation ." in layer.script) == (not editable)


def test_instances_of_one_release_share_one_environment():
    environment = environment_layer(RELEASE, "base:1")
    assert environment.tag == f"sweq/environment:example-1.0-{environment.recipe}"
    grown = RELEASE.model_copy(update={"instances": ("own__example-1", "own__example-2")})
    assert environment_layer(grown, "base:1") == environment


@pytest.mark.parametrize(
    "change", [{"pins": ("pytest==7.3.2",)}, {"environment": {"A": "1"}}, {"steps": ()}, {"sdist": "Example==1.1"}]
)
def test_what_an_environment_is_made_from_names_it(change):
    tag = environment_layer(RELEASE, "base:1").tag
    assert environment_layer(RELEASE.model_copy(update=change), "base:1").tag != tag
    assert environment_layer(RELEASE, "base:2").tag != tag


def test_a_changed_patch_makes_another_image():
    layers = [
        instance_layer(replace(INSTANCE, patch=patch), "official:latest", RELEASE, "environment:1") for patch in "ab"
    ]
    assert layers[0].recipe != layers[1].recipe
    assert layers[0].labels == {"sweq.instance": "own__example-1"}


def test_a_failed_build_leaves_the_others(monkeypatch):
    rows = [replace(INSTANCE, instance_id=name) for name in ("pallets__flask-5014", "mwaskom__seaborn-3069")]
    image = ImageInfo("official:latest", "sha256:0", "sdist", "mwaskom__seaborn-3069", 1)

    def build_one(client, row, release, progress):
        if row.instance_id == "pallets__flask-5014":
            raise SandboxError("official:latest: the build failed: no such release")
        return image

    monkeypatch.setattr(sdist, "connect", lambda: None)
    monkeypatch.setattr(sdist, "_build_one", build_one)
    lines = []
    result = build([row.instance_id for row in rows], rows, "sdist", lines.append)
    assert result.images == (image,)
    assert result.failures == {"pallets__flask-5014": "official:latest: the build failed: no such release"}
    assert lines == ["1/2 pallets__flask-5014: official:latest: the build failed: no such release"]


def test_all_means_what_the_data_set_and_the_table_share():
    rows = [replace(INSTANCE, instance_id=name) for name in ("mwaskom__seaborn-3069", "own__example-1")]
    assert find_buildable(rows) == ["mwaskom__seaborn-3069"]
    with pytest.raises(UserError, match=r"--all: the data set has no instance that is in sdists\.yaml"):
        find_buildable(rows[1:])


@pytest.mark.parametrize(
    ("ids", "source", "message"),
    [
        (["pallets__flask-5014"], "official", "--source official: must be sdist"),
        ([], "sdist", "name the instances to build with -i, or take --all"),
        (["own__example-1"], "sdist", "own__example-1: not in sdists.yaml; `sweq images list`"),
        (["pallets__flask-5014"], "sdist", "pallets__flask-5014: not among the data set's instances"),
    ],
)
def test_what_cannot_be_built_is_refused_before_docker_is_asked(monkeypatch, ids, source, message):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    with pytest.raises(UserError, match=message):
        build(ids, [INSTANCE], source, print)


def test_no_daemon_is_said_so(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    row = replace(INSTANCE, instance_id="pallets__flask-5014")
    with pytest.raises(UserError, match="no daemon answers at unix:///nowhere: start it, or use --sandbox namespace"):
        build([row.instance_id], [row], "sdist", print)
