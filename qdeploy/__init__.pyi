from .benchmark import benchmark_files as benchmark_files
from .deploy.export import export as export
from .errors import QdeployError as QdeployError
from .network_loading import load_network as load_network
from .pipeline.own_report import write_report as write_report
from .preparation.calibrate import calibrate as calibrate
from .preparation.complexity import complexity as complexity
from .preparation.convert import convert as convert
from .preparation.features import features as features
from .preparation.parameter_groups import parameter_groups as parameter_groups
from .preparation.prepare import prepare as prepare
from .preparation.prepared import PreparedNetwork as PreparedNetwork
from .proof.validate import validate as validate

__version__: str
