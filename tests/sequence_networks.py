"""Small networks of sequences: recurrent layers in them, and tables of words."""

import torch
import torch.nn.functional as F
from torch import nn

KINDS = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {}),
    "RNN of ReLUs": (nn.RNN, {"nonlinearity": "relu"}),
}
SHAPES = {
    "one layer": {},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True},
    "steps first": {"batch_first": False},
    "without bias": {"bias": False},
}


def recurrent(kind="LSTM", shape="one layer", inputs=6, hidden=5, **options):
    torch.manual_seed(0)
    layer, own = KINDS[kind]
    return layer(inputs, hidden, **{"batch_first": True} | own | SHAPES[shape] | options)


class Keywords(nn.Module):
    """x [N, T, 6]: a recurrent layer, and scores of the last step."""

    def __init__(self, layer=None):
        super().__init__()
        self.rnn = recurrent() if layer is None else layer
        self.fc = nn.Linear(self.rnn.hidden_size * (1 + self.rnn.bidirectional), 3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class Convolved(nn.Module):
    """x [N, T, 6]: a convolution over time in front, and scores of the last state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.rnn, self.fc = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x.transpose(1, 2)))).transpose(1, 2)
        return self.fc(self.rnn(x)[1][-1])


class Words(nn.Module):
    """words [N, 7]: of 300 in a table, with one row for each place in the sentence."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(300, 12, **options), nn.Embedding(7, 12)
        self.fc = nn.Linear(12, 3)

    def forward(self, words):
        places = self.places(torch.arange(words.shape[1], device=words.device))
        return self.fc(F.relu(self.words(words) + places).mean(1))


def sequences(count=4, seed=1, steps=7):
    return torch.randn(count, steps, 6, generator=torch.Generator().manual_seed(seed))


def sentences(count=4, seed=1):
    return torch.randint(300, (count, 7), generator=torch.Generator().manual_seed(seed))
