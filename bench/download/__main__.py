"""`python -m bench.download throughput|resume|single|peers`: see bench/README.md."""

import typer

from bench.download.peers import peers
from bench.download.resume import resume
from bench.download.single import single
from bench.download.throughput import throughput

app = typer.Typer(help="Downloads measured.", no_args_is_help=True)
app.command()(throughput)
app.command()(resume)
app.command()(single)
app.command()(peers)

if __name__ == "__main__":
    app()
