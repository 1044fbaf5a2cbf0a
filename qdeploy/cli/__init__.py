"""The command line, a command a file: options in, one call of the pipeline, print.

Heavy libraries are imported inside the commands, so that --help answers at once.
"""

import click

from qdeploy.cli import benchmark, export, inspect, pack, predict, report, train, zoo


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qdeploy")
def main() -> None:
    """Take a PyTorch network to 1 to 8 bits and ship it as ONNX, proven on ONNX Runtime."""


for command in (train.train, export.export, benchmark.benchmark, inspect.inspect, pack.pack):
    main.add_command(command)
for command in (predict.predict, report.report, zoo.methods, zoo.models):
    main.add_command(command)
