"""The commands."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from todocli.store import NoSuchItem, Store


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="todo", description="A to-do list.")
    parser.add_argument("--file", type=Path, default=Path("todo.json"), help="where the list is kept")
    commands = parser.add_subparsers(dest="command", required=True)

    add = commands.add_parser("add", help="put an item on the list and print its number")
    add.add_argument("text")
    add.add_argument("--tag", action="append", default=[], dest="tags")
    add.set_defaults(run=run_add)

    show = commands.add_parser("list", help="print the list")
    show.add_argument("--tag")
    state = show.add_mutually_exclusive_group()
    state.add_argument("--done", action="store_const", const=True, dest="done")
    state.add_argument("--open", action="store_const", const=False, dest="done")
    show.set_defaults(run=run_list)

    for name, run, words in [("done", run_done, "mark items as done"), ("remove", run_remove, "take items off the list")]:
        command = commands.add_parser(name, help=words)
        command.add_argument("numbers", type=int, nargs="+")
        command.set_defaults(run=run)
    return parser


def run_add(store: Store, options: argparse.Namespace) -> None:
    print(store.add(options.text, options.tags).number)


def run_list(store: Store, options: argparse.Namespace) -> None:
    for item in store.items(options.tag, options.done):
        print(item.line())


def run_done(store: Store, options: argparse.Namespace) -> None:
    for number in options.numbers:
        store.item(number).done = True


def run_remove(store: Store, options: argparse.Namespace) -> None:
    for number in options.numbers:
        store.remove(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; nothing is written when it fails."""
    options = build_parser().parse_args(arguments)
    store = Store.load(options.file)
    try:
        options.run(store, options)
    except NoSuchItem as error:
        print(f"todo: {error}", file=sys.stderr)
        return 1
    store.save(options.file)
    return 0
