"""Which sandbox an instance gets."""

from dataclasses import replace

import pytest

from harness.errors import UserError
from harness.instances import Instance
from harness.sandbox import namespace, select
from harness.sandbox.select import RoutingFactory, choose, describe

BARE = Instance(
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
)


class NoDaemon:
    """Stands for `DockerFactory` where no daemon answers."""

    def __init__(self, folders, host, runtime):
        raise UserError("no daemon answers")


class Daemon:
    """Stands for `DockerFactory` where one answers and has one image."""

    name = "docker"

    def __init__(self, folders, host, runtime):
        self.folders = folders

    def identity(self, instance):
        if instance.image != "here:latest":
            raise UserError(f"no image {instance.image} here")
        return {"image": instance.image, "digest": "sha256:1", "source": "official"}


@pytest.fixture
def instances(tmp_path):
    return {
        "image": replace(BARE, instance_id="image", image="here:latest"),
        "absent": replace(BARE, instance_id="absent", image="absent:latest"),
        "tree": replace(BARE, instance_id="tree", tree=tmp_path),
        "both": replace(BARE, instance_id="both", image="here:latest", tree=tmp_path),
        "neither": replace(BARE, instance_id="neither"),
    }


@pytest.mark.parametrize(
    ("kind", "daemon", "names", "expected"),
    [
        ("auto", Daemon, ["image", "both"], "docker"),
        ("auto", Daemon, ["image", "tree"], "docker+namespace"),
        ("auto", Daemon, ["tree"], "namespace"),
        ("auto", NoDaemon, ["tree", "both"], "namespace"),
        ("docker", Daemon, ["both"], "docker"),
        ("namespace", NoDaemon, ["tree", "both"], "namespace"),
    ],
)
def test_choice(monkeypatch, instances, kind, daemon, names, expected):
    monkeypatch.setattr(select, "DockerFactory", daemon)
    monkeypatch.setattr(select, "probe", lambda: None)
    chosen = [instances[name] for name in names]
    factory = choose(kind, chosen)
    assert factory.name == expected
    if isinstance(factory, RoutingFactory):
        assert [factory.route(instance).name for instance in chosen] == ["docker", "namespace"]
        assert describe(factory, chosen)["images"]["image"]["digest"] == "sha256:1"


@pytest.mark.parametrize(
    ("kind", "daemon", "name", "message"),
    [
        ("auto", NoDaemon, "image", "no daemon answers"),
        ("auto", Daemon, "absent", "no image absent:latest here"),
        ("auto", Daemon, "neither", "neither: brings no tree along, so it needs Docker but names no image either"),
        ("docker", NoDaemon, "tree", "no daemon answers"),
        ("namespace", Daemon, "image", "image: brings no tree along, so it needs Docker and its image"),
        ("namespace", Daemon, "tree", "namespace sandboxes cannot be made here: the kernel says no"),
    ],
)
def test_refusal_names_the_instance_and_the_reason(monkeypatch, instances, kind, daemon, name, message):
    monkeypatch.setattr(select, "DockerFactory", daemon)
    monkeypatch.setattr(select, "probe", lambda: "the kernel says no")
    with pytest.raises(UserError, match=message):
        choose(kind, [instances[name]])


def test_probe_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(namespace.shutil, "which", lambda tool: None if tool == "nsenter" else tool)
    assert namespace.probe() == "nsenter not found: install util-linux, bash, git and tar"
    monkeypatch.setattr(namespace.sys, "platform", "darwin")
    assert namespace.probe() == "namespaces need Linux, not darwin"


@pytest.mark.namespace
def test_a_tree_that_is_not_the_base_commit_is_refused(instances):
    if reason := namespace.probe():
        pytest.skip(reason)
    with pytest.raises(UserError, match=r"tree: .* gives commit .* but base_commit is aaaa"):
        namespace.NamespaceFactory().create(instances["tree"])
