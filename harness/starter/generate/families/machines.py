"""State machines: doors, orders, accounts, retries."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, steps, write_module

_GATE = '''
class $Gate:
    """$doc"""

    def __init__(self, $price: int = $default) -> None:
        self.$price = $price
        self.paid = 0
        self.$passed = 0

    def $insert(self, coin: int) -> str:
        """Pay with a coin; returns open or locked."""
        if coin <= 0:
            raise ValueError("no such coin")
        self.paid += coin
        return self.$state()

    def $push(self) -> bool:
        """Try to go through; what was paid too much counts for the next one."""
        if self.paid < self.$price:
            return False
        self.paid -= self.$price
        self.$passed += 1
        return True

    def $state(self) -> str:
        """Whether the gate is open or locked."""
        return "open" if self.paid >= self.$price else "locked"
'''


def paid_gate(draw: Draw) -> Module:
    """A turnstile."""
    thing = draw.thing()
    default = draw.number(3, 9)
    slots = {
        "Gate": draw.camel((thing.one,), ("gate", "turnstile", "barrier", "door")),
        "price": draw.pick("fee", "toll", "fare"),
        "default": default,
        "passed": draw.pick("passed", "guests_in", "through"),
        "insert": draw.pick("insert", "pay", "give"),
        "push": draw.pick("push", "enter", "walk"),
        "state": draw.pick("state", "status", "shows"),
        "doc": draw.pick(f"A gate for {thing.many} that opens when enough was paid.", "A gate that takes coins."),
    }
    var = draw.pick("gate", "door")
    new = f"{var} = $Gate()"
    pay, more, push = f"{var}.$insert({default})", f"{var}.$insert({default + 2})", f"{var}.$push()"
    half = f"{var}.$insert({default - 1})"
    probes = [
        steps(new, call=pay),
        steps(new, call=half),
        steps(new, call=f"{var}.$insert(0)"),
        steps(new, call=f"{var}.$insert(-1)"),
        steps(new, half, call=f"{var}.$insert(1)"),
        steps(new, call=push),
        steps(new, pay, call=push),
        steps(new, pay, push, call=push),
        steps(new, more, push, call=f"[{var}.paid, {var}.$state()]"),
        steps(new, pay, more, push, call=push),
        steps(new, pay, push, push, call=f"[{var}.$passed, {var}.$state()]"),
        steps(new, pay, pay, push, push, call=f"[{var}.$passed, {var}.$push()]"),
        steps(f"{var} = $Gate(1)", call=f"{var}.$insert(1)"),
        steps(new, call=f"{var}.$state()"),
    ]
    name = draw.pick("gate", "entrance", "turnstile")
    return write_module(draw, name, f"A gate for {thing.many}.", _GATE, slots, probes)


_WORKFLOW = '''
MOVES = {
    "$new": ["$open", "$dropped"],
    "$open": ["$done", "$dropped"],
    "$done": ["$closed"],
}


class $Flow:
    """$doc"""

    def __init__(self) -> None:
        self.state = "$new"
        self.log: list[str] = []

    def $can(self, state: str) -> bool:
        """Whether this state may come next."""
        return state in MOVES.get(self.state, [])

    def $move(self, state: str) -> str:
        """Go to the next state and note the one before; raises ValueError if that is not allowed."""
        if not self.$can(state):
            raise ValueError(f"{self.state} cannot become {state}")
        self.log.append(self.state)
        self.state = state
        return self.state

    def $finished(self) -> bool:
        """Whether no state can follow."""
        return self.state not in MOVES

    def $back(self) -> str:
        """Take the last move back, if there was one."""
        if self.log:
            self.state = self.log.pop()
        return self.state
'''


def order_workflow(draw: Draw) -> Module:
    """A workflow with allowed moves."""
    thing = draw.thing()
    new, opened, done, closed, dropped = draw.pick(
        ("new", "paid", "sent", "received", "cancelled"),
        ("draft", "review", "final", "printed", "rejected"),
        ("waiting", "running", "ready", "archived", "failed"),
    )
    slots = {
        "Flow": draw.camel((thing.one,), ("flow", "state", "process", "life")),
        "new": new,
        "open": opened,
        "done": done,
        "closed": closed,
        "dropped": dropped,
        "can": draw.pick("can_move", "allows", "may_become"),
        "move": draw.pick("move", "advance", "become"),
        "finished": draw.pick("finished", "is_final", "ended"),
        "back": draw.pick("back", "undo", "revert"),
        "doc": draw.pick(f"The states that a {thing.one} goes through.", f"The life of a {thing.one}, step by step."),
    }
    var = draw.pick("flow", "life")
    start = f"{var} = $Flow()"
    one, two, three, drop = (f"{var}.$move('{state}')" for state in (opened, done, closed, dropped))
    probes = [
        steps(start, call=one),
        steps(start, call=two),
        steps(start, one, call=two),
        steps(start, drop, call=one),
        steps(start, one, two, call=three),
        steps(start, call=f"{var}.$can('{opened}')"),
        steps(start, call=f"{var}.$can('{closed}')"),
        steps(start, drop, call=f"{var}.$can('{new}')"),
        steps(start, call=f"{var}.$finished()"),
        steps(start, drop, call=f"{var}.$finished()"),
        steps(start, one, two, call=f"{var}.$finished()"),
        steps(start, call=f"{var}.$back()"),
        steps(start, one, call=f"{var}.$back()"),
        steps(start, one, two, f"{var}.$back()", call=f"[{var}.log, {var}.$back()]"),
        steps(start, one, two, call=f"[{var}.log, {var}.$finished()]"),
    ]
    name = draw.pick("flow", "states", "process")
    return write_module(draw, name, f"The states of {thing.many}.", _WORKFLOW, slots, probes)


_ACCOUNT = '''
class $Account:
    """$doc"""

    def __init__(self, $balance: int = 0, $credit: int = $default) -> None:
        self.$balance = $balance
        self.$credit = $credit
        self.$moves: list[int] = []

    def $deposit(self, cash: int) -> int:
        """Pay in; returns the new $balance."""
        if cash <= 0:
            raise ValueError("nothing to pay in")
        self.$balance += cash
        self.$moves.append(cash)
        return self.$balance

    def $withdraw(self, cash: int) -> int:
        """Pay out, down to minus the credit; returns the new $balance."""
        if self.$balance - cash < -self.$credit:
            raise ValueError("not enough money")
        self.$balance -= cash
        self.$moves.append(-cash)
        return self.$balance

    def $outgoing(self) -> int:
        """How much was paid out in all, as a positive number."""
        return -sum(move for move in self.$moves if move < 0)
'''


def money_account(draw: Draw) -> Module:
    """An account with a credit line."""
    thing = draw.thing()
    default = draw.pick(0, 10, 50)
    slots = {
        "Account": draw.camel((thing.one,), ("account", "wallet", "purse", "budget")),
        "balance": draw.pick("balance", "money", "funds"),
        "credit": draw.pick("credit", "overdraft", "loan"),
        "moves": draw.pick("moves", "changes", "history"),
        "default": default,
        "deposit": draw.pick("deposit", "pay_in", "earn"),
        "withdraw": draw.pick("withdraw", "pay_out", "spend"),
        "outgoing": draw.glue((thing.one,), ("spent", "outgoing", "expenses")),
        "doc": draw.pick(f"The money of a {thing.one}.", f"An account for {thing.many} with a little credit."),
    }
    var = draw.pick("account", "purse")
    n, m = draw.number(20, 90), draw.number(1, 15)
    new = f"{var} = $Account({n})"
    take = f"{var}.$withdraw({m})"
    put = f"{var}.$deposit({m + 5})"
    probes = [
        steps(new, call=put),
        steps(new, put, call=put),
        steps(new, call=f"{var}.$deposit(0)"),
        steps(new, call=f"{var}.$deposit(1)"),
        steps(new, call=take),
        steps(new, take, call=put),
        steps(new, call=f"{var}.$withdraw({n + default})"),
        steps(new, call=f"{var}.$withdraw({n + default + 1})"),
        steps(f"{var} = $Account()", call=f"{var}.$withdraw({default + 1})"),
        steps(f"{var} = $Account({n}, {m})", call=f"{var}.$withdraw({n + m})"),
        steps(f"{var} = $Account()", call=f"{var}.$deposit({n})"),
        steps(new, take, take, put, call=f"{var}.$outgoing()"),
        steps(new, put, call=f"{var}.$outgoing()"),
        steps(new, put, take, call=f"{var}.$outgoing()"),
    ]
    name = draw.pick("account", "purse", "budget")
    return write_module(draw, name, f"Money of {thing.many}.", _ACCOUNT, slots, probes)


_RETRY = '''
def $delays(count: int, $first: int = $default, limit: int = $limit) -> list[int]:
    """$doc"""
    result = []
    delay = $first
    for _ in range(count):
        result.append(min(delay, limit))
        delay *= 2
    return result


def $attempts(answers: list[bool], limit: int = $tries) -> int:
    """How many attempts it takes until one works; raises RuntimeError after the last allowed one."""
    for number, good in enumerate(answers, start=1):
        if good:
            return number
        if number >= limit:
            break
    raise RuntimeError("gave up")


def $again(status: int) -> bool:
    """Whether another attempt makes sense: after 429, and after every error of the server."""
    return status == 429 or 500 <= status < 600
'''


def retry_delays(draw: Draw) -> Module:
    """Waiting times between attempts."""
    thing = draw.thing()
    default, limit, tries = draw.number(1, 4), draw.pick(20, 30, 60), draw.number(2, 4)
    slots = {
        "delays": draw.glue((thing.one,), ("delays", "waits", "pauses", "backoff")),
        "attempts": draw.glue((thing.one,), ("attempts", "tries", "rounds")),
        "again": draw.glue((thing.one,), ("again", "retry", "repeat")),
        "first": draw.pick("first", "start", "base"),
        "default": default,
        "limit": limit,
        "tries": tries,
        "doc": draw.pick(
            f"Seconds to wait before each new attempt at a {thing.one}: twice as long each time, up to the limit.",
            "Waiting times that double, none above the limit.",
        ),
    }
    n = draw.number(5, 9)
    bad = [False] * tries
    probes = [
        f"$delays({draw.number(2, 4)})",
        "$delays(0)",
        "$delays(7)",
        f"$delays(3, {n})",
        f"$delays(4, {n}, {n * 3})",
    ]
    probes += [f"$delays(2, limit={default})", f"$delays(1, $first={n})", "$attempts([True])"]
    probes += [f"$attempts({[*bad[:-1], True]})", f"$attempts({[*bad, True]})", "$attempts([])"]
    probes += [f"$attempts({[*bad, True]}, {tries + 1})", f"$attempts({bad[:1]})"]
    probes += [f"$again({status})" for status in (429, 500, 404, 599, 600, 200)]
    name = draw.pick("retries", "waiting", "attempts")
    return write_module(draw, name, f"Attempts at {thing.many}.", _RETRY, slots, probes)


FAMILIES: dict[str, Family] = {
    "paid_gate": paid_gate,
    "order_workflow": order_workflow,
    "money_account": money_account,
    "retry_delays": retry_delays,
}
