"""Events by name, with listeners in order of priority."""

from emitter.emitter import Emitter
from emitter.errors import ListenerError
from emitter.listener import Listener

__all__ = ["Emitter", "Listener", "ListenerError"]
