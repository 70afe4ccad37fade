"""A served model that answers as the expert does, and the instances that the expert works on."""

import contextlib
import dataclasses
import threading
import time
from pathlib import Path

from engine.core.request import StepOutput
from engine.serve.app import DrainingServer, bind, build_app
from engine.serve.service import Service
from engine.serve.session import Session
from engine.text.chat import ChatTemplate
from harness.instances import Instance
from harness.starter.generate import Check, GeneratedInstance, generate
from harness.tree import commit_tree
from nano.data.tokenizer import MODEL, load_tokenizer


class ReplayEngine:
    """Gives the answers in `answers` (lists of ids), one a request, a few tokens a step; `prompts` are those asked."""

    def __init__(self, answers):
        self.prompts = []
        self._answers = iter(answers)
        self._running = {}

    @property
    def has_work(self):
        return bool(self._running)

    def prepare(self, params):
        params.check()

    def add(self, request):
        self.prompts.append(list(request.prompt_ids))
        self._running[request.request_id] = [request, list(next(self._answers)), load_tokenizer().detokenizer()]

    def abort(self, request_id):
        self._running.pop(request_id, None)

    def end_session(self, session_id):
        return 0

    def stats(self):
        return {"running": len(self._running), "waiting": 0}

    def step(self):
        return [self._advance(*each) for each in list(self._running.values())]

    def _advance(self, request, ids, text):
        taken, ids[:3] = ids[:3], []
        if not ids:
            del self._running[request.request_id]
        return StepOutput(
            request_id=request.request_id,
            token_ids=tuple(taken),
            text=text.push(taken) + ("" if ids else text.flush()),
            finish_reason=None if ids else "stop",
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=0,
        )


@contextlib.contextmanager
def serving(engine):
    """The base URL of the real server over `engine`, with sweq-nano's own tokenizer and template."""
    template = ChatTemplate((MODEL / "chat_template.jinja").read_text(), load_tokenizer().special_tokens)
    service = Service(
        engine=engine, tokenizer=load_tokenizer(), template=template, name="sweq-nano", model="nano/model",
        max_context=8192, identity={"engine": "sweq-engine"},
    )  # fmt: skip
    session = Session(lambda: service)
    server = DrainingServer(build_app(session, ()), session, drain_seconds=5)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while session.state != "ready":
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


def make_instance(made: GeneratedInstance, folder: Path) -> Instance:
    """A generated instance as the agent gets it, with its base tree in a new folder below `folder`."""
    trees = [folder / "tree", folder / "committed"]
    for tree in trees:
        for path, text in made.base.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text, newline="")
    return Instance(
        instance_id=made.instance_id, repo=made.repo, base_commit=commit_tree(trees[1]), version="1.0",
        problem_statement=made.problem_statement, patch=made.patch, test_patch=made.test_patch,
        fail_to_pass=made.fail_to_pass, pass_to_pass=made.pass_to_pass, eval_script="", log_parser="",
        eval_type="pass_and_fail", tree=trees[0],
    )  # fmt: skip


TWICE = """def first(value):
    if value < 0:
        return 0
    return value + 1


def second(value):
    if value > 9:
        return 9
    return value + 1
"""


def make_ambiguous() -> GeneratedInstance:
    """An instance whose wrong line occurs twice in its file."""
    check = Check("from twicebox.steps import second", "second(3)", "5", "4")
    return dataclasses.replace(
        generate(0, "train"), instance_id="gen__twicebox-1", kind="off_by_one", package="twicebox", subject="second",
        base={"twicebox/__init__.py": "", "twicebox/steps.py": TWICE}, bug_path="twicebox/steps.py", checks=(check,),
        fixed_text=TWICE.removesuffix("1\n") + "2\n", problem_statement="second(3) gives 4 instead of 5\n",
    )  # fmt: skip
