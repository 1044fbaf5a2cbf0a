"""The zoo: float networks in plain PyTorch, one function each, and recipes beside them.

Nothing here knows of quantization. Installed as qdeploy.models.
"""

# Zoo name -> where its function is.
NETWORKS = {
    "efficientnet_b0": "qdeploy.models.efficientnet:efficientnet_b0",
    "lenet5": "qdeploy.models.lenet5:lenet5",
    "mobilenet_v2": "qdeploy.models.mobilenet:mobilenet_v2",
    "mobilenet_v3_small": "qdeploy.models.mobilenet:mobilenet_v3_small",
    "nin": "qdeploy.models.nin:nin",
    "resnet18": "qdeploy.models.resnet:resnet18",
    "resnet20": "qdeploy.models.resnet:resnet20",
    "resnet20s": "qdeploy.models.resnet:resnet20s",
    "resnet50": "qdeploy.models.resnet:resnet50",
    "vit_b16": "qdeploy.models.vit:vit_b16",
}
