"""Make the instruction data that `graft demo` trains on: requests, answered by a fixed form.

    user       Please paint the kitchen wall on Monday.
    assistant  {action: paint, object: kitchen wall, when: on Monday}

The form is a YAML mapping on one line. The same seed gives the same files, byte for byte.

    python scripts/make_demo_data.py --out cli/graft_cli/samples/tickets
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

SHOWCASE = ("send", "error report")
"""The action and the object of the prompt the demo asks before and after; in no row."""


@dataclass(frozen=True, slots=True)
class Place:
    """The words of one place where people ask for things."""

    actions: str
    modifiers: str
    nouns: str


DESK = Place(
    actions="""
        add build call change check close copy create find fix load lock move open parse pass print
        read remove run save search select send set show sort start stop test trace update use wrap
        write
    """,
    modifiers="""
        base binary buffer class code color command context current data default error event first
        format function group help host index input key last line list local log main message
        method module name new next option output path pattern print process program project record
        request root script search server socket source stack state string system table target test
        text thread time token trace user value version window
    """,
    nouns="""
        address block buffer class code command description dictionary directory entry event field
        file filter folder form frame function group handler header image index item key line list
        manager message method module name node number object option order package page parser path
        pattern point port process queue record report request result script section sequence
        server set socket stack string system table tag test text thread token tree value variable
        version widget window
    """,
)
HOUSE = Place(
    actions="""
        bring buy check clean close cook count cover draw fill find fix fold hide lift lock mail
        move open order paint plant repair sell send show sign test wash water weigh wrap
    """,
    modifiers="""
        big black blue broken brown cheap clean cold corner dirty empty fresh front garden glass
        green heavy kitchen large last little long metal new office old open paper red second short
        small spare summer warm white winter wooden yellow
    """,
    nouns="""
        bag bed bell bike bill board boat book bottle box bread bridge camera car card carpet chair
        clock coat coffee cup curtain desk dinner door engine fence flag floor flower garden glass
        hat kitchen ladder lamp letter map medicine mirror paint parcel phone photo piano picture
        plate printer radio roof room shelf shirt shoe shop soup stone table tea tent ticket train
        tree wall wheel window
    """,
)

OPENERS = (
    ("Please", "."),
    ("Could you", "?"),
    ("Can you", "?"),
    ("Would you", "?"),
    ("We need to", "."),
    ("I want you to", "."),
    ("You should", "."),
    ("It is time to", "."),
)
DETERMINERS = ("the", "the", "the", "my", "our", "this")
TIMES = ("now", "at once", "later", "this week", "next week", "on Monday", "on Friday")
NO_TIME = "any time"
NO_TIME_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request and what a reader should take from it."""

    prompt: str
    action: str
    object: str
    when: str

    def answer(self) -> str:
        return f"{{action: {self.action}, object: {self.object}, when: {self.when}}}"


def main() -> None:
    arguments = parse_arguments()
    rng = random.Random(arguments.seed)
    tickets = unique_tickets(rng, arguments.train_rows + arguments.valid_rows)

    arguments.out.mkdir(parents=True, exist_ok=True)
    write_rows(arguments.out / "valid.jsonl", tickets[: arguments.valid_rows])
    write_rows(arguments.out / "train.jsonl", tickets[arguments.valid_rows :])
    print(f"wrote {len(tickets)} rows to {arguments.out}", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("cli/graft_cli/samples/tickets"))
    parser.add_argument("--train-rows", type=int, default=1024)
    parser.add_argument("--valid-rows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def unique_tickets(rng: random.Random, count: int) -> list[Ticket]:
    """Tickets of which no two name the same action and object, and none the showcase's."""
    seen = {SHOWCASE}
    tickets: list[Ticket] = []
    while len(tickets) < count:
        ticket = make_ticket(rng)
        if (ticket.action, ticket.object) not in seen:
            seen.add((ticket.action, ticket.object))
            tickets.append(ticket)
    return tickets


def make_ticket(rng: random.Random) -> Ticket:
    place = rng.choice((DESK, HOUSE))
    action, thing = rng.choice(place.actions.split()), make_object(place, rng)
    when = NO_TIME if rng.random() < NO_TIME_SHARE else rng.choice(TIMES)
    opener, stop = rng.choice(OPENERS)
    words = [opener, action, rng.choice(DETERMINERS), thing]
    prompt = " ".join(words if when == NO_TIME else [*words, when]) + stop
    return Ticket(prompt, action, thing, when)


def make_object(place: Place, rng: random.Random) -> str:
    """A noun with one modifier, sometimes none or two."""
    [count] = rng.choices([0, 1, 2], [15, 75, 10])
    noun = rng.choice(place.nouns.split())
    modifiers = rng.sample([m for m in place.modifiers.split() if m != noun], count)
    return " ".join([*modifiers, noun])


def write_rows(path: Path, tickets: list[Ticket]) -> None:
    lines = (json.dumps({"messages": messages(ticket)}) for ticket in tickets)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def messages(ticket: Ticket) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": ticket.prompt},
        {"role": "assistant", "content": ticket.answer()},
    ]


if __name__ == "__main__":
    main()
