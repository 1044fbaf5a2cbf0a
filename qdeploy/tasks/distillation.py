"""Distillation: the quantized network also learns the soft output of the float network."""

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

TEMPERATURE = 4.0


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL(p || q), the mean over what is classified, with p = softmax(teacher / T), q of the student.

    student, teacher: logits [N, classes, ...], such as those of pixels. T = 4 shows which wrong
    classes the teacher finds likely; T^2 keeps the gradients as large as those of the cross
    entropy that it is mixed with (Hinton et al., arXiv 1503.02531, section 2).
    """
    log_q = log_softmax(student / TEMPERATURE, dim=1)
    log_p = log_softmax(teacher / TEMPERATURE, dim=1)
    classified = student.numel() / student.shape[1]
    return TEMPERATURE**2 * kl_div(log_q, log_p, reduction="sum", log_target=True) / classified
