"""`python -m bench.download throughput|resume`: see bench/README.md."""

import typer

from bench.download.resume import resume
from bench.download.throughput import throughput

app = typer.Typer(help="Downloads measured.", no_args_is_help=True)
app.command()(throughput)
app.command()(resume)

if __name__ == "__main__":
    app()
