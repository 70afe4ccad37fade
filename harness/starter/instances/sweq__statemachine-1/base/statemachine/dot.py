"""Definitions as Graphviz drawings."""

from statemachine.definition import ANY, Definition


def to_dot(definition: Definition, name: str = "machine") -> str:
    """The definition in the DOT language; a transition from any state is drawn from every state."""
    lines = [f"digraph {name} {{", f'  "{definition.initial}" [shape=doublecircle];']
    for transition in definition.transitions:
        sources = definition.states() if transition.source == ANY else [transition.source]
        for source in sources:
            lines.append(f'  "{source}" -> "{transition.target}" [label="{transition.event}"];')
    return "\n".join([*lines, "}"]) + "\n"
