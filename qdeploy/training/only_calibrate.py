"""A run of 0 epochs: the trained float network is calibrated and kept."""

from itertools import islice

from lightning_fabric import Fabric
from torch import nn

from qdeploy import processes
from qdeploy.data import Data
from qdeploy.layers.norm import norms_over_processes
from qdeploy.metrics import write_metrics
from qdeploy.preparation.calibrate import calibrate
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.recipe import Recipe
from qdeploy.run import RunFolder
from qdeploy.training.checkpoint import Checkpoint, save_checkpoint
from qdeploy.training.console import Console
from qdeploy.training.evaluate import AsShipped, evaluate


def only_calibrate(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    run: RunFolder,
    console: Console,
    *,
    fingerprint: str,
    fabric: Fabric,
    resume: bool,
    as_shipped: AsShipped,
) -> None:
    """Calibrates `network` in place, by the first training batches, and keeps it in `run`.

    What is tested is what `as_shipped` makes of it.
    The files are those of a trained run, with no epoch in them. A run that is resumed has done all
    there is to do.
    """
    if resume and run.last.exists():
        console.log("nothing is left to do: the network is calibrated and there are no epochs")
        return
    fabric.to_device(network)
    batches = islice(data.train.epoch(0), recipe.train.calibration_batches)
    with norms_over_processes(network):
        if isinstance(network, PreparedNetwork):
            calibrate(network, batches, **recipe.calibrate.model_dump())
        tested = evaluate(as_shipped(network), data.test.epoch(0))
    console.log(f"without training  test loss {tested.loss:.4f}  top-1 {tested.top1:.2%}")
    if processes.rank() == 0:
        write_metrics(run.metrics, [])
        checkpoint = Checkpoint(fingerprint, [], network.state_dict(), {}, {}, {})
        save_checkpoint(checkpoint, run.best)
        save_checkpoint(checkpoint, run.last)
