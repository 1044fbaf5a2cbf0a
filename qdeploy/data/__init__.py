"""Data sets: their files and downloads, and batches on the device."""

from qdeploy.data.batches import WHOLE, Batch, Batches, Normalisation, Share
from qdeploy.data.open import Data, open_data

__all__ = ["WHOLE", "Batch", "Batches", "Data", "Normalisation", "Share", "open_data"]
