"""Families that training never sees."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_ROMAN = '''
SIGNS = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")]
SMALL = [(10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


def $write(number: int) -> str:
    """$doc"""
    if number <= 0 or number >= 4000:
        raise ValueError("no Roman numeral")
    text = ""
    for value, sign in SIGNS + SMALL:
        while number >= value:
            text += sign
            number -= value
    return text


def $read(text: str) -> int:
    """The number that a Roman numeral stands for."""
    values = {sign: value for value, sign in SIGNS + SMALL}
    total = 0
    for index, sign in enumerate(text):
        value = values[sign]
        if index + 1 < len(text) and values[text[index + 1]] > value:
            total -= value
        else:
            total += value
    return total
'''


def roman_numerals(draw: Draw) -> Module:
    """Roman numerals, both ways."""
    thing = draw.thing()
    slots = {
        "write": draw.glue(("write", "print", "format"), ("roman", "latin"), (thing.one,)),
        "read": draw.glue(("read", "parse", "scan"), ("roman", "latin"), (thing.one,)),
        "doc": draw.pick("The number in Roman numerals, from 1 to 3999.", "Write a number the Roman way."),
    }
    numbers = [draw.number(1, 40), draw.number(41, 400), draw.number(401, 3999), 4, 9]
    texts = ["IV", "XIX", "MCMXC", "XII", "DCL"]
    probes = [f"{slots['write']}({number})" for number in (*numbers, 3999, 4000, 0)]
    probes += [f"{slots['read']}('{text}')" for text in texts]
    return write_module(draw, draw.pick("roman", "numerals"), f"Roman numbers of {thing.many}.", _ROMAN, slots, probes)


FAMILIES: dict[str, Family] = {"roman_numerals": roman_numerals}
