"""Data sets: their files and downloads, and batches on the device."""

from qdeploy.data.batches import WHOLE, Batch, Batches, Normalisation, Share
from qdeploy.data.open import Data, open_data
from qdeploy.data.survey import Survey

__all__ = ["WHOLE", "Batch", "Batches", "Data", "Normalisation", "Share", "Survey", "open_data"]
