from paddle import nn


def replace_head(model, num_classes):
    model.head = nn.Linear(model.head.weight.shape[0], num_classes)
    return model


def freeze_backbone(model):
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not name.startswith("head.")
    return model


def parameter_groups(model, head_lr, backbone_lr):
    head, backbone = [], []
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        (head if name.startswith("head.") else backbone).append(parameter)
    groups = [
        {"params": head, "learning_rate": 1.0},
        {"params": backbone, "learning_rate": backbone_lr / head_lr},
    ]
    return [group for group in groups if group["params"]]
