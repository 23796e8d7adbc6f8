"""The commands about models on disks: their files, their tasks, and what is wanted. Each imports what it needs when it
runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.options import ApiKey, Gateway, Nats, Output, Watch, format_of, target_of

Model = Annotated[str, typer.Argument(help="The model's id; see `puna ls`.")]
Retain = Annotated[bool, typer.Option("--retain", help="The model goes, and its files stay on the disks.")]
Letters = Annotated[
    list[str] | None, typer.Argument(metavar="[LETTER]...", help="Numbers of `puna dlq ls`, or ids of tasks.")
]
AllLetters = Annotated[bool, typer.Option("--all", help="Every dead letter.")]

models = typer.Typer(
    help="Desired state: which models should be on which nodes.", no_args_is_help=True, rich_markup_mode=None
)
letters = typer.Typer(
    help="Dead letters: tasks that were given up, and why.", no_args_is_help=True, rich_markup_mode=None
)


def pull(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|SOURCE",
            help="hf://owner/repo[@rev][:quant][#file], https://…, s3://…, file:///path on the node, or a known model.",
        ),
    ],
    nats: Nats = None,
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="The id that clients ask for.")] = None,
    node: Annotated[str | None, typer.Option("--node", help="To this node; else to one that can take it.")] = None,
    override: Annotated[bool, typer.Option("--override", help="Fetch the files anew although they are there.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    file: Annotated[
        list[str] | None, typer.Option("--file", help="Name or pattern within the source. May be repeated.")
    ] = None,
    checksum: Annotated[
        str | None, typer.Option("--checksum", help="sha256:HEX or md5:HEX of a source of one file.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Only to a node with it. May be repeated.")
    ] = None,
    token_ref: Annotated[
        str | None,
        typer.Option("--token-ref", help="Where the node finds the credential: env:NAME, file:/path, secret:NAME."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow it until it has ended.")] = True,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0.1, help="Follow it for so many seconds.")] = None,
    output: Output = "table",
) -> int:
    """Fetch a model to a node's disk."""
    import asyncio

    from gateway.cli.pull import PullOptions, run_pull

    how = format_of(output)
    given = {"revision": revision, "files": file, "token_ref": token_ref}
    more: dict[str, Any] = {field: value for field, value in given.items() if value}
    more |= {"checksums": {"*": checksum}} if checksum else {}
    more |= {"selector": {"labels": _labels(label)}} if label else {}
    return asyncio.run(run_pull(target_of(nats), what, PullOptions(name, node, override, wait, timeout, more), how))


def _labels(texts: list[str]) -> dict[str, str]:
    found = dict[str, str]()
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise typer.BadParameter(f"{text!r}: write KEY=VALUE", param_hint="'--label'")
        found[key] = value
    return found


def rm(
    model: Model,
    nats: Nats = None,
    node: Annotated[str | None, typer.Option("--node", help="From this node alone.")] = None,
    retain: Retain = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait until it is gone.")] = 60.0,
    output: Output = "table",
) -> int:
    """Delete a model from every disk, or from one. What is being fetched is cancelled."""
    import asyncio

    from gateway.cli.removal import run_rm

    how = format_of(output)
    work = run_rm(target_of(nats), model, node, how, retain=retain, sure=yes, timeout_s=timeout)
    return asyncio.run(work)


def show(
    model: Model, nats: Nats = None, gateway: Gateway = None, api_key: ApiKey = None, output: Output = "table"
) -> int:
    """What a model is, where its files are, and what it takes."""
    import asyncio

    from gateway.cli.showing import run_show

    return asyncio.run(run_show(target_of(nats, gateway, api_key), model, format_of(output)))


