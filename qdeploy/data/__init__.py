"""Data sets: their files and downloads, and batches on the device."""

from qdeploy.data.batches import Batches
from qdeploy.data.open import Data, open_data

__all__ = ["Batches", "Data", "open_data"]
