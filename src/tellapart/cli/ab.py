"""Commands about the A/B test of a registered model: ab start, status and stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tellapart.cli.models import Name, Where
from tellapart.errors import InputError

if TYPE_CHECKING:
    from tellapart.monitoring.ab_test import ABTest, Standing
    from tellapart.registry import Registry

Store = Annotated[
    str,
    typer.Option(
        envvar="TELLAPART_STORE", show_envvar=True, help="What the server keeps: a file, or a database's URL."
    ),
]


def start(
    name: Name,
    which: Annotated[str, typer.Argument(help="The challenger: number, alias or digest.")] = "challenger",
    *,
    share: Annotated[str, typer.Option(help="Of the subjects for the challenger, as in 10%.")] = "10%",
    shadow: Annotated[
        bool, typer.Option("--shadow", help="The challenger sees photos, and nobody its answers.")
    ] = False,
    registry_url: Where = None,
) -> None:
    """Begin a test of a challenger.

    Servers that follow the model take it up within a few seconds.

    Example: tellapart ab start pets 4 --shadow --share 100%
    """
    from tellapart.monitoring.ab_test import SHADOW, SPLIT
    from tellapart.promotion import begin_test
    from tellapart.registry import Registry

    part, registry = share_of(share, shadow), Registry(registry_url)
    version = registry.version(name, which)
    test = begin_test(registry, version, SHADOW if shadow else SPLIT, part)
    how = "sees" if shadow else "answers"
    typer.echo(f"Test {test.id}: {name} {version.number} {how} {100 * part:g} %.")


def status(
    name: Name,
    *,
    store: Store,
    act: Annotated[bool, typer.Option("--act", help="Promote or roll back, where the test says so.")] = False,
    margin: Annotated[float, typer.Option(help="Points that the challenger may be worse.", min=0)] = 0.0,
    most_labels: Annotated[int | None, typer.Option(help="Labels after which the champion stays.", min=1)] = None,
    registry_url: Where = None,
) -> None:
    """Show how a test stands; looking often costs nothing.

    Example: tellapart ab status pets --store requests.db
    """
    from rich.table import Table

    from tellapart.cli.show import console, escaped
    from tellapart.databases import url_of
    from tellapart.monitoring.ab_test import Rules, evaluate_test, outcomes_of
    from tellapart.registry import Registry
    from tellapart.request_store import RequestStore

    registry = Registry(registry_url)
    test = _running(registry, name)
    opened = RequestStore(url_of(store))
    try:
        rules = Rules(margin=margin / 100, most_labels=most_labels)
        standing = evaluate_test(test, outcomes_of(opened.in_test(test.id), test), rules)
    finally:
        opened.close()
    table = Table(show_header=False, box=None)
    for label, value in _rows(test, standing).items():
        table.add_row(label, escaped(value))
    console().print(table)
    if act:
        _act(registry, name, test, standing)


def stop(name: Name, *, registry_url: Where = None) -> None:
    """End a test; the champion goes on."""
    from tellapart.monitoring.ab_test import TEST_NOTE
    from tellapart.registry import Registry

    registry = Registry(registry_url)
    test = _running(registry, name)
    # The challenger keeps its alias: servers act by the note alone, and `ab start` without a version begins with it
    # again.
    registry.write_note(name, TEST_NOTE, None)
    typer.echo(f"Test {test.id} of {name} is over.")


def share_of(text: str, shadow: bool) -> float:
    """Return a share of 1."""
    try:
        share = float(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not (0 < share < 1 or (shadow and share == 1)):
        most = "at most 100%" if shadow else "below 100%: without a champion beside it nothing can be compared"
        raise InputError(f"--share is {text!r}. Expected a share such as 10%, above 0 and {most}.")
    return share


def _running(registry: Registry, name: str) -> ABTest:
    from tellapart.monitoring.ab_test import TEST_NOTE, ABTest

    test = ABTest.from_json(registry.note(name, TEST_NOTE))
    if test is None:
        raise InputError(f"{name} is in no test. Begin one: tellapart ab start {name} VERSION.")
    return test


def _rows(test: ABTest, standing: Standing) -> dict[str, str]:
    low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in standing.interval)
    difference = "no label yet"
    if standing.difference is not None:
        difference = f"{100 * standing.difference:+.1f} points ({low} to {high})".replace("-", "−")
    rows = {
        "test": f"{test.id}, {test.mode}, {100 * test.share:g} %",
        "photos": f"{standing.num_photos:,}, {standing.num_challenger:,} of them with the challenger",
    }
    if test.mode == "shadow":
        share = standing.num_disagreements / max(1, standing.num_challenger)
        rows["disagreements"] = f"{standing.num_disagreements:,} ({100 * share:.1f} %): only their labels count"
    return rows | {
        "labels": f"{standing.num_labels:,}",
        "challenger less champion": difference,
        "what to do": f"{standing.action}: {standing.reason}",
    }


def _act(registry: Registry, name: str, test: ABTest, standing: Standing) -> None:
    """Do what a test says."""
    from tellapart.promotion import end_test

    if standing.action == "continue":
        return
    challenger = end_test(registry, name, test, standing)
    done = "is champion" if standing.action == "promote" else "is challenger no more; the champion stays"
    typer.echo(f"{name} {challenger.number} {done}.")
