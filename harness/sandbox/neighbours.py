"""Who a sandbox can reach besides itself: nobody, but for the few instances that `needs.yaml` names.

Their stand-ins live in the sandbox's own network: connections end at sockets that the harness holds there, or nowhere.
"""

import socket
import ssl
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path

import trustme
import yaml

from harness.errors import SandboxError
from harness.sandbox.base import Sandbox
from harness.sandbox.httpbin import HttpbinHandler

HTTPBIN, UNROUTABLE = "httpbin", "unroutable"
NAMES = ("httpbin.org", "www.httpbin.org", "eu.httpbin.org")
_NEEDS = Path(__file__).with_name("needs.yaml")
_AUTHORITY = "/tmp/.sweq-authority.pem"
# Old versions of requests carry a bundle of their own; new ones ask certifi.
_TRUST = f"""
bundles=$(python -c 'import certifi; print(certifi.where())' 2> /dev/null)
for bundle in $bundles /testbed/requests/cacert.pem /etc/ssl/certs/ca-certificates.crt; do
  [ ! -f "$bundle" ] || cat {_AUTHORITY} >> "$bundle"
done
rm {_AUTHORITY}
"""
# A cable whose other end nobody listens at: packets to this network find a receiver's address, and never an answer.
_SINK = (
    "link add sink type veth peer name drain",
    "address add 10.255.255.254/24 dev sink",
    "link set sink up",
    "link set drain up",
    "neighbour add 10.255.255.1 lladdr 02:00:00:00:00:01 dev sink nud permanent",
)


@cache
def read_needs() -> dict[str, frozenset[str]]:
    """Needs by instance id."""
    return {name: frozenset(needs) for name, needs in yaml.safe_load(_NEEDS.read_text()).items()}


class Neighbours:
    """The stand-ins of one sandbox; `open` anew whenever its network is."""

    def __init__(self, needs: frozenset[str]) -> None:
        self._needs = needs
        self._servers: list[ThreadingHTTPServer] = []

    def trust(self, sandbox: Sandbox) -> None:
        """Let the clients inside believe the stand-in's certificate."""
        if HTTPBIN in self._needs:
            sandbox.write_file(_AUTHORITY, b"\n" + _authority().cert_pem.bytes())
            done = sandbox.exec(_TRUST, timeout=60)
            if done.exit_code != 0:
                raise SandboxError(f"the stand-in's certificate cannot be placed: {done.output.strip()}")

    def open(self, sandbox: Sandbox, enter: Sequence[str]) -> None:
        """Put the stand-ins into the network that the command prefix `enter` leads to."""
        self.close()
        if UNROUTABLE in self._needs:
            _add_sink(enter)
        if HTTPBIN in self._needs:
            self._servers = [_serve(sandbox.listen(80), None), _serve(sandbox.listen(443), _context())]

    def close(self) -> None:
        """End the servers; connections that are open end with their clients."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        super().__init__(listener.getsockname(), HttpbinHandler, bind_and_activate=False)
        self.socket.close()
        # The handshake waits for the client, so it belongs into the connection's own thread.
        self.socket = (
            listener
            if context is None
            else context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
        )
        self.server_address = listener.getsockname() if context is None else self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that breaks off is nothing to report."""


def _serve(listener: socket.socket, context: ssl.SSLContext | None) -> ThreadingHTTPServer:
    server = _Server(listener, context)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority().issue_cert(*NAMES, "localhost", "127.0.0.1").configure_cert(context)
    return context


def _add_sink(enter: Sequence[str]) -> None:
    for step in _SINK:
        done = subprocess.run([*enter, "ip", *step.split()], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise SandboxError(f"no unroutable address in the sandbox: {done.stderr.strip()}")
