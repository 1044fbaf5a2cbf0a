"""Mixed precision: products in 16 bits, everything that decides on integers in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import ConvNet
from tiny_runs import tiny_data, tiny_fit, tiny_network
from torch import Tensor, nn

import qdeploy
