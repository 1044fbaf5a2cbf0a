"""What a prepared network tells of its schedules."""

import math

import pytest
import torch
from torch import nn

import qdeploy
from qdeploy.preparation.prepared import PreparedNetwork


def prepared(method: str, **settings: object) -> PreparedNetwork:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    return qdeploy.prepare(network, torch.zeros(1, 1, 8, 8), method, **settings)


def test_of_layers_that_differ_it_is_the_one_that_is_behind() -> None:
    slower = {"2": {"options": {"t_end_time": 0.9, "t_factor": 1.12}}}
    network = prepared("slb", weight_bits=1, layers=slower)
    network.set_progress(20, 100)
    assert network.progress == pytest.approx({"temperature": 1.12})  # 1.2 in layer 0
    network.set_progress(59, 100)
    assert network.progress == pytest.approx({"temperature": 1.12**40})  # layer 0 is committed
    assert network.searching
    network.set_progress(90, 100)
    assert network.progress == {"temperature": math.inf}


def test_a_method_without_a_schedule_has_none() -> None:
    assert prepared("simqat").progress == {}


def test_the_delay_is_the_longest() -> None:
    layers = {"2": {"options": {"quant_delay": 7}}}
    assert prepared("simqat", quant_delay=3, layers=layers).quant_delay == 7
    assert prepared("simqat", act_bits="float").quant_delay == 0
