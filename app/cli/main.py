"""The `aimass` command."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from app.cli.launcher import Launcher, Options
from app.cli.prepare import first_key
from app.core.errors import AimassError
from app.registry.migrate import upgrade
from app.settings import Settings, describe

cli = typer.Typer(
    help="Data in, verified and compressed ONNX models behind batched endpoints out.", no_args_is_help=True
)


@cli.callback()
def _root() -> None:
    """Data in, verified and compressed ONNX models behind batched endpoints out."""


@cli.command()
def up(
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free port")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="everything that is kept on this machine")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="CPU workers; default: one per GPU, or one")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="make this the first key instead of a random one", envvar="AIMASS_API_KEY")
    ] = None,
    *,
    embedded: Annotated[
        bool, typer.Option("--embedded/--no-embedded", help="start a valkey server when none is set")
    ] = True,
) -> None:
    """Run the platform until Ctrl-C."""
    options = Options(host, port, data_dir, workers, api_key, embedded)
    sys.exit(Launcher(options, Settings()).run())


@cli.command()
def migrate() -> None:
    """Bring the registry's schema up to date."""
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)
    sys.stdout.write("the registry is up to date\n")


@cli.command()
def prepare(
    api_key: Annotated[str, typer.Option(help="the first key", envvar="AIMASS_API_KEY")],
) -> None:
    """Bring the schema up to date and see that the API key exists; for deployments whose processes start apart."""
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)
    asyncio.run(first_key(settings, api_key))
    sys.stdout.write("the registry is up to date and has the key\n")


@cli.command()
def settings(*, markdown: Annotated[bool, typer.Option(help="as the README has it")] = False) -> None:
    """List every setting with its default."""
    if markdown:
        rows = "\n".join(
            f"| `{name}` | {f'`{default}`' if default else ''} | {text} |" for name, default, text in describe()
        )
        sys.stdout.write(f"| variable | default | what it is |\n|---|---|---|\n{rows}\n")
        return
    table = Table("variable", "default", "what it is")
    for row in describe():
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    """Entry point: errors that an operator can mend are one line, not a stack trace."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        cli()
    except AimassError as error:
        sys.exit(f"aimass: {error.detail}")
    except ValidationError as error:
        wrong = [f"{error.title} {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        sys.exit(f"aimass: a setting is wrong: {'; '.join(wrong)}; `aimass settings` lists them")


if __name__ == "__main__":
    main()
