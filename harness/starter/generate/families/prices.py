"""Prices, fees and figures about numbers."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_DISCOUNT = '''
def $reduced($price: int, percent: int = $default) -> int:
    """$doc"""
    if percent < 0 or percent > 100:
        raise ValueError("percent must be from 0 to 100")
    return $price - $price * percent // 100


def $bulk($price: int, count: int) -> int:
    """The price of several $many; from $many_from on, each costs $off percent less."""
    if count >= $many_from:
        $price = $reduced($price, $off)
    return $price * count


def $cheapest($prices: list[int], limit: int) -> list[int]:
    """The prices that are not above the limit, lowest first."""
    return sorted($price for $price in $prices if $price <= limit)
'''


def discount_price(draw: Draw) -> Module:
    """Reduced prices."""
    thing = draw.thing()
    default, off, start = draw.pick(5, 10, 20), draw.pick(15, 25, 30), draw.number(3, 8)
    price = draw.pick("price", "cost", "cents")
    slots = {
        "reduced": draw.glue((thing.one,), ("reduced", "discount", "sale"), (price,)),
        "bulk": draw.glue(("bulk", "group", "volume"), (thing.one,), ("price", "cost")),
        "cheapest": draw.glue(("cheap", "low", "affordable"), (thing.one,), ("prices", "costs", "offers")),
        "price": price,
        "prices": {"price": "prices", "cost": "costs", "cents": "amounts"}[price],
        "many": thing.many,
        "default": default,
        "off": off,
        "many_from": start,
        "doc": draw.pick(
            f"What a {thing.one} costs after the discount, in cents; raises ValueError for a wrong percentage.",
            f"The price less so many percent, {default} by default.",
        ),
    }
    full = [draw.number(1, 30) * 20 for _ in range(4)]
    values = sorted(draw.sample(range(100, 900), 4))
    probes = [f"$reduced({full[0]})", f"$reduced({full[1]}, 50)", f"$reduced({full[2]}, percent=0)"]
    probes += [f"$reduced({full[0]}, 100)", f"$reduced({full[0]}, 101)", f"$reduced({full[0]}, -1)"]
    probes += [f"$bulk({full[3]}, {count})" for count in (start, start - 1, start + 2, 1)]
    probes += [f"$cheapest({draw.shuffle(values)}, {values[2]})", f"$cheapest({values}, {values[0] - 1})"]
    name = draw.pick("discounts", "offers", "pricing")
    return write_module(draw, name, f"Prices of {thing.many}.", _DISCOUNT, slots, probes)


_SHIPPING = '''
FREE_FROM = $free
STEPS = [($w1, $p1), ($w2, $p2), ($w3, $p3)]


def $fee($weight: int, $total: int = 0) -> int:
    """$doc"""
    if $total >= FREE_FROM:
        return 0
    for limit, fee in STEPS:
        if $weight <= limit:
            return fee
    raise ValueError("too heavy")


def $all_fees($many: list[int]) -> int:
    """The fees of several $many, each sent on its own."""
    return sum($fee($weight) for $weight in $many)


def $heaviest($many: list[int]) -> int:
    """The heaviest that can be sent at all; 0 if none can."""
    allowed = [$weight for $weight in $many if $weight <= STEPS[-1][0]]
    return max(allowed, default=0)
'''


def shipping_fee(draw: Draw) -> Module:
    """Fees by weight."""
    thing = draw.thing()
    w = [draw.number(1, 5), draw.number(6, 12), draw.number(15, 30)]
    p = sorted(draw.sample(range(2, 30), 3))
    free = draw.pick(50, 80, 100)
    slots = {
        "fee": draw.glue((thing.one,), ("fee", "postage", "charge", "freight")),
        "all_fees": draw.glue(("all", "summed", "joint"), (thing.one,), ("fees", "charges")),
        "heaviest": draw.glue(("heaviest", "largest", "biggest"), (thing.one,)),
        "many": thing.many,
        "weight": draw.pick("kilos", "mass", "heft"),
        "total": draw.pick("total", "worth", "paid"),
        "free": free,
        **{f"w{i + 1}": w[i] for i in range(3)},
        **{f"p{i + 1}": p[i] for i in range(3)},
        "doc": draw.pick(
            f"What it costs to send one of the {thing.many}; nothing from a total of {free} on.",
            f"The fee of the first step that is not below the weight; free from {free} on.",
        ),
    }
    probes = [f"$fee({weight})" for weight in (w[0], w[0] + 1, w[1], w[2], w[2] + 1)]
    probes += [f"$fee({w[0]}, {free})", f"$fee({w[1]}, $total={free - 1})", f"$fee({w[1]}, {free + 9})"]
    probes += [f"$all_fees({[w[0], w[2]]})", "$all_fees([])", f"$all_fees({[w[1], w[1], w[0]]})"]
    probes += [f"$heaviest({[w[0], w[2], w[2] + 3]})", f"$heaviest({[w[2] + 1]})", f"$heaviest({[w[1], w[0]]})"]
    name = draw.pick("shipping", "postage_table", "fees")
    return write_module(draw, name, f"Fees for {thing.many}.", _SHIPPING, slots, probes)


_BRACKETS = '''
BRACKETS = [(0, $r1), ($b2, $r2), ($b3, $r3)]


def $tax(income: int) -> int:
    """$doc"""
    if income < 0:
        raise ValueError("income is negative")
    total = 0
    for index, (start, rate) in enumerate(BRACKETS):
        end = BRACKETS[index + 1][0] if index + 1 < len(BRACKETS) else income
        if income > start:
            total += (min(income, end) - start) * rate // 100
    return total


def $rate(income: int) -> int:
    """The percentage on the last part of the income."""
    return [rate for start, rate in BRACKETS if income >= start][-1]


def $net(income: int) -> int:
    """What is left of the income."""
    return income - $tax(income)
'''


def tax_brackets(draw: Draw) -> Module:
    """A tax with steps."""
    thing = draw.thing()
    second, third = draw.number(2, 9) * 100, draw.number(10, 20) * 100
    slots = {
        "tax": draw.glue((thing.one,), ("tax", "duty", "levy", "dues")),
        "rate": draw.glue((thing.one,), ("rate", "percent", "bracket")),
        "net": draw.glue(("net", "remaining", "left"), (thing.one, "income")),
        "r1": draw.pick(0, 5, 10),
        "b2": second,
        "r2": draw.pick(15, 20, 25),
        "b3": third,
        "r3": draw.pick(30, 35, 40),
        "doc": draw.pick(
            "The tax on an income; every bracket's rate counts for what lies inside the bracket.",
            f"What is due for {thing.many}: each part of the income at the rate of its bracket.",
        ),
    }
    incomes = (0, second, second + 100, third, third + draw.number(1, 9) * 100, second - 100)
    probes = [f"$tax({income})" for income in (*incomes, -1)]
    probes += [f"$rate({income})" for income in incomes[:4]] + [f"$net({incomes[4]})", f"$net({incomes[2]})"]
    name = draw.pick("taxes", "duties", "brackets")
    return write_module(draw, name, f"Taxes on {thing.many}.", _BRACKETS, slots, probes)


_DIVISORS = '''
def $common($a: int, $b: int) -> int:
    """$doc"""
    while $b:
        $a, $b = $b, $a % $b
    return abs($a)


def $multiple($a: int, $b: int) -> int:
    """The smallest positive number that both numbers divide; 0 if one of them is 0."""
    if $a == 0 or $b == 0:
        return 0
    return abs($a * $b) // $common($a, $b)


def $reduce($a: int, $b: int) -> tuple[int, int]:
    """A fraction in lowest terms; raises ZeroDivisionError without a denominator."""
    if $b == 0:
        raise ZeroDivisionError("no denominator")
    factor = $common($a, $b)
    return $a // factor, $b // factor
'''


def common_divisor(draw: Draw) -> Module:
    """Greatest common divisors and fractions."""
    thing = draw.thing()
    a, b = draw.pick(("a", "b"), ("first", "second"), ("left", "right"), ("top", "bottom"))
    slots = {
        "common": draw.glue(("common", "shared", "joint"), (thing.one,), ("divisor", "factor", "measure")),
        "multiple": draw.glue(("common", "shared", "joint"), (thing.one,), ("multiple", "cycle", "period")),
        "reduce": draw.glue(("reduce", "simplify", "shrink"), (thing.one,), ("ratio", "fraction")),
        "a": a,
        "b": b,
        "doc": draw.pick("The greatest number that divides both.", "Euclid's greatest common divisor, never negative."),
    }
    f, g = draw.number(2, 9), draw.number(2, 7)
    x, y = f * draw.pick(3, 5, 7), f * draw.pick(2, 4, 8)
    probes = [f"$common({x}, {y})", f"$common({y}, {x * g})", f"$common({f}, 0)", f"$common(-{x}, {y})"]
    probes += [f"$multiple({x}, {y})", f"$multiple(0, {y})", f"$multiple({f}, {g})", f"$multiple({x}, 0)"]
    probes += [f"$reduce({x}, {y})", f"$reduce({y}, {x})", f"$reduce({x}, 0)", f"$reduce({f * g}, {g})"]
    name = draw.pick("divisors", "fractions", "ratios")
    return write_module(draw, name, f"Divisors for {thing.many}.", _DIVISORS, slots, probes)


_CHECK = '''
def $digit(code: str) -> int:
    """$doc"""
    if not code.isdigit():
        raise ValueError("only digits are allowed")
    total = 0
    for index, char in enumerate(code):
        factor = $odd if index % 2 == 0 else $even
        total += factor * int(char)
    return (10 - total % 10) % 10


def $valid(code: str) -> bool:
    """Whether the last digit is the check digit of those before it."""
    if len(code) < 2:
        return False
    return int(code[-1]) == $digit(code[:-1])


def $complete(code: str) -> str:
    """The code with its check digit at the end."""
    return code + str($digit(code))
'''


def check_digit(draw: Draw) -> Module:
    """Check digits."""
    thing = draw.thing()
    odd, even = draw.pick((1, 3), (3, 1), (7, 3), (3, 7))
    slots = {
        "digit": draw.glue((thing.one,), ("check", "control", "guard"), ("digit", "number")),
        "valid": draw.glue((thing.one,), ("valid", "correct", "genuine", "proper")),
        "complete": draw.glue(("complete", "sign", "seal", "finish"), (thing.one,), ("code", "number")),
        "odd": odd,
        "even": even,
        "doc": draw.pick(
            f"The check digit of a {thing.one}: the weighted sum of all digits and it is a multiple of ten.",
            f"The digit that makes the sum with the weights {odd} and {even} a multiple of ten.",
        ),
    }

    def sign(code: str) -> str:
        total = sum((odd, even)[index % 2] * int(char) for index, char in enumerate(code))
        return code + str(-total % 10)

    codes = ["".join(map(str, draw.numbers(draw.number(4, 6), 0, 9))) for _ in range(4)]
    probes = [f"$digit('{code}')" for code in (*codes[:3], "0", "12a4")]
    probes += [f"$valid('{sign(codes[0])}')", f"$valid('{sign(codes[1])[:-1]}{(int(sign(codes[1])[-1]) + 1) % 10}')"]
    probes += ["$valid('0')", "$valid('00')", f"$complete('{codes[3]}')", f"$complete('{codes[0]}')", "$complete('x')"]
    name = draw.pick("checks", "codes", "digits")
    return write_module(draw, name, f"Check digits of {thing.many}.", _CHECK, slots, probes)


_MEDIAN = '''
def $median($many: list[int]) -> float:
    """$doc"""
    if not $many:
        raise ValueError("no $many")
    order = sorted($many)
    half = len(order) // 2
    if len(order) % 2 == 1:
        return order[half]
    return (order[half - 1] + order[half]) / 2


def $mode($many: list[int]) -> int:
    """The most frequent of the $many; the smallest of several."""
    return max(sorted(set($many)), key=$many.count)


def $trimmed($many: list[int], $cut: int = 1) -> float:
    """The mean without so many of the smallest and of the largest."""
    kept = sorted($many)[$cut:len($many) - $cut]
    return sum(kept) / len(kept)
'''


def median_values(draw: Draw) -> Module:
    """Median, mode, trimmed mean."""
    thing = draw.thing()
    slots = {
        "median": draw.glue(("median", "middle", "central"), (thing.one,)),
        "mode": draw.glue(("usual", "typical", "modal"), (thing.one,)),
        "trimmed": draw.glue(("trimmed", "robust", "fair"), (thing.one,), ("mean", "average")),
        "many": thing.many,
        "cut": draw.pick("cut", "off", "drop"),
        "doc": draw.pick(
            f"The middle one of the {thing.many}, or the mean of the two in the middle.",
            f"The median of the {thing.many}; raises ValueError if there are none.",
        ),
    }
    odd, even = [2 * n for n in draw.sample(range(1, 30), 5)], [2 * n for n in draw.sample(range(1, 30), 4)]
    twice = [odd[0], odd[1], odd[0], odd[2]]
    probes = [f"$median({odd})", f"$median({even})", "$median([])", f"$median({even[:1]})", f"$median({even[:2]})"]
    probes += [f"$mode({twice})", f"$mode({even})", f"$mode({[*twice, odd[1]]})"]
    probes += [f"$trimmed({even})", f"$trimmed({[*even, 2]}, 2)", f"$trimmed({even[:2]}, $cut=0)"]
    name = draw.pick("statistics_of", "figures", "averages")
    return write_module(draw, name, f"Figures about {thing.many}.", _MEDIAN, slots, probes)


FAMILIES: dict[str, Family] = {
    "discount_price": discount_price,
    "shipping_fee": shipping_fee,
    "tax_brackets": tax_brackets,
    "common_divisor": common_divisor,
    "check_digit": check_digit,
    "median_values": median_values,
}