def tasks(
    nats: Nats = None,
    everything: Annotated[bool, typer.Option("-a", "--all", help="All that have ended, too.")] = False,
    output: Output = "table",
    watch: Watch = False,
) -> int:
    """Tasks: what was asked of the nodes' disks, how it goes, and why it is not done."""
    import asyncio

    from gateway.cli.tasklist import run_tasks

    return asyncio.run(run_tasks(target_of(nats), format_of(output), everything=everything, watch=watch))


def cancel(
    task: Annotated[str, typer.Argument(help="The task's id, or the beginning of it; see `puna tasks`.")],
    nats: Nats = None,
    output: Output = "table",
) -> int:
    """End a task, wherever it is."""
    import asyncio

    from gateway.cli.removal import run_cancel

    return asyncio.run(run_cancel(target_of(nats), task, format_of(output)))


@letters.command("ls")
def letters_ls(nats: Nats = None, output: Output = "table") -> int:
    """All dead letters, the newest first."""
    import asyncio

    from gateway.cli.deadletters import run_ls

    return asyncio.run(run_ls(target_of(nats), format_of(output)))


@letters.command("show")
def letters_show(
    letter: Annotated[str, typer.Argument(help="Its number, or the id of its task.")],
    nats: Nats = None,
    output: Output = "table",
) -> int:
    """One dead letter, whole."""
    import asyncio

    from gateway.cli.deadletters import run_show

    return asyncio.run(run_show(target_of(nats), letter, format_of(output)))


@letters.command("redrive")
def letters_redrive(
    letter: Letters = None,
    nats: Nats = None,
    everything: AllLetters = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the task; FIELD= leaves it out."),
    ] = None,
    output: Output = "table",
) -> int:
    """Send the task again, and take the letter away."""
    import asyncio

    from gateway.cli.deadletters import run_redrive

    how = format_of(output)
    work = run_redrive(target_of(nats), letter or [], how, everything=everything, changes=change or [])
    return asyncio.run(work)


@letters.command("drop")
def letters_drop(
    letter: Letters = None, nats: Nats = None, everything: AllLetters = False, output: Output = "table"
) -> int:
    """Take the letter away; its task is not done."""
    import asyncio

    from gateway.cli.deadletters import run_drop

    return asyncio.run(run_drop(target_of(nats), letter or [], format_of(output), everything=everything))


@models.command("apply")
def models_apply(
    file: Annotated[list[str], typer.Option("-f", "--file", help="YAML, one document a model; `-` reads stdin.")],
    nats: Nats = None,
    output: Output = "table",
) -> int:
    """Make the fleet want these models, as the file says."""
    import asyncio

    from gateway.cli.desired import run_apply

    return asyncio.run(run_apply(target_of(nats), file, format_of(output)))


@models.command("get")
def models_get(
    model: Annotated[list[str] | None, typer.Argument(help="Without one: all.")] = None,
    nats: Nats = None,
    output: Output = "table",
) -> int:
    """What is wanted; of a named model, as it may be applied again."""
    import asyncio

    from gateway.cli.desired import run_get

    return asyncio.run(run_get(target_of(nats), model or [], format_of(output)))


@models.command("edit")
def models_edit(model: Model, nats: Nats = None, output: Output = "table") -> int:
    """Change what is wanted of a model, in $EDITOR."""
    import asyncio

    from gateway.cli.desired import run_edit

    return asyncio.run(run_edit(target_of(nats), model, format_of(output)))


@models.command("delete")
def models_delete(
    model: Annotated[list[str], typer.Argument(help="The models' ids.")],
    nats: Nats = None,
    retain: Retain = False,
    output: Output = "table",
) -> int:
    """Want a model no more: every node takes its copy away."""
    import asyncio

    from gateway.cli.desired import run_delete

    return asyncio.run(run_delete(target_of(nats), model, format_of(output), retain=retain))


def add_to(app: typer.Typer) -> None:
    """Make them commands of `puna`."""
    for command in (pull, rm, show, tasks, cancel):
        app.command()(command)
    app.add_typer(models, name="model")
    app.add_typer(letters, name="dlq")
