"""The zoo: float networks in plain PyTorch, one function each, and recipes beside them.

Nothing here knows of quantization. Installed as qdeploy.models.
"""

# Zoo name -> where its function is.
NETWORKS = {
    "lenet5": "qdeploy.models.lenet5:lenet5",
    "resnet18": "qdeploy.models.resnet:resnet18",
    "resnet20": "qdeploy.models.resnet:resnet20",
}
