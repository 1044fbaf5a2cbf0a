"""`python -m qdeploy` and `torchrun -m qdeploy`: the command line."""

from qdeploy.cli import main

main(prog_name="qdeploy")
