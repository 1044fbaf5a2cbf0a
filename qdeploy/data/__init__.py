"""Data sets: their files and downloads, and batches on the device."""

from qdeploy.data.batches import Batches
from qdeploy.data.open import Data, open_data
from qdeploy.data.phases import PhasedBatches

__all__ = ["Batches", "Data", "PhasedBatches", "open_data"]
