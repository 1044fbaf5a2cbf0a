"""A run of 0 epochs: the trained float network is calibrated and kept."""

from itertools import islice

from torch import nn

from qdeploy.data import Data
from qdeploy.layers.norm import norms_over_processes
from qdeploy.preparation.calibrate import calibrate
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.scores import described
from qdeploy.training.checkpoint import Checkpoint, fingerprint
from qdeploy.training.evaluate import evaluate
from qdeploy.training.session import Session


def only_calibrate(session: Session, network: nn.Module, data: Data) -> None:
    """Calibrates `network` in place, by the first training batches, tests it and keeps it.

    The files are those of a trained run, with no epoch in them. A run that is resumed has done all
    there is to do. Errors: QdeployError for a checkpoint of another run.
    """
    recipe = session.recipe
    if session.last_checkpoint():
        session.console.log(
            "nothing is left to do: the network is calibrated and there are no epochs"
        )
        return
    session.fabric.to_device(network)
    batches = islice(data.train.epoch(0), recipe.train.calibration_batches)
    with norms_over_processes(network):
        if isinstance(network, PreparedNetwork):
            calibrate(network, batches, **recipe.calibrate.model_dump())
        tested = evaluate(network, data.test.epoch(0), session.task, session.classes)
    session.console.log(f"without training  test {described(tested, session.scores)}")
    session.keep(Checkpoint(fingerprint(recipe), [], network.state_dict(), {}, {}, {}))
