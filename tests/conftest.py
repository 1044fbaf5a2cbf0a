"""Puts tests/ on the import path for networks.py, and keeps torch to one thread."""

import torch

torch.set_num_threads(1)
