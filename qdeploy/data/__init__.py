"""Data sets: their files and downloads, and batches on the device."""

from qdeploy.data.batches import WHOLE, Batches, Share
from qdeploy.data.open import Data, open_data

__all__ = ["WHOLE", "Batches", "Data", "Share", "open_data"]
