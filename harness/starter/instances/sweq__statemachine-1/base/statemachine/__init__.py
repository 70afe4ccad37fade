"""Finite state machines."""

from statemachine.definition import ANY, Definition, Transition
from statemachine.dot import to_dot
from statemachine.errors import DefinitionError, MachineError, NoTransition
from statemachine.loader import load
from statemachine.machine import Machine

__all__ = [
    "ANY",
    "Definition",
    "DefinitionError",
    "Machine",
    "MachineError",
    "NoTransition",
    "Transition",
    "load",
    "to_dot",
]
