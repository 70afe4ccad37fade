"""Instances whose tests reach for httpbin.org, or for an address that does not answer, find both in their sandbox."""

import os
from dataclasses import replace

import pytest
from docker.errors import DockerException

from harness.errors import UserError
from harness.instances import Instance
from harness.sandbox.docker import DockerFactory, connect
from harness.sandbox.images.sdist import build_base

pytestmark = pytest.mark.docker

INSTANCE = Instance(
    instance_id="psf__requests-2931", repo="psf/requests", base_commit="a" * 40, version="1", problem_statement="",
    patch="", test_patch="", fail_to_pass=(), pass_to_pass=(), eval_script="", log_parser="", eval_type="",
)  # fmt: skip
ASK = r"""
import gzip, hashlib, json, re, socket, urllib.error, urllib.request as web
from http.cookiejar import CookieJar

def ask(url, data=None, method=None, **headers):
    with web.urlopen(web.Request("http://httpbin.org" + url, data, headers, method=method), timeout=10) as answer:
        return answer.read()

assert json.loads(ask("/get?a=1&a=2&b="))["args"] == {"a": ["1", "2"], "b": ""}
assert json.loads(ask("/post", b"x=1"))["form"] == {"x": "1"}
assert json.loads(ask("/put", b'{"x": 1}', "PUT", **{"Content-Type": "application/json"}))["json"] == {"x": 1}
part = b'--B\r\nContent-Disposition: form-data; name="f"; filename="n"\r\n\r\ntext\r\n--B--\r\n'
kind = {"Content-Type": "multipart/form-data; boundary=B"}
assert json.loads(ask("/post", part, **kind))["files"] == {"f": "text"}
assert json.loads(ask("/post", iter([b"ab", b"c"]), **{"Content-Type": "text/plain"}))["data"] == "abc"
assert json.loads(ask("/redirect/3"))["url"] == "http://httpbin.org/get"
assert json.loads(gzip.decompress(ask("/gzip")))["gzipped"]
jar = web.build_opener(web.HTTPCookieProcessor(CookieJar()))
assert json.loads(jar.open("http://httpbin.org/cookies/set?k=v").read()) == {"cookies": {"k": "v"}}
passwords = web.HTTPPasswordMgrWithDefaultRealm()
passwords.add_password(None, "http://httpbin.org/", "user", "pass")
for handler, path in ((web.HTTPDigestAuthHandler, "digest-auth/auth"), (web.HTTPBasicAuthHandler, "basic-auth")):
    opener = web.build_opener(handler(passwords))
    assert json.loads(opener.open(f"http://httpbin.org/{path}/user/pass").read())["authenticated"]
for path, method, code in (("/status/418", "GET", 418), ("/get", "POST", 405), ("/absent", "GET", 404),
                           ("/status/x", "GET", 404), ("/basic-auth/a/b", "GET", 401)):
    try:
        ask(path, method=method)
        raise SystemExit(path)
    except urllib.error.HTTPError as error:
        assert error.code == code, path
with web.urlopen("https://httpbin.org/get", timeout=10) as answer:
    assert json.load(answer)["url"] == "https://httpbin.org/get"
try:
    socket.create_connection(("10.255.255.1", 80), 1)
    raise SystemExit("reached")
except TimeoutError:
    print("all there")
"""


@pytest.fixture
def factory():
    try:
        connect().close()
    except (UserError, DockerException) as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:
        pytest.skip("needs root, to reach into a container's network")
    return DockerFactory(lambda instance: build_base(), run_id="tests")


def test_stand_ins_answer_and_outlive_a_timeout(factory):
    with factory.create(INSTANCE) as sandbox:
        sandbox.write_file("/tmp/ask.py", ASK.encode())
        for _ in range(2):
            result = sandbox.exec("python3 /tmp/ask.py", timeout=60)
            assert (result.output, result.exit_code) == ("all there\n", 0)
            assert sandbox.exec("sleep 60", timeout=0.2).timed_out


def test_other_instances_find_nothing(factory):
    with factory.create(replace(INSTANCE, instance_id="psf__other-1")) as sandbox:
        result = sandbox.exec("cat < /dev/tcp/127.0.0.1/80; getent hosts httpbin.org; cat /etc/hosts", timeout=30)
    assert "refused" in result.output
    assert "httpbin" not in result.output
